"""The tables of a study: their columns, how they are read and written, and the settings that their rows stand for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas

from jaxprune.analysis.intervals import Frame, Replicates, paired_change, replicates
from jaxprune.analysis.regression import fit_line

CONDITIONS = ("pruned", "information_deletion", "after_finetuning", "random")
MAIN = {"pruned": "pruned", "information_deletion": "pruned", "after_finetuning": "dense", "random": "random"}
"""Condition -> the variant of its runs that are no switch."""
STAND_IN = ("random", "information_deletion")
"""Conditions that at 0 are `pruned` at 0: random pruning of nothing, or masks of nothing that are lifted."""
TASKS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA")
"""The paper's tasks in its order."""
PRETRAINED, UNTUNED = "pruned while pre-training", "cut without fine-tuning"
"""What the masks of a cut after fine-tuning are compared with: the paper's Fig 3, which differs by all of pre-training
too, and the same cut of the weights that fine-tuning began from, which differs by fine-tuning alone. Cuts are per
matrix, as in the paper, whatever the scope of the study."""
_TUNED = "variant epochs task learning_rate seed"
_MODEL = "name variant target"
TABLES = {
    "runs": "condition variant target task learning_rate seed metric score accuracy matthews spearman train_loss "
    "majority start pretrain_loss tuned_epochs train_examples dev_examples steps",
    "pretrain": f"{_MODEL} dev_loss steps seed",
    "transfer": "condition task metric slope half r n",
    "features": f"{_MODEL} layer cosine cka",
    "distance": f"{_TUNED} target against path hamming iou chance ratio",
    "movement": f"{_TUNED} path mean std kind",
    "movement_rank": f"{_TUNED} bin before after",
    "heads": f"{_MODEL} layer head sparsity",
    "magnitude": "sparsity signed_sum abs_share",
    "heatmaps": "figure row column abs_mean",
    "tokens": f"{_MODEL} group rows abs_mean sparsity",
    "weights": f"{_MODEL} path kind mean std",
    "memory": f"{_MODEL} part weights share",
    "churn": f"{_MODEL} step size regrown newly_pruned",
    "curves": f"{_MODEL} step loss",
}
"""Table -> the columns that pages and verdicts read; a file may have more, and lack what was not measured."""

Tables = Mapping[str, Frame]
"""Name -> table with all of its columns, and no row where nothing was measured. Fractions in [0, 1], losses in nats."""
Setting = tuple[str, str, float]
"""(condition, variant, target sparsity)."""
Cells = dict[tuple[Setting, str], list[float]]
"""(setting, task) -> the values of its seeds."""


def read_csv(path: Path) -> Frame:
    """The rows of a CSV file; names stay text where they look like numbers."""
    texts: Any = dict.fromkeys(("name", "variant", "task", "condition", "start"), str)
    return pandas.read_csv(path, dtype=texts)


def read_tables(folder: Path) -> Tables:
    """All of `TABLES` from the CSV files of a folder; `runs` at the best learning rate of each cell."""
    paths = {name: folder / f"{name}.csv" for name in TABLES}
    tables = complete({name: read_csv(path) for name, path in paths.items() if path.is_file()})
    return {**tables, "runs": best_rate(tables["runs"])}


def complete(tables: Tables) -> Tables:
    """All of `TABLES`, the columns and tables that `tables` lacks filled with nothing."""
    frames = {name: tables.get(name, pandas.DataFrame()) for name in TABLES}
    columns = {name: dict.fromkeys([*text.split(), *frames[name].columns]) for name, text in TABLES.items()}
    return {name: frame.reindex(columns=[*columns[name]]) for name, frame in frames.items()}


