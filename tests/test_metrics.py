"""GLUE's metrics against figures worked out by hand and against the formulas written out here."""

import math

import numpy as np
import pytest

from jaxprune.data import metrics
from jaxprune.data.glue_tasks import TASKS
from jaxprune.data.metrics import METRICS, score
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
