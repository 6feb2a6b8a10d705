"""How much two sets of masks differ: Hamming (the paper's, Fig 3), overlap of the kept sets, and against chance."""

import numpy as np

from jaxprune.analysis.paths import Leaves, common_paths

ALL = "all"


def mask_distance(a: Leaves, b: Leaves) -> list[dict[str, object]]:
    """A row per matrix and a last one, path "all", over all weights.

    size; sparsity_a, sparsity_b (fractions); hamming: fraction of the weights that one mask keeps and the other prunes;
    iou: kept by both / kept by either (1 if neither keeps any); chance: the hamming of independent masks of the same
    sparsities, 2 s (1 - s) when they agree; ratio: hamming / chance (NaN when chance is 0); regrown, newly_pruned:
    counts of the weights that b alone keeps and that a alone keeps.
    """
    rows, sums, chances = [], np.zeros(4, np.int64), 0.0
    for path in common_paths(a, b):
        x, y = (np.asarray(side[path], bool) for side in (a, b))
        counts = [x.size, *(int(np.count_nonzero(mask)) for mask in (x, y, x & y))]
        size, kept_a, kept_b, _ = counts
        chance = (kept_a * (size - kept_b) + kept_b * (size - kept_a)) / max(size, 1) ** 2
        rows.append(_row(path, counts, chance))
        sums, chances = sums + counts, chances + chance * size
    return [*rows, _row(ALL, sums.tolist(), chances / max(int(sums[0]), 1))]


def _row(path: str, counts: list[int], chance: float) -> dict[str, object]:
    size, kept_a, kept_b, both = counts
    either = kept_a + kept_b - both
    hamming = (either - both) / max(size, 1)
    return {
        "path": path,
        "size": size,
        "sparsity_a": (size - kept_a) / max(size, 1),
        "sparsity_b": (size - kept_b) / max(size, 1),
        "hamming": hamming,
        "iou": both / either if either else 1.0,
        "chance": chance,
        "ratio": hamming / chance if chance else float("nan"),
        "regrown": kept_b - both,
        "newly_pruned": kept_a - both,
    }
