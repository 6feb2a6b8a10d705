"""How far weights move in the sort order of their magnitudes (Table 2, Fig 4 right, Fig 6)."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxprune.analysis.leaves import Leaves, pair

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
    """Place of every weight in the ascending order of |w|, (size,) int64; ties in the order of the matrix."""
    order = np.argsort(np.abs(weights).reshape(-1), kind="stable")
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    return places


def movement(before: Leaves, after: Leaves) -> list[Movement]:
    """A row per matrix and a last one, path "all", pooled over all weights as in Table 2."""
    rows = []
    for path in pair(before, after, ("before", "after")):
        moved = np.abs(ranks(after[path]) - ranks(before[path])) / max(before[path].size, 1)
        rows.append(Movement(path, moved.size, float(moved.mean()), float(moved.std())))
    return [*rows, pool(rows)]


def pool(rows: Sequence[Movement]) -> Movement:
    """Mean and standard deviation over the weights of several matrices, from those of each."""
    sizes = np.array([row.size for row in rows], float)
    means, stds = (np.array([getattr(row, name) for row in rows], float) for name in ("mean", "std"))
    total = float(sizes.sum())
    if total == 0:
        return Movement(ALL, 0, math.nan, math.nan)
    mean = float(sizes @ means) / total
    return Movement(ALL, int(total), mean, math.sqrt(max(float(sizes @ (stds**2 + means**2)) / total - mean**2, 0.0)))


def by_rank(before: Leaves, after: Leaves, *, bins: int = 100, by: Literal["before", "after"] = "before") -> np.ndarray:
    """Share of all movement by place in the sort order, lowest magnitudes first; (bins,) floats that sum to 1.

    The place is the one before, as the axis of Fig 6 says; by = "after" is what the authors' script drew (T13).
    All zeros when nothing moved.
    """
    shares = np.zeros(bins)
    for path in pair(before, after, ("before", "after")):
        start, end = ranks(before[path]), ranks(after[path])
        place = (start if by == "before" else end) * bins // max(start.size, 1)
        shares += np.bincount(place, np.abs(end - start) / max(start.size, 1), minlength=bins)
    total = float(shares.sum())
    return shares / total if total else shares
