"""How a study's page begins: what was run, what came out, and where the scores break."""

from collections.abc import Sequence

from jaxprune.analysis import study_tables as study
from jaxprune.analysis.intervals import estimate, mean_of
from jaxprune.analysis.pruning_cost import PruningCost
from jaxprune.analysis.study_tables import CONDITIONS, Tables
from jaxprune.reports.charts import Series, curves
from jaxprune.reports.claims import CannotTell, pruned_cost
from jaxprune.reports.number_text import NOTHING, fixed, listed, percent, with_noise
from jaxprune.reports.regimes import NAMES, headline
from jaxprune.reports.score_sections import NAMES as CONDITION_NAMES
from jaxprune.reports.score_sections import by_condition, counted_tasks
from jaxprune.reports.section import Cell, Grid, Section
from jaxprune.reports.svg import Figure, category


def cost_of(tables: Tables) -> tuple[PruningCost | None, str]:
    """What pruning while pre-training costs, and that in one sentence; None and what is missing."""
    try:
        cost = pruned_cost(tables)
    except CannotTell as missing:
        return None, f"Cannot tell what pruning costs: {missing}."
    return cost, headline(cost)


def what_ran(tables: Tables) -> str:
    """Conditions, sparsities, tasks and seeds of the finished runs, in one sentence."""
    runs = study.trained(tables["runs"])
    values = study.cells(runs)
    present = [condition for condition in CONDITIONS if study.targets(values, condition)]
    if not present:
        return ""
    arms = "; ".join(f"{CONDITION_NAMES[c]} at {listed([*map(percent, study.targets(values, c))])}" for c in present)
    seeds = runs.groupby("task")["seed"].nunique()
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    each += " seed" if seeds.max() == 1 else " seeds"
    return f"{len(runs)} fine-tuning runs: {arms}. Tasks: {listed(study.tasks(runs))}, each with {each}."


def outcome(tables: Tables, cost: PruningCost | None) -> Section:
    """The picture and its numbers: the same tasks and the same metrics as in the verdicts."""
    names = counted_tasks(tables)
    values = study.cells(study.trained(tables["runs"]))
    figures = [
        curves(f"Score, mean over {listed(names)}", lines, "dev score (× 100), each task by its metric")
        for lines in [by_condition(values, names)]
        if lines and names
    ]
    grids = [_levels(cost)] if cost is not None and len(cost.levels) > 1 else []
    return Section([*figures, *_losses(tables)], grids=[*grids, _means(values, names)], measured=bool(figures or grids))


def _losses(tables: Tables) -> list[Figure]:
    lines = []
    for number, variant in enumerate(("pruned", "random")):
        means = study.of(tables["pretrain"], variant=variant).groupby("target")["dev_loss"].mean()
        if len(means) > 1:
            lines.append(Series(variant, [*means.index], [*means], category(3 * number)))
    return [curves("Pre-training: loss on held-out text", lines, "dev loss (nats)")] if lines else []


def _levels(cost: PruningCost) -> Grid:
    rows = [
        [
            percent(level.target),
            f"{fixed(level.dev_loss, 3)} ({fixed(level.dev_loss_change, 3, sign=True)})",
            with_noise(level.score, scale=100, sign=True, alone="(no interval)"),
            with_noise(level.train_loss, 3, sign=True, alone="(no interval)"),
            NAMES[level.regime] + (f": {level.why}" if level.why else "") if not cost.why else cost.why,
        ]
        for level in cost.levels
        if level.target
    ]
    caption = "Pruned while pre-training, against the unpruned model"
    if cost.tasks:
        caption += f": changes of the mean over {listed(cost.tasks)}"
        fewer = [level for level in cost.levels if level.tasks and {*level.tasks} != {*cost.tasks}]
        caption += "".join(f", at {percent(level.target)} over {listed(level.tasks)}" for level in fewer)
    if cost.left_out:
        caption += f". Left out: {cost.reasons}"
    head = ("sparsity", "dev loss (change), nats", "score, points", "training loss of the tasks, nats", "that is")
    return Grid(f"{caption}.", head, rows)


def _means(values: study.Cells, names: Sequence[str]) -> Grid:
    present = [condition for condition in CONDITIONS if study.targets(values, condition)]
    rows: list[list[Cell]] = []
    for target in sorted({target for condition in present for target in study.targets(values, condition)}):
        cells = [
            mean_of([estimate(values.get((study.setting_of(condition, target), task), [])) for task in names])
            for condition in present
        ]
        texts = [with_noise(mean, scale=100) if mean.n else NOTHING for mean in cells]
        rows.append([percent(target), *texts])
    caption = f"Mean score × 100 over {listed(names)}, as in the figure." if names else ""
    return Grid(caption, ("sparsity", *(CONDITION_NAMES[condition] for condition in present)), rows if names else [])
