"""How far a model's hidden states are from the dense model's: cosine (Fig 2 right) and linear CKA, layer by layer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.errors import UserError

Batch = tuple[Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray]
"""(ours, dense, attention_mask): per layer (B, L, D) each, and (B, L) with 1 = token, 0 = padding."""


class Similarity(NamedTuple):
    """Per layer, the embeddings' output first; `tokens` is how many vectors each value is a mean over."""

    cosine: np.ndarray
    cka: np.ndarray
    tokens: int


def similarity(batches: Iterable[Batch]) -> Similarity:
    """Mean cosine of the two vectors of a token, and linear CKA of all (Kornblith et al. 2019), in one pass.

    Every real token counts, special ones too, as in the paper. Memory is 4 D^2 floats per layer whatever the length.
    CKA is NaN where one side does not vary. UserError without a token.
    """
    cosines, sums, products, tokens = np.zeros(0), np.zeros(0), np.zeros(0), 0
    for ours, dense, attention in batches:
        real, width = np.asarray(attention) != 0, 2 * ours[0].shape[-1]
        if not sums.size:
            cosines, sums, products = (np.zeros((len(ours), *shape)) for shape in ((), (width,), (width, width)))
        tokens += int(real.sum())
        for layer, sides in enumerate(zip(ours, dense, strict=True)):
            x_ND, y_ND = (np.asarray(side, np.float64)[real] for side in sides)
            norms = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(y_ND, axis=1)
            cosines[layer] += np.sum(np.einsum("nd,nd->n", x_ND, y_ND) / np.where(norms > 0, norms, 1.0))
            both_ND = np.concatenate([x_ND, y_ND], axis=1)
            sums[layer] += both_ND.sum(0)
            products[layer] += both_ND.T @ both_ND
    if not tokens:
        raise UserError("batches: hold no token, so there is nothing to compare")
    cka = np.array([_cka(sums[layer], products[layer], tokens) for layer in range(len(sums))])
    return Similarity(cosines / tokens, cka, tokens)


def _cka(sums_D: np.ndarray, products_DD: np.ndarray, tokens: int) -> float:
    """Linear CKA of the first and the second half of the features, from their sums and products."""
    half, centred = len(sums_D) // 2, products_DD - np.outer(sums_D, sums_D) / tokens
    blocks = (centred[:half, :half], centred[half:, half:], centred[:half, half:])
    xx, yy, xy = (float(np.linalg.norm(block)) for block in blocks)
    return xy**2 / (xx * yy) if xx * yy > 0 else float("nan")
