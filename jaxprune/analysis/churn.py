"""What comes back and what goes between consecutive soft masks."""

import itertools
from collections.abc import Iterable

import numpy as np

from jaxprune.analysis.leaves import Leaves, pair


def churn(steps: Iterable[tuple[int, Leaves]]) -> list[dict[str, float]]:
    """A row per mask after the first: step, size, kept, regrown and newly_pruned (counts over all matrices).

    regrown: pruned before, kept now; always 0 for hard masks.
    """
    rows = []
    for (_, before), (step, now) in itertools.pairwise(steps):
        row = {"step": step, "size": 0, "kept": 0, "regrown": 0, "newly_pruned": 0}
        for path in pair(before, now, ("the mask before", "the mask now")):
            old, new = np.asarray(before[path], bool), np.asarray(now[path], bool)
            row["size"] += new.size
            row["kept"] += int(np.count_nonzero(new))
            row["regrown"] += int(np.count_nonzero(new & ~old))
            row["newly_pruned"] += int(np.count_nonzero(old & ~new))
        rows.append(row)
    return rows
