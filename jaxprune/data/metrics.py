"""The metrics of tasks, computed by scikit-learn and scipy on the host, in float64."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxprune.data.tasks import HEADS, Kind, Task, task
from jaxprune.errors import UserError


class Metric(NamedTuple):
    """A measure of predictions, and the tasks it suits."""

    of: Callable[[np.ndarray, np.ndarray], float]
    """`of(predictions, labels)`: classes (N,), decisions of 0 and 1 (N, C), or scores (N,); one of each per label."""
    kinds: tuple[Kind, ...] = tuple(HEADS)
    """The kinds of task it suits."""
    binary: bool = False
    """Only for two classes, of which it measures the second."""
    logits: bool = False
    """Predictions are logits (N, C) instead."""
    lower_is_better: bool = False


def score(name: Task | str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task (fractions in [0, 1], correlations in [-1, 1]), and two figures to read them by.

    `predictions` are logits (N, C), classes (N,) of a single-label task, or scores (N, 1) or (N,); `labels` those of
    `Examples`. `constant_predictions` is True if one class (or one score) is all the model says: correlations are then
    0, where the formulas divide 0 by 0, and never NaN. `majority_accuracy` (single labels) is the score of that habit:
    the share of the commonest label. Errors: UserError for empty input, shapes that differ, labels or classes outside
    the task's set (-1 included), and predictions that are not finite.
    """
    row = task(name) if isinstance(name, str) else name
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    several = row.kind == "multi_label"
    if not labels.size or labels.shape[1:] != ((row.num_labels,) if several else ()):
        wanted = f"(N, {row.num_labels})" if several else "(N,)"
        raise UserError(f"{row.name}: labels have shape {labels.shape}, expected {wanted} with N above 0")
    if predictions.ndim not in ((2,) if several else (1, 2)) or len(predictions) != len(labels):
        raise UserError(f"{row.name}: predictions have shape {predictions.shape} for {len(labels)} labels")
    if not np.isfinite(predictions).all():
        raise UserError(f"{row.name}: {int((~np.isfinite(predictions)).sum())} predictions are not finite")
    if predictions.ndim == 2 and predictions.shape[1] != row.num_labels:
        raise UserError(f"{row.name}: predictions have width {predictions.shape[1]}, the task has {row.num_labels}")
    logits = predictions
    if several:
        predictions, labels = (logits > 0).astype(np.int64), labels.astype(np.int64)
    elif row.regression:
        predictions, labels = logits.reshape(-1).astype(np.float64), labels.astype(np.float64)
        if not np.isfinite(labels).all():
            raise UserError(f"{row.name}: {int((~np.isfinite(labels)).sum())} labels are not finite")
    else:
        predictions = logits.argmax(axis=1) if logits.ndim == 2 else logits
        _check_classes(row, predictions, labels)
        predictions, labels = predictions.astype(np.int64), labels.astype(np.int64)
    metrics = {metric: METRICS[metric] for metric in row.metrics}
    result = {name: metric.of(logits if metric.logits else predictions, labels) for name, metric in metrics.items()}
    result["constant_predictions"] = (
        _constant(predictions) if predictions.ndim == 1 else not np.ptp(predictions, 0).any()
    )
    if row.kind == "single_label":
        result["majority_accuracy"] = majority_accuracy(labels)
    return result


def _check_classes(row: Task, predictions: np.ndarray, labels: np.ndarray) -> None:
    for noun, values in (("label", labels), ("prediction", predictions)):
        wrong = (values < 0) | (values >= row.num_labels) | (values != np.floor(values))
        if wrong.any():
            at = int(wrong.argmax())
            raise UserError(
                f"{row.name}: {noun} {values[at]} of example {at} is outside 0 ... {row.num_labels - 1}; "
                "a test set without labels (-1) cannot be scored"
            )


