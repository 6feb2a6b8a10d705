"""How far a model's hidden states are from the dense model's: cosine (Fig 2 right) and linear CKA, layer by layer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Batch = tuple[Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray]
"""(ours, dense, attention_mask): per layer (B, L, D) each, and (B, L) with 1 = token, 0 = padding."""


class Similarity(NamedTuple):
    """Per layer, the embeddings' output first; `tokens` is how many vectors each value is a mean over."""

    cosine: np.ndarray
    cka: np.ndarray
    tokens: int


def similarity(batches: Iterable[Batch]) -> Similarity:
    """Mean cosine of the two vectors of a token, and linear CKA of all (Kornblith et al. 2019), in one pass.

    Every real token counts, [CLS] and [SEP] too, as in the paper. Memory is 3 D^2 floats per layer whatever the length.
    CKA is NaN where one side does not vary. ValueError without a token.
    """
    cosine, moments, tokens = np.zeros(0), [], 0
    for ours, dense, attention in batches:
        keep = np.asarray(attention) != 0
        tokens += int(keep.sum())
        if not moments:
            cosine, moments = np.zeros(len(ours)), [_Moments(x.shape[-1]) for x in ours]
        for layer, (x, y) in enumerate(zip(ours, dense, strict=True)):
            x_ND, y_ND = (np.asarray(side, np.float64)[keep] for side in (x, y))
            norms = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(y_ND, axis=1)
            cosine[layer] += float(np.sum(np.einsum("nd,nd->n", x_ND, y_ND) / np.where(norms > 0, norms, 1.0)))
            moments[layer].add(x_ND, y_ND)
    if not tokens:
        raise ValueError("batches: hold no token, so there is nothing to compare")
    return Similarity(cosine / tokens, np.array([m.cka() for m in moments]), tokens)


class _Moments:
    """Sums that linear CKA needs, of two sets of vectors."""

    def __init__(self, width: int):
        self.n, self.x, self.y = 0, np.zeros(width), np.zeros(width)
        self.xx, self.yy, self.xy = (np.zeros((width, width)) for _ in range(3))

    def add(self, x_ND: np.ndarray, y_ND: np.ndarray) -> None:
        self.n += len(x_ND)
        self.x, self.y = self.x + x_ND.sum(0), self.y + y_ND.sum(0)
        self.xx, self.yy, self.xy = self.xx + x_ND.T @ x_ND, self.yy + y_ND.T @ y_ND, self.xy + x_ND.T @ y_ND

    def cka(self) -> float:
        xx, yy, xy = (
            sums - np.outer(a, b) / self.n
            for sums, a, b in ((self.xx, self.x, self.x), (self.yy, self.y, self.y), (self.xy, self.x, self.y))
        )
        below = float(np.linalg.norm(xx) * np.linalg.norm(yy))
        return float(np.linalg.norm(xy)) ** 2 / below if below > 0 else float("nan")
