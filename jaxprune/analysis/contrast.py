"""The difference of two settings over several tasks, with the noise that the seeds leave."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.statistics import t975

Cells = Mapping[tuple[Any, str], Sequence[float]]
"""(setting, task) -> the values of its seeds."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean over tasks of (one setting - the other)."""

    change: float
    noise: float
    """Half of the 95 % interval of `change`; NaN with a single seed."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.change - self.noise

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.change + self.noise


def pooled(cells: Cells, task: str) -> tuple[float, int]:
    """Variance within the cells of a task, pooled over all settings, and its degrees of freedom; NaN and 0 if none."""
    groups = [values for (_, name), values in cells.items() if name == task]
    dof = sum(len(values) - 1 for values in groups)
    return (sum(float(np.var(v)) * len(v) for v in groups) / dof if dof else math.nan), dof


def contrast(cells: Cells, ours: Hashable, other: Hashable, tasks: Sequence[str]) -> Difference | None:
    """(ours - other), mean over those `tasks` that have both; None if none has.

    Noise: per task the pooled variance times (1/n + 1/m); Student's t with Welch-Satterthwaite degrees of freedom over
    the tasks. NaN if a task has no replicate in any setting.
    """
    both = [task for task in tasks if (ours, task) in cells and (other, task) in cells]
    if not both:
        return None
    change = float(np.mean([np.mean(cells[ours, task]) - np.mean(cells[other, task]) for task in both]))
    parts = []
    for task in both:
        variance, dof = pooled(cells, task)
        if not dof:
            return Difference(change, math.nan)
        parts.append((variance * (1 / len(cells[other, task]) + 1 / len(cells[ours, task])), dof))
    total = sum(part for part, _ in parts)
    if total == 0:
        return Difference(change, 0.0)
    dof = total**2 / sum(part**2 / dof for part, dof in parts)
    return Difference(change, t975(dof) * math.sqrt(total) / len(both))
