"""What one-shot magnitude pruning removes: sums of |w| and of w against sparsity (Fig 5)."""

from collections.abc import Sequence

import numpy as np

from jaxprune.analysis.leaves import Leaves


def removed(params: Leaves, sparsities: Sequence[float]) -> list[dict[str, float]]:
    """A row per sparsity, each matrix pruned for itself: the lowest N - round((1 - s) N) magnitudes of N go.

    abs_sum, signed_sum: sums of |w| and w over what goes; abs_share: abs_sum / the same sum over all weights.
    """
    totals = np.zeros((len(sparsities), 2))
    everything = 0.0
    for weights in params.values():
        values = weights.reshape(-1).astype(np.float64)
        values = values[np.argsort(np.abs(values), kind="stable")]
        size = values.size
        cuts = [size - round((1 - s) * size) for s in sparsities]
        for column, sums in enumerate((np.cumsum(np.abs(values)), np.cumsum(values))):
            totals[:, column] += [sums[cut - 1] if cut else 0.0 for cut in cuts]
        everything += float(np.abs(values).sum())
    return [
        {
            "sparsity": float(s),
            "abs_sum": float(row[0]),
            "signed_sum": float(row[1]),
            "abs_share": float(row[0]) / everything if everything else float("nan"),
        }
        for s, row in zip(sparsities, totals, strict=True)
    ]


def cut(params: Leaves, sparsity: float) -> dict[str, np.ndarray]:
    """Masks of one-shot magnitude pruning: per matrix the round((1 - s) N) largest |w| are kept, ties by place."""
    masks = {}
    for path, weights in params.items():
        order = np.argsort(np.abs(weights).reshape(-1), kind="stable")
        masks[path] = np.zeros(order.size, bool)
        masks[path][order[order.size - round((1 - sparsity) * order.size) :]] = True
        masks[path] = masks[path].reshape(weights.shape)
    return masks
