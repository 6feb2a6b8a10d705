"""A study's tables, and the published ones in the same shape, so that one function draws or judges either."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas

from jaxprune.analysis.published import published
from jaxprune.analysis.transfer import fit

CONDITIONS = ("pruned", "information_deletion", "after_finetuning", "random")
MAIN = {"pruned": "pruned", "information_deletion": "pruned", "after_finetuning": "dense", "random": "random"}
"""Condition -> the variant of its runs that are no switch."""
NAMES = {
    "pruned": "pruned",
    "information_deletion": "masks lifted",
    "after_finetuning": "tuned first",
    "random": "random",
}
"""Short names for figures: `masks lifted` is the paper's information deletion, `tuned first` its pruning after
fine-tuning."""
TASKS = ("MNLI", "QQP", "QNLI", "SST-2", "CoLA")
"""The paper's tasks in its order."""
PRETRAINED, UNTUNED = "pruned while pre-training", "cut without fine-tuning"
"""What the masks of a cut after fine-tuning are compared with: the paper's Fig 3, which differs by all of pre-training
too, and the same cut of the weights that fine-tuning began from, which differs by fine-tuning alone. Cuts are per
matrix, as in the paper, whatever the scope of the study."""
TABLES = (
    *("runs", "pretrain", "transfer", "features", "distance", "movement", "movement_rank", "heads", "magnitude"),
    *("heatmaps", "tokens", "weights", "memory", "churn", "curves"),
)

Frame = Any
"""A pandas.DataFrame; its indexing has too many forms for a type checker."""
Tables = Mapping[str, Frame]
"""Name -> table; an empty one where nothing was measured. Fractions in [0, 1], losses in nats."""
Setting = tuple[str, str, float]
"""(condition, variant, target sparsity)."""
Cells = dict[tuple[Setting, str], list[float]]
"""(setting, task) -> the values of its seeds."""


def read_tables(folder: Path) -> dict[str, Frame]:
    """All of `TABLES` from their CSV files; `runs` at the best learning rate of each cell."""
    tables = {}
    for name in TABLES:
        path = folder / f"{name}.csv"
        names: Any = dict.fromkeys(("name", "variant", "task", "condition"), str)
        tables[name] = pandas.read_csv(path, dtype=names) if path.is_file() else pandas.DataFrame()
    tables["runs"] = best_rate(tables["runs"])
    return tables


def published_tables() -> dict[str, Frame]:
    """What Gordon et al. printed, as the tables of a study with one seed per cell."""
    tables = {name: pandas.DataFrame() for name in TABLES}
    rows = [row for row in published("table1") if row["task"] in TASKS]
    runs: Frame = pandas.DataFrame(rows).rename(columns={"sparsity": "target"})
    runs["variant"] = runs["condition"].map(MAIN)
    tables["runs"] = runs.assign(metric="accuracy", score=runs["accuracy"], seed=0, learning_rate=0.0)
    pretrain: Frame = runs.dropna(subset="pretrain_loss").drop_duplicates(["condition", "target"])
    pretrain = pretrain[pretrain["condition"].isin(["pruned", "random"])].rename(columns={"pretrain_loss": "dev_loss"})
    tables["pretrain"] = pretrain[["variant", "target", "dev_loss"]]
    tables["movement"] = pandas.DataFrame(published("table2")).assign(variant="dense", epochs=3, path="all", seed=0)
    tables["weights"] = pandas.DataFrame(published("table3")).assign(variant="dense")
    tables["memory"] = pandas.DataFrame(published("memory")).assign(variant="dense")
    tables["transfer"] = transfer_table(tables["runs"])
    return tables


def of_variant(rows: Frame, variant: str) -> Frame:
    """The rows of a variant."""
    return rows[rows["variant"] == variant] if len(rows) else rows


def best_rate(runs: Frame) -> Frame:
    """The rows at the learning rate with the highest mean score of their (condition, variant, target, task)."""
    if runs.empty:
        return runs
    cell = ["condition", "variant", "target", "task"]
    means = runs.groupby([*cell, "learning_rate"], as_index=False)["score"].mean()
    best = means.loc[means.groupby(cell)["score"].idxmax(), [*cell, "learning_rate"]]
    return runs.merge(best, on=[*cell, "learning_rate"])


def cells(runs: Frame, column: str = "score") -> Cells:
    """The values of a column by setting and task; those that are not numbers are left out.

    Random pruning of nothing is pruning of nothing: where a study did not run it twice, the `pruned` cell stands in.
    """
    found: Cells = {}
    if column not in runs:
        return found
    groups = runs.dropna(subset=column).groupby(["condition", "variant", "target", "task"])
    for (condition, variant, target, task), values in groups[column]:
        found[(str(condition), str(variant), float(target)), str(task)] = values.tolist()
    if any(setting[0] == "random" for setting, _ in found):
        for (setting, task), values in list(found.items()):
            if setting == ("pruned", "pruned", 0.0):
                found.setdefault((("random", "random", 0.0), task), values)
    return found


def main(condition: str, target: float) -> Setting:
    """The setting of a condition without a switch."""
    return condition, MAIN[condition], target


def targets(found: Cells, condition: str) -> list[float]:
    """The sparsities of a condition without a switch, ascending."""
    return sorted({setting[2] for setting, _ in found if setting[:2] == (condition, MAIN[condition])})


def tasks(runs: Frame) -> list[str]:
    """The tasks of a study, the paper's first and in its order."""
    seen = list(dict.fromkeys(runs["task"])) if "task" in runs else []
    return [task for task in TASKS if task in seen] + sorted(task for task in seen if task not in TASKS)


def transfer_table(runs: Frame) -> Frame:
    """A row per condition, task and metric: the line of the score (mean over seeds) against the pre-training loss."""
    rows = []
    if "pretrain_loss" not in runs:
        return pandas.DataFrame()
    for condition, variant in MAIN.items():
        for task in tasks(runs):
            some = runs[(runs["condition"] == condition) & (runs["variant"] == variant) & (runs["task"] == task)]
            for metric in ("accuracy", "matthews"):
                if metric not in some or some[metric].isna().all():
                    continue
                points = some.dropna(subset=["pretrain_loss", metric]).groupby("target")[["pretrain_loss", metric]]
                line = fit(*(points.mean()[name].tolist() for name in ("pretrain_loss", metric)))
                if line.n > 1:
                    rows.append({"condition": condition, "task": task, "metric": metric, **line._asdict()})
    return pandas.DataFrame(rows)


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
