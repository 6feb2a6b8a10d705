"""How far weights move in the sort order of their magnitudes (Table 2, Fig 4 right, Fig 6)."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import rankdata

from jaxprune.analysis.paths import Leaves, common_paths

ALL = "all"
RANDOM = 1 / 3
"""Mean movement between two independent random orders: the mean distance of two uniform numbers in [0, 1]."""


class Movement(NamedTuple):
    """Of one matrix: abs(rank after - rank before) / size over its weights, as a fraction of all positions."""

    path: str
    size: int
    mean: float
    std: float


def ranks(weights: np.ndarray) -> np.ndarray:
    """Position of every weight in the ascending order of |w|, (size,) integers from 0; ties in the matrix's order."""
    return rankdata(np.abs(weights).reshape(-1), method="ordinal") - 1


def movement(before: Leaves, after: Leaves) -> list[Movement]:
    """A row per matrix and a last one, path "all", pooled over all weights as in Table 2."""
    rows = []
    for path in common_paths(before, after, ("before", "after")):
        moved = np.abs(ranks(after[path]) - ranks(before[path])) / max(before[path].size, 1)
        rows.append(Movement(path, moved.size, float(moved.mean()), float(moved.std())))
    return [*rows, pool(rows)]


def pool(rows: Sequence[Movement]) -> Movement:
    """Mean and standard deviation over the weights of several matrices, from those of each."""
    sizes, means, stds = (np.array([getattr(row, name) for row in rows], float) for name in ("size", "mean", "std"))
    total = float(sizes.sum())
    if total == 0:
        return Movement(ALL, 0, math.nan, math.nan)
    mean = float(sizes @ means) / total
    return Movement(ALL, int(total), mean, math.sqrt(max(float(sizes @ (stds**2 + means**2)) / total - mean**2, 0.0)))


def by_rank(before: Leaves, after: Leaves, *, bins: int = 100, by: Literal["before", "after"] = "before") -> np.ndarray:
    """Share of all movement by position in the sort order, lowest magnitudes first; (bins,) floats that sum to 1.

    The position is the one before, as the axis of Fig 6 says; by = "after" is what the authors' script drew (T13).
    All zeros when nothing moved.
    """
    shares = np.zeros(bins)
    for path in common_paths(before, after, ("before", "after")):
        size, start, end = max(before[path].size, 1), ranks(before[path]), ranks(after[path])
        shares += np.bincount((start if by == "before" else end) * bins // size, np.abs(end - start) / size, bins)
    total = float(shares.sum())
    return shares / total if total else shares
