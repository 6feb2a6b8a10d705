"""One-shot magnitude pruning, each matrix for itself: its masks, and the sums of |w| and w that it removes (Fig 5)."""

from collections.abc import Sequence

import numpy as np

from jaxprune.analysis.paths import Leaves
from jaxprune.analysis.rank_movement import ranks


def _pruned(size: int, sparsity: float) -> int:
    return size - round((1 - sparsity) * size)


def magnitude_masks(params: Leaves, sparsity: float) -> dict[str, np.ndarray]:
    """{path: bool mask} that keeps the round((1 - s) N) largest |w| of each matrix, of equal ones the later."""
    return {path: (ranks(w) >= _pruned(w.size, sparsity)).reshape(w.shape) for path, w in params.items()}


def removed_magnitude(params: Leaves, sparsities: Sequence[float]) -> list[dict[str, float]]:
    """A row per sparsity: abs_sum, signed_sum (sums of |w| and w over what goes), abs_share (abs_sum / sum of all |w|).

    abs_share is NaN where all weights are 0.
    """
    sums = np.zeros((len(sparsities), 2))
    for weights in params.values():
        values = weights.reshape(-1).astype(np.float64)
        values = values[np.argsort(np.abs(values), kind="stable")]
        cuts = [_pruned(values.size, s) for s in sparsities]
        for column, cumulative in enumerate(map(np.cumsum, (np.abs(values), values))):
            sums[:, column] += [cumulative[cut - 1] if cut else 0.0 for cut in cuts]
    everything = sum(float(np.abs(weights.astype(np.float64)).sum()) for weights in params.values())
    return [
        {"sparsity": float(s), "abs_sum": a, "signed_sum": b, "abs_share": a / everything if everything else np.nan}
        for s, (a, b) in zip(sparsities, sums.tolist(), strict=True)
    ]
