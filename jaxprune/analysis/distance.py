"""How much two sets of masks differ: Hamming (the paper's, Fig 3), overlap of the kept sets, and against chance."""

import numpy as np

from jaxprune.analysis.leaves import Leaves, pair

ALL = "all"


def distance(a: Leaves, b: Leaves) -> list[dict[str, object]]:
    """A row per matrix and a last one, path "all", over all weights.

    size; sparsity_a, sparsity_b (fractions); hamming: fraction of the weights that one mask keeps and the other prunes;
    iou: kept by both / kept by either (1 if neither keeps any); chance: the hamming of independent masks of the same
    sparsities, 2 s (1 - s) when they agree; ratio: hamming / chance (NaN when chance is 0).
    """
    rows: list[dict[str, object]] = []
    sums, chances = np.zeros(5, np.int64), 0.0
    for path in pair(a, b):
        x, y = np.asarray(a[path], bool), np.asarray(b[path], bool)
        counts = np.array([x.size, *(int(np.count_nonzero(m)) for m in (x, y, x & y, x | y))], np.int64)
        chance = _chance(counts)
        rows.append(_row(path, counts, chance))
        sums, chances = sums + counts, chances + chance * x.size
    return [*rows, _row(ALL, sums, chances / max(int(sums[0]), 1))]


def _chance(counts: np.ndarray) -> float:
    size, kept_a, kept_b, _, _ = map(int, counts)
    return (kept_a * (size - kept_b) + kept_b * (size - kept_a)) / size**2 if size else 0.0


def _row(path: str, counts: np.ndarray, chance: float) -> dict[str, object]:
    size, kept_a, kept_b, both, either = map(int, counts)
    hamming = (either - both) / max(size, 1)
    return {
        "path": path,
        "size": size,
        "sparsity_a": 1 - kept_a / max(size, 1),
        "sparsity_b": 1 - kept_b / max(size, 1),
        "hamming": hamming,
        "iou": both / either if either else 1.0,
        "chance": chance,
        "ratio": hamming / chance if chance else float("nan"),
    }
