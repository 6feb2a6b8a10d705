"""What a task is, and the nine of GLUE (Wang et al. 2018, arXiv:1804.07461) as rows of one table.

One more row, `TASKS["Tweets"] = Task(name="Tweets", ...)`, is read from `Tweets/train.tsv` in the folder; a task whose
files and columns a config names (`own_task.py`) needs none.
"""

import dataclasses
import difflib
import math
from typing import Any, Literal

import numpy as np

from jaxprune.errors import UserError

Kind = Literal["single_label", "multi_label", "regression", "similarity"]
"""One class per text; any number of classes; a score; a score of a pair that the cosine of its texts follows."""
Head = Literal["classification", "multi_label", "regression", "similarity"]
HEADS: dict[Kind, Head] = {
    "single_label": "classification",
    "multi_label": "multi_label",
    "regression": "regression",
    "similarity": "similarity",
}
"""The head that learns a kind, which is also the name of its loss."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: its columns, what its labels mean and how it is scored; below, where GLUE's files differ."""

    name: str
    """GLUE's name, also the folder in `glue_data/`; or what the user calls it."""
    hub: str
    """Config of the hub dataset."""
    text: tuple[str, ...]
    """Text columns; one, or two for a pair."""
    label: str
    """Label column."""
    labels: tuple[str, ...]
    """Class names in the order of the outputs (of the hub's ClassLabel); empty where labels are scores."""
    metrics: tuple[str, ...]
    """Names in `metrics.METRICS`, the main one first."""
    kind: Kind = "single_label"
    """What a label is."""
    bounds: tuple[float, float] | None = None
    """Range of a score, both ends included; None for any. Similarity scales it to [0, 1] and cannot do without."""
    class_weights: str | tuple[float, ...] = "none"
    """What a class counts for in training: `none`, `balanced`, or a weight per class."""
    folder: str = ""
    """The folder in `glue_data/`, where it is not called `name`."""
    hub_text: tuple[str, ...] = ()
    """Text columns on the hub, where they differ from `text`."""
    coded: bool = True
    """TSV labels are class numbers; else class names."""
    header: tuple[str, ...] = ()
    """Column names of TSV files that have no header line."""
    skip_short_rows: bool = False
    """Leave out rows with too few columns: the official QQP files hold some, and the hub dropped them."""
    splits: tuple[tuple[str, tuple[str, ...], str], ...] = (
        ("train", ("train.tsv",), "train"),
        ("dev", ("dev.tsv",), "validation"),
    )
    """(split, file names to look for, split on the hub)."""

    @property
    def head(self) -> Head:
        """The head that learns it."""
        return HEADS[self.kind]

    @property
    def regression(self) -> bool:
        """True if labels are scores, not classes: regression and similarity."""
        return self.kind in ("regression", "similarity")

    @property
    def num_labels(self) -> int:
        """Width of the predictions: the number of classes, 1 for scores."""
        return max(1, len(self.labels))

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]


def task(name: str) -> Task:
    """The row of `TASKS` called `name`. Raises UserError with the nearest name and the list."""
    if name in TASKS:
        return TASKS[name]
    plain = {"".join(filter(str.isalnum, known)).lower(): known for known in TASKS}
    near = difflib.get_close_matches("".join(filter(str.isalnum, name)).lower(), plain, 1, 0.5)
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    hint = f"write {' '.join(name.split(','))}, apart. " if "," in name else hint
    raise UserError(f"unknown GLUE task {name!r}: {hint}Tasks are {', '.join(TASKS)}")


_LARGEST = float(np.finfo(np.float32).max)


def score(row: Task, value: Any, where: str) -> float:
    """A score as a number within the task's bounds; UserError for anything else: NaN, a typo, a number outside."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    low, high = row.bounds or (-_LARGEST, _LARGEST)
    if low <= number <= high:
        return number
    within = f" in [{low:g}, {high:g}]" if row.bounds else ""
    raise UserError(f"{where}: score {value!r} is not a number{within}. Repair or remove the row")


def scaled(row: Task, scores: np.ndarray) -> np.ndarray:
    """Scores (N,) as float32 labels: those of similarity from the task's bounds to [0, 1]."""
    if row.kind == "similarity" and row.bounds:
        scores = (scores - row.bounds[0]) / (row.bounds[1] - row.bounds[0])
    return scores.astype(np.float32)


_PAIR = ("sentence1", "sentence2")
_MATCHED = (
    ("train", ("train.tsv",), "train"),
    ("dev", ("dev_matched.tsv",), "validation_matched"),
    ("dev_mismatched", ("dev_mismatched.tsv",), "validation_mismatched"),
)

# The main metric is the paper's (accuracy) where it ran the task, but Matthews for CoLA, whose accuracy hides a
# collapse onto the majority class; else that of BERT's Table 1 (Devlin et al. 2019, arXiv:1810.04805). `sts` compares
# the sentences of STS-B by the cosine of their vectors, as sentence encoders do (Reimers & Gurevych 2019).
_ROWS = (
    Task("CoLA", "cola", ("sentence",), "label", ("unacceptable", "acceptable"), ("matthews", "accuracy"),
         header=("source", "label", "mark", "sentence")),
    Task("SST-2", "sst2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    Task("MRPC", "mrpc", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("f1", "accuracy"),
         hub_text=_PAIR),
    Task("STS-B", "stsb", _PAIR, "score", (), ("spearman", "pearson"), kind="regression", bounds=(0, 5)),
    Task("sts", "stsb", _PAIR, "score", (), ("spearman", "pearson"), kind="similarity", bounds=(0, 5), folder="STS-B"),
    Task("QQP", "qqp", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("accuracy", "f1"),
         skip_short_rows=True),
    Task("MNLI", "mnli", _PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
         hub_text=("premise", "hypothesis"), coded=False, splits=_MATCHED),
    Task("QNLI", "qnli", ("question", "sentence"), "label", ("entailment", "not_entailment"), ("accuracy",),
         coded=False),
    Task("RTE", "rte", _PAIR, "label", ("entailment", "not_entailment"), ("accuracy",), coded=False),
    Task("WNLI", "wnli", _PAIR, "label", ("not_entailment", "entailment"), ("accuracy",)),
)  # fmt: skip
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
"""Name -> task."""
