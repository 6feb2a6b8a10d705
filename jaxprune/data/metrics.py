"""GLUE's metrics, computed by scikit-learn and scipy on the host, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxprune.data.glue_tasks import Task, task
from jaxprune.errors import UserError


def score(name: Task | str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task (fractions in [0, 1], correlations in [-1, 1]), and two figures to read them by.

    `predictions` are logits (N, C) or classes (N,); for regression scores (N, 1) or (N,). `labels` are (N,).
    `constant_predictions` is True if one class (or one score) is all the model says: correlations are then 0, where
    the formulas divide 0 by 0, and never NaN. `majority_accuracy` (classes only) is the score of that habit: the share
    of the commonest label. Errors: UserError for empty input, shapes that differ, labels or classes outside the task's
    set (-1 included), and predictions that are not finite.
    """
    row = task(name) if isinstance(name, str) else name
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if not labels.size or labels.ndim != 1:
        raise UserError(f"{row.name}: labels have shape {labels.shape}, expected (N,) with N above 0")
    if predictions.ndim not in (1, 2) or len(predictions) != len(labels):
        raise UserError(f"{row.name}: predictions have shape {predictions.shape} for {len(labels)} labels")
    if not np.isfinite(predictions).all():
        raise UserError(f"{row.name}: {int((~np.isfinite(predictions)).sum())} predictions are not finite")
    if predictions.ndim == 2 and predictions.shape[1] != row.num_labels:
        raise UserError(f"{row.name}: predictions have width {predictions.shape[1]}, the task has {row.num_labels}")
    if row.regression:
        predictions, labels = predictions.reshape(-1).astype(np.float64), labels.astype(np.float64)
        if not np.isfinite(labels).all():
            raise UserError(f"{row.name}: {int((~np.isfinite(labels)).sum())} labels are not finite")
    else:
        if predictions.ndim == 2:
            predictions = predictions.argmax(axis=1)
        for noun, values in (("label", labels), ("prediction", predictions)):
            wrong = (values < 0) | (values >= row.num_labels) | (values != np.floor(values))
            if wrong.any():
                at = int(wrong.argmax())
                raise UserError(
                    f"{row.name}: {noun} {values[at]} of example {at} is outside 0 ... {row.num_labels - 1}; "
                    "a test set without labels (-1) cannot be scored"
                )
        predictions, labels = predictions.astype(np.int64), labels.astype(np.int64)
    result = {metric: METRICS[metric](predictions, labels) for metric in row.metrics}
    result["constant_predictions"] = _constant(predictions)
    if not row.regression:
        result["majority_accuracy"] = majority_accuracy(labels)
    return result


def majority_accuracy(labels: np.ndarray) -> float:
    """Accuracy of always answering the commonest class: its share of the labels (N,)."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of right classes; (N,) each."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 against class 0, 0 if no 1 is predicted or none is there; (N,) each."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))  # pyright: ignore[reportArgumentType]


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


def _correlation(correlate: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    return 0.0 if _constant(predictions) or _constant(labels) else float(correlate(predictions, labels).statistic)


def _constant(values: np.ndarray) -> bool:
    """One value only, up to float64 rounding (below it a correlation is noise)."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Name -> f(predictions, labels)."""
