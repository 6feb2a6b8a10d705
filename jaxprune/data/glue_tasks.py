"""The nine GLUE tasks (Wang et al. 2018, arXiv:1804.07461) as rows of one table.

A task of your own is one more row: `TASKS["Tweets"] = Task(name="Tweets", ...)`, and `Tweets/train.tsv` in the folder.
"""

import dataclasses
import difflib

from jaxprune.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One GLUE task: where its columns are and how it is scored."""

    name: str
    """GLUE's name, also the folder in `glue_data/`."""
    hub: str
    """Config of the hub dataset."""
    text: tuple[str, ...]
    """Text columns of the TSV files; one, or two for a pair."""
    label: str
    """Label column of the TSV files."""
    labels: tuple[str, ...]
    """Class names in the order of the hub's ClassLabel; empty for regression."""
    metrics: tuple[str, ...]
    """Names in `metrics.METRICS`, the main one first."""
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
    bounds: tuple[float, float] = (0.0, 5.0)
    """Range of a regression label, both ends included."""

    @property
    def regression(self) -> bool:
        """True if labels are scores, not classes."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Width of the classifier: the number of classes, 1 for regression."""
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
    raise UserError(f"unknown GLUE task {name!r}: {hint}Tasks are {', '.join(TASKS)}")


_PAIR = ("sentence1", "sentence2")
_MATCHED = (
    ("train", ("train.tsv",), "train"),
    ("dev", ("dev_matched.tsv",), "validation_matched"),
    ("dev_mismatched", ("dev_mismatched.tsv",), "validation_mismatched"),
)

# The main metric is the paper's (accuracy) where it ran the task, but Matthews for CoLA, whose accuracy hides a
# collapse onto the majority class; else that of BERT's Table 1 (Devlin et al. 2019, arXiv:1810.04805).
_ROWS = (
    Task("CoLA", "cola", ("sentence",), "label", ("unacceptable", "acceptable"), ("matthews", "accuracy"),
         header=("source", "label", "mark", "sentence")),
    Task("SST-2", "sst2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    Task("MRPC", "mrpc", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("f1", "accuracy"),
         hub_text=_PAIR),
    Task("STS-B", "stsb", _PAIR, "score", (), ("spearman", "pearson")),
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
