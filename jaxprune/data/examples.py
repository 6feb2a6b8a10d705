"""Examples of a task: N texts, or pairs of texts, with their labels, and what each counts for in training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxprune.data.permutation import shuffled
from jaxprune.data.tasks import Task


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts and labels of one split, in file order."""

    task: Task
    source: str
    """File, or hub name, config, split and revision."""
    first: Sequence[str]
    """N texts."""
    second: Sequence[str] | None
    """N texts, or None for a task on single texts."""
    labels: np.ndarray
    """(N,) int32 class numbers; (N,) float32 scores, in [0, 1] for similarity; (N, C) float32 of 0 and 1 with several
    labels per text."""
    skipped: int = 0
    """Malformed rows left out (QQP only)."""

    def __len__(self) -> int:
        return len(self.first)


def take(examples: Examples, rows: np.ndarray) -> Examples:
    """The examples at `rows`, in that order."""
    second = examples.second
    return dataclasses.replace(
        examples,
        first=[examples.first[i] for i in rows],
        second=None if second is None else [second[i] for i in rows],
        labels=examples.labels[rows],
    )


def subset(examples: Examples, count: int, seed: int) -> Examples:
    """The first `count` of the examples after a shuffle by `seed`; all, in file order, if `count` is 0 or too large."""
    if count <= 0 or count >= len(examples):
        return examples
    return take(examples, shuffled(len(examples), seed, 2**32)[:count])


def example_weights(examples: Examples) -> np.ndarray:
    """(N,) float32: what each example counts for in training, by its class; all 1 for a task without class weights.

    `balanced` counts the labels of these examples (scikit-learn's n / (classes x examples of the class)). Only ratios
    matter to a weighted mean: the smallest weight is 1, so that no batch with an example in it sums to less than 1.
    """
    setting = examples.task.class_weights
    if setting == "none":
        return np.ones(len(examples), np.float32)
    from sklearn.utils.class_weight import compute_sample_weight

    of_class = "balanced" if isinstance(setting, str) else dict(enumerate(setting))
    weights = compute_sample_weight(of_class, examples.labels)
    return (weights / weights.min()).astype(np.float32)
