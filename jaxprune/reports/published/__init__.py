"""The numbers of Gordon, Duh & Andrews 2020 as data; README.md names the source of each file."""

from pathlib import Path

from jaxprune.analysis.intervals import Frame
from jaxprune.analysis.study_tables import MAIN, TASKS, Tables, complete, read_csv, transfer_table

TABLES = ("table1", "table2", "table3", "movement_epochs", "movement_matrices", "memory")


def published(name: str) -> Frame:
    """One of `TABLES`: fractions in [0, 1], losses in nats, NaN in empty cells."""
    return read_csv(Path(__file__).parent / f"{name}.csv")


def published_tables() -> Tables:
    """What the paper prints, as the tables of a study with one seed per cell."""
    runs = published("table1").rename(columns={"sparsity": "target"})
    runs = runs[runs["task"].isin(TASKS)].assign(metric="accuracy", seed=0, learning_rate=0.0)
    runs = runs.assign(variant=runs["condition"].map(MAIN), score=runs["accuracy"])
    pretrain = runs[runs["condition"].isin(["pruned", "random"])].drop_duplicates(["condition", "target"])
    return complete(
        {
            "runs": runs,
            "pretrain": pretrain.rename(columns={"pretrain_loss": "dev_loss"})[["variant", "target", "dev_loss"]],
            "movement": published("table2").assign(variant="dense", epochs=3, path="all", seed=0),
            "weights": published("table3").assign(variant="dense"),
            "memory": published("memory").assign(variant="dense"),
            "transfer": transfer_table(runs),
        }
    )
