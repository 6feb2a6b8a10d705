"""Does the pre-training loss predict the score of a task? Least squares, its interval and r (Fig 2 left)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxprune.analysis.intervals import t975
from jaxprune.errors import UserError


class Line(NamedTuple):
    """score = intercept + slope * loss, over n points."""

    slope: float
    """Score per nat of pre-training loss."""
    half: float
    """Half of the 95 % interval of the slope, from the scatter about the line; NaN when n < 3."""
    intercept: float
    r: float
    """Pearson's; NaN when either side is constant."""
    n: int
    endpoint: float
    """(score at the highest loss - score at the lowest) / (difference of the losses): what the authors' script
    prints."""


def fit_line(losses: Sequence[float], scores: Sequence[float]) -> Line:
    """Ordinary least squares; all NaN when fewer than two losses differ. UserError for unequal lengths."""
    x, y = np.asarray(losses, float), np.asarray(scores, float)
    if x.shape != y.shape:
        raise UserError(f"losses has {x.size} values, scores {y.size}; give one score per loss")
    if len({*x}) < 2:
        return Line(math.nan, math.nan, math.nan, math.nan, len(x), math.nan)
    constant = np.ptp(y) <= 1e-12 * np.abs(y).max()  # means of the same scores differ in their last bits
    line: Any = stats.linregress(x, np.full_like(y, y[0]) if constant else y)
    low, high = int(x.argmin()), int(x.argmax())
    return Line(
        slope=float(line.slope),
        half=t975(len(x) - 2) * float(line.stderr),
        intercept=float(line.intercept),
        r=math.nan if constant else float(line.rvalue),
        n=len(x),
        endpoint=float((y[high] - y[low]) / (x[high] - x[low])),
    )


def lack_of_fit(losses: Sequence[float], scores: Sequence[float], levels: Sequence[float]) -> float:
    """p of the F test that the mean scores of the levels leave the line by chance; NaN below three levels or without
    replicates.

    levels: which of the points are replicates of one another, such as the sparsity of each.
    """
    x, y = np.asarray(losses, float), np.asarray(scores, float)
    names, level = np.unique(levels, return_inverse=True)
    spare = len(x) - len(names)
    if len(names) < 3 or spare < 1 or len({*x}) < 2:
        return math.nan
    means = np.bincount(level, y) / np.bincount(level)
    within = float(((y - means[level]) ** 2).sum())
    about_line = float(((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum())
    lack = (about_line - within) / (len(names) - 2)
    return float(stats.f.sf(lack / (within / spare), len(names) - 2, spare)) if within > 0 else math.nan