def write_table(path: Path, rows: Any) -> None:
    """Rows (dicts or a DataFrame) as CSV at `path`, and as Parquet beside it; without rows neither is left there."""
    twin = path.with_suffix(".parquet")
    path.unlink(missing_ok=True)
    twin.unlink(missing_ok=True)
    if len(rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pandas.DataFrame(rows)
        frame.to_csv(path, index=False)
        frame.to_parquet(twin, index=False)


def of(rows: Frame, **values: Any) -> Frame:
    """The rows whose columns have these values: of(rows, variant="dense", path="all")."""
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows


def best_rate(runs: Frame) -> Frame:
    """The rows at the learning rate with the highest mean score of their (condition, variant, target, task); `rates` is
    how many it was chosen from."""
    cell = ["condition", "variant", "target", "task"]
    means = runs.groupby([*cell, "learning_rate"], as_index=False)["score"].mean()
    means["rates"] = means.groupby(cell)["score"].transform("size")
    best = means.loc[means.groupby(cell)["score"].idxmax(), [*cell, "learning_rate", "rates"]]
    return runs.merge(best, on=[*cell, "learning_rate"]) if len(runs) else runs


def trained(runs: Frame) -> Frame:
    """The runs that fine-tuned; the others score what they start from, by the cosine of two sentences."""
    return runs[runs["steps"] != 0]


def setting_of(condition: str, target: float) -> Setting:
    """The setting of a condition without a switch."""
    return condition, MAIN[condition], target


def with_unpruned(runs: Frame) -> Frame:
    """`runs`, with those of `pruned` at 0 for the conditions of `STAND_IN` too, which a study need not run again."""
    base = of(runs, condition="pruned", variant="pruned", target=0.0)
    parts = [runs]
    for condition in STAND_IN:
        rows = of(runs, condition=condition, variant=MAIN[condition])
        if len(rows):
            stand_in = base[~base["task"].isin(of(rows, target=0.0)["task"])]
            parts += [stand_in.assign(condition=condition, variant=MAIN[condition])] * bool(len(stand_in))
    return pandas.concat(parts, ignore_index=True) if len(parts) > 1 else runs


def seeded(runs: Frame, column: str = "score") -> Replicates:
    """The runs' values of a column by setting and task, and by seed; those that are not numbers are left out. Each run
    once, so that chance can be told from them."""
    return replicates(runs, column, ["condition", "variant", "target"])


def cells(runs: Frame, column: str = "score") -> Cells:
    """As `seeded`, without the seeds, and `with_unpruned`: what figures and tables show."""
    found = seeded(with_unpruned(runs), column)
    return {cell: [run.value for run in by_seed.values()] for cell, by_seed in found.items()}


def base_of(condition: str, target: float, cells: Iterable[tuple[Setting, str]]) -> Setting:
    """What a switch of a condition is compared with: the condition without it, or `pruned` where that stands in."""
    own = setting_of(condition, target)
    alone = target or condition not in STAND_IN or own in {setting for setting, _ in cells}
    return own if alone else setting_of("pruned", target)


def dev_loss_change(pretrain: Frame, variant: str, base: Setting) -> float:
    """Dev loss of a variant of a base setting - that of the base, over the seeds that both were pre-trained with; NaN
    where either was not pre-trained."""
    ours, other = (of(pretrain, variant=name, target=base[2]) for name in (variant, MAIN[base[0]]))
    return paired_change(ours, other, "dev_loss")


def targets(cells: Iterable[tuple[Setting, str]], condition: str) -> list[float]:
    """The sparsities of a condition without a switch, ascending."""
    return sorted({setting[2] for setting, _ in cells if setting[:2] == (condition, MAIN[condition])})


def tasks(runs: Frame) -> list[str]:
    """The tasks of a study, the paper's first and in its order."""
    names = {*runs["task"]}
    return [task for task in TASKS if task in names] + sorted(names.difference(TASKS))


def transfer_table(runs: Frame) -> Frame:
    """A row per condition, task and metric: the line of the score (mean over seeds) against the pre-training loss."""
    rows, runs = [], with_unpruned(runs)
    for condition, variant in MAIN.items():
        for task in tasks(runs):
            for metric in ("accuracy", "matthews"):
                chosen = of(runs, condition=condition, variant=variant, task=task)
                if metric in chosen and "pretrain_loss" in chosen:
                    points = chosen.dropna(subset=["pretrain_loss", metric]).groupby("target")
                    line = fit_line(*(points[column].mean().tolist() for column in ("pretrain_loss", metric)))
                    rows += [{"condition": condition, "task": task, "metric": metric, **line._asdict()}] * (line.n > 1)
    return pandas.DataFrame(rows)
