"""Does the pre-training loss predict the score of a task? Least squares, its interval and r (Fig 2 left)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.analysis.statistics import t975


class Fit(NamedTuple):
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


def fit(losses: Sequence[float], scores: Sequence[float]) -> Fit:
    """Ordinary least squares; all NaN when fewer than two losses differ. ValueError for unequal lengths."""
    x, y = np.asarray(losses, float), np.asarray(scores, float)
    if x.shape != y.shape:
        raise ValueError(f"losses has {x.size} values, scores {y.size}; give one score per loss")
    n, nan = len(x), math.nan
    dx, dy = x - x.mean() if n else x, y - y.mean() if n else y
    if n and np.ptp(y) <= 1e-12 * np.abs(y).max():  # means of the same scores differ in their last bits
        dy = np.zeros(n)
    sxx, syy, sxy = float(dx @ dx), float(dy @ dy), float(dx @ dy)
    if n < 2 or sxx == 0:
        return Fit(nan, nan, nan, nan, n, nan)
    slope = sxy / sxx
    left = max(syy - slope * sxy, 0.0)
    half = t975(n - 2) * math.sqrt(left / (n - 2) / sxx) if n > 2 else nan
    r = sxy / math.sqrt(sxx * syy) if syy > 0 else nan
    low, high = int(x.argmin()), int(x.argmax())
    return Fit(slope, half, float(y.mean() - slope * x.mean()), r, n, float((y[high] - y[low]) / (x[high] - x[low])))
