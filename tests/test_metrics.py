"""The metrics of tasks against figures worked out by hand and against the formulas written out here."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax

from jaxprune.data import metrics
from jaxprune.data.metrics import METRICS, check_metrics, score
from jaxprune.data.tasks import HEADS, TASKS, Kind, Task
from jaxprune.errors import UserError

# 10 examples: true positives 3, false positives 1, false negatives 2, true negatives 4.
LABELS = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
GUESSES = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


def logits(classes: np.ndarray, width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[classes] * 3 - 1


def test_by_hand() -> None:
    assert metrics.accuracy(GUESSES, LABELS) == 0.7
    assert metrics.f1(GUESSES, LABELS) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metrics.matthews(GUESSES, LABELS) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 5.0])
    assert metrics.pearson(x, y) == pytest.approx(5.5 / math.sqrt(5 * 8.75))
    assert metrics.spearman(x, y) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics.spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(math.sqrt(3) / 2)


def test_by_independent_formulas() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    hot_y, hot_p = np.eye(3)[y], np.eye(3)[p]  # multi-class form: covariance of the one-hot rows, over both spreads
    covariance = ((hot_y - hot_y.mean(0)) * (hot_p - hot_p.mean(0))).sum()
    spread = ((hot_y - hot_y.mean(0)) ** 2).sum() * ((hot_p - hot_p.mean(0)) ** 2).sum()
    assert metrics.matthews(p, y) == pytest.approx(covariance / math.sqrt(spread))
    a, b = rng.normal(size=300), rng.normal(size=300)
    b += a
    assert metrics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    rank_a, rank_b = (np.argsort(np.argsort(v)) for v in (a, b))
    assert metrics.spearman(a, b) == pytest.approx(np.corrcoef(rank_a, rank_b)[0, 1])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_scores(name: str) -> None:
    task = TASKS[name]
    rng = np.random.default_rng(1)
    if task.regression:
        labels = rng.uniform(0, 5, 50).astype(np.float32)
        best = score(name, labels[:, None], labels)
    else:
        labels = rng.integers(0, task.num_labels, 50).astype(np.int32)
        best = score(name, logits(labels, task.num_labels), labels)
        assert best["majority_accuracy"] == np.bincount(labels).max() / 50
        assert score(name, labels, labels) == best
    assert set(task.metrics) <= set(METRICS)
    assert best["constant_predictions"] is False
    assert all(best[metric] == pytest.approx(1.0) for metric in task.metrics)


def test_constant_predictions_are_flagged() -> None:
    cola = score("CoLA", logits(np.ones(10, int), 2), LABELS)
    assert cola["matthews"] == 0.0 and cola["accuracy"] == 0.5 and cola["constant_predictions"] is True
    mrpc = score("MRPC", np.zeros(10, int), LABELS)
    assert mrpc["f1"] == 0.0 and mrpc["constant_predictions"] is True
    both = score("CoLA", np.zeros(4, int), np.zeros(4, int))
    assert both["matthews"] == 0.0 and both["accuracy"] == 1.0 and both["majority_accuracy"] == 1.0
    stsb = score("STS-B", np.full((4, 1), 2.5, np.float32), np.array([0.0, 1.0, 2.0, 5.0]))
    assert stsb == {"spearman": 0.0, "pearson": 0.0, "constant_predictions": True}
    rounding = 2.5 + np.array([0.0, 1e-15, -1e-15, 0.0])
    assert score("STS-B", rounding, np.array([0.0, 1.0, 2.0, 5.0]))["constant_predictions"] is True
    same = score("STS-B", np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert same["pearson"] == 0.0 and same["constant_predictions"] is False


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "message"),
    [
        ("CoLA", np.zeros(3, int), np.array([0, 1, -1]), "label -1 of example 2"),
        ("CoLA", np.array([0, 2, 0]), np.zeros(3, int), "prediction 2 of example 1 is outside 0 ... 1"),
        ("CoLA", np.zeros((3, 3)), np.zeros(3, int), "width 3, the task has 2"),
        ("MNLI", np.zeros(2, int), np.zeros(3, int), "shape (2,) for 3 labels"),
        ("MNLI", np.zeros((0, 3)), np.zeros(0, int), "N above 0"),
        ("SST-2", np.array([[0.0, np.nan]]), np.array([0]), "1 predictions are not finite"),
        ("STS-B", np.array([1.0]), np.array([np.nan]), "1 labels are not finite"),
        ("STSB", np.array([1.0]), np.array([1.0]), "did you mean 'STS-B'"),
    ],
)
def test_bad_input(name: str, predictions: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as error:
        score(name, predictions, labels)
    assert message in str(error.value) and "\n" not in str(error.value)


SUITABLE = {  # metric -> the same figure of scikit-learn, by another way than ours
    "balanced_accuracy": lambda logits, labels: sklearn.metrics.balanced_accuracy_score(labels, logits.argmax(1)),
    "weighted_f1": lambda logits, labels: _report(logits, labels)["weighted avg"]["f1-score"],
    "macro_f1": lambda logits, labels: _report(logits, labels)["macro avg"]["f1-score"],
    "micro_f1": lambda logits, labels: float((logits.argmax(1) == labels).mean()),
    "roc_auc": lambda logits, labels: sklearn.metrics.roc_auc_score(
        labels, softmax(logits, 1) if logits.shape[1] > 2 else logits[:, 1] - logits[:, 0], multi_class="ovr"
    ),
}


def _report(logits: np.ndarray, labels: np.ndarray) -> Any:
    return sklearn.metrics.classification_report(labels, logits.argmax(1), output_dict=True)


def own(kind: Kind, metrics: Iterable[str], classes: int = 0) -> Task:
    return Task("own", "", ("a",), "b", tuple(f"c{i}" for i in range(classes)), tuple(metrics), kind=kind)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_single_labels(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 80)
    scores = np.eye(classes)[labels] + rng.normal(size=(80, classes))
    got = score(own("single_label", SUITABLE, classes), scores, labels)
    for name, reference in SUITABLE.items():
        assert got[name] == pytest.approx(reference(scores, labels)), name
    assert METRICS["precision"].of(GUESSES, LABELS) == 3 / 4 and METRICS["recall"].of(GUESSES, LABELS) == 3 / 5


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_per_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (60, 3)).astype(np.float32)
    labels[:, 2] = 0  # a label that no example has: it counts as 0 in the macro mean, and has no curve
    logits = (labels - 0.5 + rng.normal(size=(60, 3))).astype(np.float32)
    names = ("micro_f1", "macro_f1", "subset_accuracy", "roc_auc")
    got, said, true = score(own("multi_label", names, 3), logits, labels), logits > 0, labels > 0
    both, either = (said & true).sum(0), said.sum(0) + true.sum(0)
    assert got["micro_f1"] == pytest.approx(2 * both.sum() / either.sum())
    assert got["macro_f1"] == pytest.approx((2 * both / np.maximum(either, 1)).mean())
    assert got["subset_accuracy"] == (said == true).all(1).mean()
    ranks = [(logits[true[:, c], c][:, None] > logits[~true[:, c], c][None]).mean() for c in range(2)]
    assert got["roc_auc"] == pytest.approx(np.mean(ranks))
    assert got["constant_predictions"] is False and "majority_accuracy" not in got
    assert score(own("multi_label", names, 3), np.ones((60, 3)), labels)["constant_predictions"] is True


def test_scores_by_their_formulas() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=50)
    predictions = labels + rng.normal(size=50)
    names = ("r2", "mean_absolute_error", "mean_squared_error")
    got = score(own("regression", names), predictions[:, None], labels)
    assert got["mean_absolute_error"] == pytest.approx(np.abs(predictions - labels).mean())
    assert got["mean_squared_error"] == pytest.approx(((predictions - labels) ** 2).mean())
    assert got["r2"] == pytest.approx(1 - ((predictions - labels) ** 2).sum() / ((labels - labels.mean()) ** 2).sum())
    assert score(own("regression", names), predictions[:1], labels[:1])["r2"] == 0
    assert {name for name, metric in METRICS.items() if metric.lower_is_better} == {*names[1:]}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_itself_where_it_suits(name: str) -> None:
    metric = METRICS[name]
    for kind in HEADS:
        task = own(kind, [name], 2 if kind in ("single_label", "multi_label") else 0)
        if kind in metric.kinds:
            check_metrics(task)
        else:
            with pytest.raises(UserError, match=f"own: metric '{name}' does not suit kind = {kind}"):
                check_metrics(task)
    if metric.binary:
        with pytest.raises(UserError, match=f"'{name}' does not suit kind = single_label with 3 labels"):
            check_metrics(own("single_label", [name], 3))
    for row in TASKS.values():
        check_metrics(row)
