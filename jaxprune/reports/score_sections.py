"""The sections about scores: every figure and table of the study beside the published one, from either's tables."""

import math
from collections.abc import Sequence

from jaxprune.analysis import study_tables as study
from jaxprune.analysis.intervals import Estimate, Frame, difference, estimate, mean_of
from jaxprune.analysis.regression import fit_line
from jaxprune.analysis.study_tables import CONDITIONS, MAIN, TASKS, Cells, Setting, Tables
from jaxprune.reports.charts import Series, curves
from jaxprune.reports.claims import CannotTell, pruned_cost
from jaxprune.reports.number_text import NOTHING, fixed, percent, with_count, with_noise
from jaxprune.reports.section import Cell, Grid, Published, Section
from jaxprune.reports.svg import INK, Figure, category

NAMES: dict[str, str] = dict(zip(CONDITIONS, ("pruned", "masks lifted", "tuned first", "random"), strict=True))
"""Short names for figures: `masks lifted` is the paper's information deletion, `tuned first` its pruning after
fine-tuning."""


def scores(ours: Tables, theirs: Tables) -> Section:
    """Fig 1 and Table 1."""
    means, printed = _averages(ours), _averages(theirs)
    figures = [*means, *_per_task(ours["runs"])]
    return Section(figures, printed, [_table1(ours, theirs)], len(means), bool(figures))


def counted_tasks(tables: Tables) -> list[str]:
    """The tasks that means are over: those that verdicts rest on, where there are such, of the ones that were scored in
    every setting without a switch."""
    values = study.cells(tables["runs"], "accuracy")
    settings = {setting for setting, _ in values if setting[1] == MAIN.get(setting[0])}
    shared = [task for task in study.tasks(tables["runs"]) if all((setting, task) in values for setting in settings)]
    try:
        judged = pruned_cost(tables).tasks
    except CannotTell:
        judged = ()
    return [task for task in shared if task in judged] or shared


def by_condition(values: Cells, names: Sequence[str]) -> list[Series]:
    """A curve per condition: means over these tasks, with the intervals that the seeds leave."""
    lines = []
    for color, condition in enumerate(CONDITIONS):
        means = {x: _mean(values, study.setting_of(condition, x), names) for x in study.targets(values, condition)}
        means = {x: mean for x, mean in means.items() if mean.n}
        if means:
            y, half = ([getattr(mean, name) for mean in means.values()] for name in ("mean", "half"))
            lines.append(Series(NAMES[condition], [*means], y, category(color), half))
    return lines


def _mean(values: Cells, setting: Setting, names: Sequence[str]) -> Estimate:
    return mean_of([estimate(values.get((setting, task), [])) for task in names])


def _averages(tables: Tables) -> list[Figure]:
    figures, names = [], counted_tasks(tables)
    for column, what, label in (
        ("accuracy", "Accuracy", "dev accuracy (× 100)"),
        ("train_loss", "Training loss", "training loss (nats)"),
    ):
        if lines := by_condition(study.cells(tables["runs"], column), names):
            figures.append(curves(f"{what}, mean over {', '.join(names)}", lines, label))
    return figures


def _per_task(runs: Frame) -> list[Figure]:
    figures = []
    for task in study.tasks(runs):
        majority = study.of(runs, task=task)["majority"].dropna().tolist()
        as_it_is = "" if len(study.trained(study.of(runs, task=task))) else ", nothing trained (tuned first: cut only)"
        for column, what, floor, name in (
            ("accuracy", "accuracy", majority[:1], "majority class"),
            ("matthews", "Matthews correlation", [0.0], "chance"),
            ("spearman", "Spearman correlation", [0.0], "chance"),
        ):
            if lines := by_condition(study.cells(runs, column), [task]):
                dashed = [(height, name, INK["muted"]) for height in floor]
                figures.append(curves(f"{task}: {what}{as_it_is}", lines, "dev score (× 100)", dashed=dashed))
    return figures


