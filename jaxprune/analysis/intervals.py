"""Means of a few seeds with their 95 % intervals, and the difference of two settings over several tasks."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as students_t

Frame = Any
"""A pandas.DataFrame; its indexing has too many forms for a type checker."""
Cells = Mapping[tuple[Any, str], Sequence[float]]
"""(setting, task) -> the values of its seeds."""


class Estimate(NamedTuple):
    """A mean over n values, and half of its 95 % interval: NaN where there are no replicates."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def t975(dof: float) -> float:
    """The 97.5 % quantile of Student's t; NaN when dof <= 0."""
    return float(students_t.ppf(0.975, dof)) if dof > 0 else math.nan


def estimate(values: Sequence[float]) -> Estimate:
    """Mean +- t(n - 1) s / sqrt(n); mean and half are NaN without values. Values that are not finite are left out."""
    kept = np.asarray([v for v in values if v is not None and math.isfinite(v)], float)
    n = len(kept)
    half = t975(n - 1) * float(kept.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(kept.mean()) if n else math.nan, half, n)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates; its interval adds their halves in quadrature, NaN if one has none; n is the
    least of theirs."""
    if not estimates:
        return Estimate(math.nan, math.nan, 0)
    count = len(estimates)
    half = math.sqrt(math.fsum(e.half**2 for e in estimates)) / count
    return Estimate(math.fsum(e.mean for e in estimates) / count, half, min(e.n for e in estimates))


def seed_values(rows: Frame, column: str, setting: Sequence[str]) -> dict[tuple[Any, str], list[float]]:
    """{(setting, task): finite values of a column}, each task by the first of its metrics, in the order of the rows.

    A setting is the tuple of what the columns `setting` hold, or the plain value of a single one.
    """
    if column not in rows:
        return {}
    rows = rows[rows["metric"] == rows.groupby("task")["metric"].transform("first")].dropna(subset=column)
    groups = rows.groupby([*setting, "task"], sort=False)[column]
    cells = {(key[:-1] if len(setting) > 1 else key[0], str(key[-1])): values.tolist() for key, values in groups}
    return {cell: kept for cell, values in cells.items() if (kept := [float(v) for v in values if math.isfinite(v)])}


def pooled_variance(cells: Cells, task: str) -> tuple[float, int]:
    """Variance within the cells of a task, pooled over all settings, and its degrees of freedom; NaN and 0 if none."""
    groups = [values for (_, name), values in cells.items() if name == task]
    dof = sum(len(values) - 1 for values in groups)
    return (sum(float(np.var(v)) * len(v) for v in groups) / dof if dof else math.nan), dof


def difference(cells: Cells, ours: Hashable, other: Hashable, tasks: Sequence[str]) -> Estimate | None:
    """(ours - other), mean over those `tasks` that have both, n of them; None if none has.

    Its interval: per task the pooled variance times (1/n + 1/m); Student's t with Welch-Satterthwaite degrees of
    freedom over the tasks. NaN if a task has no replicate in any setting.
    """
    both = [task for task in tasks if (ours, task) in cells and (other, task) in cells]
    if not both:
        return None
    mean = float(np.mean([np.mean(cells[ours, task]) - np.mean(cells[other, task]) for task in both]))
    parts = []
    for task in both:
        variance, dof = pooled_variance(cells, task)
        if not dof:
            return Estimate(mean, math.nan, len(both))
        parts.append((variance * (1 / len(cells[other, task]) + 1 / len(cells[ours, task])), dof))
    total = sum(part for part, _ in parts)
    if total == 0:
        return Estimate(mean, 0.0, len(both))
    dof = total**2 / sum(part**2 / dof for part, dof in parts)
    return Estimate(mean, t975(dof) * math.sqrt(total) / len(both), len(both))
