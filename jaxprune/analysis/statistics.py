"""Mean, 95 % interval and n of a few seeds; a single seed has no interval and says so."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """Of n values: their mean and half of the 95 % t-interval of the mean, NaN when n < 2."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; NaN when n < 2."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval; NaN when n < 2."""
        return self.mean + self.half


def t975(dof: float) -> float:
    """The 97.5 % quantile of Student's t; NaN when dof <= 0."""
    from scipy.stats import t

    return float(t.ppf(0.975, dof)) if dof > 0 else math.nan


def summary(values: Sequence[float]) -> Summary:
    """Mean +- t(n - 1) s / sqrt(n); mean and half are NaN without values. Values that are not finite are left out."""
    kept = np.asarray([v for v in values if v is not None and math.isfinite(v)], float)
    n = len(kept)
    half = t975(n - 1) * float(kept.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Summary(float(kept.mean()) if n else math.nan, half, n)


def mean_of(summaries: Sequence[Summary]) -> Summary:
    """The mean of independent summaries; its interval adds their halves in quadrature, NaN if one has none."""
    if not summaries:
        return Summary(math.nan, math.nan, 0)
    count = len(summaries)
    half = math.sqrt(math.fsum(s.half**2 for s in summaries)) / count
    return Summary(math.fsum(s.mean for s in summaries) / count, half, min(s.n for s in summaries))


def text(value: Summary, *, scale: float = 1.0, digits: int = 1) -> str:
    """`92.1 ± 0.4 (n = 3)`, `92.1 (n = 1, no interval)`, or a dash without values."""
    if value.n == 0:
        return "–"
    mean = f"{scale * value.mean:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    if value.n == 1:
        return f"{mean} (n = 1, no interval)"
    return f"{mean} ± {scale * value.half:.{digits}f} (n = {value.n})"