def _table1(ours: Tables, theirs: Tables) -> Grid:
    """A row per condition and sparsity: accuracy and training loss of each task, ours above the published."""
    accuracy, loss, matthews = (study.cells(ours["runs"], name) for name in ("accuracy", "train_loss", "matthews"))
    printed, printed_loss = (study.cells(theirs["runs"], name) for name in ("accuracy", "train_loss"))
    names, shared = [*TASKS, *study.tasks(study.trained(ours["runs"]))], counted_tasks(ours)
    names, rows = list(dict.fromkeys(names)), []
    for condition in CONDITIONS:
        rows.append([condition.replace("_", " ")])
        for x in study.targets(accuracy, condition) or study.targets(printed, condition):
            setting = study.setting_of(condition, x)
            variant = "" if condition == "after_finetuning" else MAIN[condition]
            dev = [study.of(side["pretrain"], variant=variant, target=x)["dev_loss"].mean() for side in (ours, theirs)]
            row: list[Cell] = [percent(x), [fixed(dev[0], 3), Published(fixed(dev[1], 2))]]
            for task in names:
                cell = (setting, task)
                old = NOTHING
                if cell in printed:
                    old = f"{fixed(printed[cell][0], scale=100)} / {fixed(printed_loss[cell][0], 2)}"
                row.append([*_lines(estimate(accuracy.get(cell, [])), loss.get(cell)), Published(old)])
                if task == "CoLA":
                    row.append(_lines(estimate(matthews.get(cell, []))))
            old = Published(fixed(_mean(printed, setting, TASKS).mean, scale=100))
            rows.append([*row, [*_lines(_mean(accuracy, setting, shared)), old]])
    head = ["sparsity", "dev loss", *names, "mean"]
    head.insert(head.index("CoLA") + 1, "CoLA Matthews")
    caption = (
        "Dev accuracy × 100 and training loss (nats); ± is half of the 95 % interval over n seeds, of one there "
        "is none. Last line: published accuracy / training loss, one run. Dev loss: of pre-training, nats. The mean is "
        f"over {', '.join(shared) or 'no task'} here, as in the figures and the verdicts, over five tasks there."
    )
    return Grid(caption, head, rows)


def _lines(value: Estimate, losses: Sequence[float] | None = None) -> list[str]:
    """`83.1 ± 0.5`, then n and the training loss."""
    if value.n == 0:
        return [NOTHING]
    count = f"n = {value.n}"
    return [with_noise(value, scale=100), f"{count}, loss {fixed(estimate(losses).mean, 2)}" if losses else count]


def transfer(ours: Tables, theirs: Tables) -> Section:
    """Fig 2 left."""
    rows = []
    for condition in CONDITIONS:
        for task in study.tasks(ours["runs"]) or TASKS:
            for metric in ("accuracy", "matthews"):
                which = {"condition": condition, "task": task, "metric": metric}
                here, there = (study.of(side["transfer"], **which) for side in (ours, theirs))
                if len(here) or len(there):
                    name = condition.replace("_", " ")
                    rows.append([name, task, metric, *_slope(here), *_slope(there)[:2]])
    head = ("condition", "task", "metric", "slope, points per nat", "r", "points", "published slope", "published r")
    caption = "Lines of the score against the pre-training loss; ± is half of the 95 % interval of the slope."
    figures, printed = _scatter(ours["runs"]), _scatter(theirs["runs"])
    return Section(figures, printed, [Grid(caption, head, rows)], len(figures), bool(figures))


def _scatter(runs: Frame) -> list[Figure]:
    """A point per sparsity, and their line, for every task."""
    lines, runs = [], study.of(study.with_unpruned(runs), condition="information_deletion", variant="pruned")
    for i, task in enumerate(study.tasks(runs)):
        points = study.of(runs, task=task).groupby("target")[["pretrain_loss", "accuracy"]].mean().dropna()
        x, y = points["pretrain_loss"].tolist(), points["accuracy"].tolist()
        line = fit_line(x, y)
        if x:
            ends = [min(x), max(x)] if line.n and not math.isnan(line.slope) else []
            lines.append(Series("" if ends else task, x, y, category(i), line=False))
            lines.append(Series(task, ends, [line.intercept + line.slope * end for end in ends], category(i), dots=0))
    caption, xlabel = "Information deletion", "pre-training dev loss (nats)"
    return [curves(caption, lines, "dev accuracy (× 100)", xlabel)] if lines else []


def _slope(line: Frame) -> tuple[str, str, str]:
    if not len(line) or math.isnan(line["slope"].item()):
        return NOTHING, NOTHING, NOTHING
    slope, half, r, n = (line[name].item() for name in ("slope", "half", "r", "n"))
    text = with_noise(Estimate(slope, half, n), 2, scale=100, alone="no interval")
    return text, f"{NOTHING} (constant)" if math.isnan(r) else fixed(r, 3), f"{n:.0f}"


def switches(tables: Tables) -> Section:
    """What the authors could not separate, one change at a time."""
    seeded, values, rows = study.seeded(study.trained(tables["runs"])), study.cells(tables["runs"]), []
    for setting in sorted({s for s, _ in values if s[0] in MAIN and s[1] not in MAIN.values()}):
        condition, variant, target = setting
        names = [task for task in study.tasks(tables["runs"]) if (setting, task) in values]
        base = study.base_of(condition, target, seeded)
        loss = study.dev_loss_change(tables["pretrain"], variant, base)
        change = difference(seeded, setting, base, names)
        change = with_noise(change, scale=100, sign=True, alone="(one seed, no interval)")
        score = [f"{task} {with_count(estimate(values[setting, task]), scale=100)}" for task in names]
        name = condition.replace("_", " ")
        rows.append([variant, name, percent(target), fixed(loss, 3, sign=True), change, score])
    head = ("switch", "condition", "sparsity", "dev loss, change", "score, change in points", "scores")
    return Section(grids=[Grid("", head, rows)], measured=bool(rows))