def check_metrics(row: Task) -> None:
    """UserError for a metric of the task that is unknown, or does not suit its kind or number of classes."""
    suiting = [
        name
        for name, metric in METRICS.items()
        if row.kind in metric.kinds and not (metric.binary and row.num_labels != 2)
    ]
    for name in row.metrics:
        if name in suiting:
            continue
        near = difflib.get_close_matches(name, suiting, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        classes = "" if row.regression else f" with {row.num_labels} labels"
        why = f"does not suit kind = {row.kind}{classes}" if name in METRICS else "is unknown"
        raise UserError(f"{row.name}: metric {name!r} {why}{hint} Those that suit are {', '.join(suiting)}")


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of always answering the commonest class: its share of the labels (N,)."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of right classes; (N,) each."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def averaged(predictions: np.ndarray, labels: np.ndarray, *, measure: str, average: str) -> float:
    """A measure of scikit-learn (`f1_score`, ...) by its `average`, 0 where it would divide by 0.

    `binary`: of class 1 against class 0; `macro`: the plain mean over classes; `weighted`: by their examples; `micro`:
    of all decisions together. (N,) classes or (N, C) decisions each.
    """
    import sklearn.metrics

    return float(getattr(sklearn.metrics, measure)(labels, predictions, average=average, zero_division=0.0))


f1 = partial(averaged, measure="f1_score", average="binary")
"""F1 of class 1 against class 0, 0 if no 1 is predicted or none is there; (N,) each."""


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share found of each; (N,) each."""
    return float(np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)]))


def roc_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of each class against the rest, the mean over classes; 0.5 where none can be measured.

    `logits` are (N, C), labels (N,) or (N, C). A class that all or no examples have is left out.
    """
    from scipy.special import softmax
    from sklearn.metrics import roc_auc_score

    if logits.ndim != 2:
        raise UserError(f"roc_auc needs logits (N, C), not predictions {logits.shape}")
    chances, truth = logits.astype(np.float64), labels
    if labels.ndim == 1:
        chances, truth = softmax(chances, axis=1), labels[:, None] == np.arange(logits.shape[1])
    areas = [roc_auc_score(has, chance) for has, chance in zip(truth.T, chances.T, strict=True) if np.ptp(has * 1)]
    return float(np.mean(areas)) if areas else 0.5


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient, 0 if predictions or labels hold one class only; (N,) each."""
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(predictions) or _constant(labels) else float(matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's r, 0 if predictions or labels are constant; (N,) each."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rho (mean ranks for ties), 0 if predictions or labels are constant; (N,) each."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def r2(predictions: np.ndarray, labels: np.ndarray) -> float:
    """1 - squared error / variance of the labels, 0 for a single example; (N,) each."""
    from sklearn.metrics import r2_score

    return float(r2_score(labels, predictions)) if len(labels) > 1 else 0.0


def mean_absolute_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean of |prediction - label|, in units of the labels; (N,) each."""
    return float(np.mean(np.abs(predictions - labels)))


def mean_squared_error(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean of (prediction - label)^2; (N,) each."""
    return float(np.mean((predictions - labels) ** 2))


def _correlation(correlate: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    return 0.0 if _constant(predictions) or _constant(labels) else float(correlate(predictions, labels).statistic)


def _constant(values: np.ndarray) -> bool:
    """One value only, up to float64 rounding (below it a correlation is noise)."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


_ONE: tuple[Kind, ...] = ("single_label",)
_CLASSES: tuple[Kind, ...] = ("single_label", "multi_label")
_SCORES: tuple[Kind, ...] = ("regression", "similarity")
METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, _ONE),
    "balanced_accuracy": Metric(balanced_accuracy, _ONE),
    "matthews": Metric(matthews, _ONE),
    "f1": Metric(f1, _ONE, binary=True),
    "precision": Metric(partial(averaged, measure="precision_score", average="binary"), _ONE, binary=True),
    "recall": Metric(partial(averaged, measure="recall_score", average="binary"), _ONE, binary=True),
    "macro_f1": Metric(partial(averaged, measure="f1_score", average="macro"), _CLASSES),
    "micro_f1": Metric(partial(averaged, measure="f1_score", average="micro"), _CLASSES),
    "weighted_f1": Metric(partial(averaged, measure="f1_score", average="weighted"), _CLASSES),
    "roc_auc": Metric(roc_auc, _CLASSES, logits=True),
    "subset_accuracy": Metric(accuracy, ("multi_label",)),
    "pearson": Metric(pearson, _SCORES),
    "spearman": Metric(spearman, _SCORES),
    "r2": Metric(r2, _SCORES),
    "mean_absolute_error": Metric(mean_absolute_error, _SCORES, lower_is_better=True),
    "mean_squared_error": Metric(mean_squared_error, _SCORES, lower_is_better=True),
}
"""Name -> metric."""
