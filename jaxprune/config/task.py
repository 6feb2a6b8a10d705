"""A task of the user's own: where its files and columns are, what its labels mean, how it is scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from jaxprune.config.sections import Section

Name = Annotated[str, Field(coerce_numbers_to_str=True)]
"""A name that YAML may take for a number."""


TAGS = ("<name>", "<task>")
"""Of the two kinds of TaskEntry, in what pydantic says of where an error is."""
_TAKEN = ("best", "before", "tokenizer", "checkpoints", "hf", "tensorboard")
_FILES = (".json", ".jsonl", ".csv", ".yaml", ".html", ".lock", ".npz")


class OwnTaskConfig(Section):
    """One task of your own: its files (or a `datasets` name), columns, labels and metrics."""

    name: str = Field(min_length=1)
    """What runs, folders and tables call it; none of GLUE's names."""
    train: str = Field(min_length=1)
    """Training examples: a file (.csv, .tsv, .jsonl, .parquet), or with `dataset` the name of a split."""
    dev: str = ""
    """Examples to score on, given as `train` is; empty draws them from `train` by `dev_fraction`."""
    dataset: str = ""
    """A dataset on the hub or in a local folder, read by `datasets`; empty reads files."""
    subset: str = ""
    """The dataset's configuration, where it has several."""
    revision: str = ""
    """Hub commit of `dataset` to pin."""
    dev_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of `train` held out as dev; single labels keep their shares in both parts."""
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the draw by `dev_fraction`."""
    text: str | tuple[str, ...]
    """Column of the texts, or two for a pair."""
    label: str | tuple[str, ...]
    """Column of the labels; for `multi_label` also several columns of 0 and 1, one per label."""
    separator: str = ""
    """multi_label: what parts the labels within a text column; empty where the column holds lists."""
    kind: Literal["single_label", "multi_label", "regression", "similarity"] = "single_label"
    """What a label is: one class, any number of classes, a score, or the score of a pair that the cosine of the two
    texts' vectors is to follow."""
    labels: tuple[Name, ...] = ()
    """Class names in the order of the classifier's outputs; none takes those in `train`, sorted."""
    metrics: tuple[str, ...] = ()
    """What it is scored by, the main metric first; none takes the usual ones of the kind."""
    class_weights: str | dict[Name, float] = "none"
    """single_label: what an example of a class counts for in the loss: `none`, `balanced` (inversely to the number of
    its examples), or a weight per name (1 for those not named)."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest score, both allowed; null: any for `regression`, [0, 1] for `similarity`."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name.startswith(".") or {*"/\\\0"} & {*self.name}:
            raise ValueError(f"name = {self.name!r} is no name for a directory; use letters, digits, - and _")
        if self.name.lower() in _TAKEN or Path(self.name).suffix in _FILES:
            raise ValueError(f"name = {self.name!r} is what a workdir calls something else; choose another")
        if bool(self.dev) == bool(self.dev_fraction):
            both = "both are set" if self.dev else "neither is set"
            raise ValueError(f"dev and dev_fraction: {both}; give the dev examples, or a fraction of train to hold out")
        if not self.dataset and (self.subset or self.revision):
            raise ValueError("subset and revision need dataset, the name of a dataset")
        if not 1 <= len(self.texts) <= 2:
            raise ValueError(f"text = {list(self.texts)}: name one column, or two for a pair")
        if self.kind == "similarity" and len(self.texts) != 2:
            raise ValueError(f"text = {self.text!r}: kind = similarity compares two texts; name two columns")
        self._check_labels()
        return self

    def _check_labels(self) -> None:
        scores, columns = self.kind in ("regression", "similarity"), not isinstance(self.label, str)
        if columns and (self.kind != "multi_label" or not self.label):
            raise ValueError(f"label = {[*self.label]}: kind = {self.kind} takes one column")
        if self.separator and (self.kind != "multi_label" or columns):
            raise ValueError(f"separator = {self.separator!r} is for kind = multi_label with one label column")
        if self.labels and (scores or columns):
            raise ValueError(f"labels: {'scores have none' if scores else 'the label columns name them'}; remove it")
        if len({*self.labels}) < len(self.labels):
            raise ValueError(f"labels = {[*self.labels]} has one twice; remove it")
        if self.kind == "single_label" and len(self.labels) == 1:
            raise ValueError(f"labels = {[*self.labels]}: give two or more classes")
        if self.class_weights != "none" and self.kind != "single_label":
            raise ValueError(f"class_weights is for kind = single_label, not {self.kind}; remove it")
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                if weight <= 0:
                    raise ValueError(f"class_weights: {name}: {weight:g} is not above 0")
        elif self.class_weights not in ("none", "balanced"):
            raise ValueError(f"class_weights = {self.class_weights!r} is neither none, balanced, nor a weight per name")
        if self.bounds and not scores:
            raise ValueError(f"bounds is for kind = regression and similarity, not {self.kind}; remove it")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds = {[*self.bounds]}: give the lowest and then the highest score")


TaskEntry = Annotated[
    Annotated[str, Tag(TAGS[0])] | Annotated[OwnTaskConfig, Tag(TAGS[1])],
    Discriminator(lambda entry: TAGS[0 if isinstance(entry, str) else 1]),
]
"""A GLUE task's name, or a task of one's own."""


def task_name(entry: TaskEntry) -> str:
    """The name of a task."""
    return entry if isinstance(entry, str) else entry.name


def with_paths(entry: TaskEntry, path: Callable[[str], str]) -> TaskEntry:
    """`entry` with `path(value)` where a key holds a path: its files, or the dataset; a name comes back as it is."""
    if isinstance(entry, str):
        return entry
    keys = ("dataset",) if entry.dataset else ("train", "dev")
    return entry.model_copy(update={key: path(getattr(entry, key)) for key in keys})
