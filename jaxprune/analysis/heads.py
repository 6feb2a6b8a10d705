"""Sparsity of every attention head (Fig 4 left): its columns of query, key and value and its rows of the output."""

import re

import numpy as np

from jaxprune.analysis.leaves import Leaves

_PART = re.compile(r"(?P<layer>.*layer_\d+)/attention/(?P<part>query|key|value|output)/kernel")


def head_sparsity(masks: Leaves, num_heads: int) -> dict[str, np.ndarray]:
    """{`encoder/layer_00`: (num_heads,) fraction pruned of the head's weights in the matrices that are prunable}.

    Head h owns columns [h K, (h + 1) K) of query, key and value and the same rows of the output kernel, K = D / heads:
    4 x 64 x 768 weights each in BERT-Base. ValueError when num_heads does not divide D.
    """
    kept: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for path, mask in masks.items():
        if not (found := _PART.fullmatch(path)):
            continue
        inner = mask if found["part"] == "output" else mask.T  # (heads * K, other side)
        if inner.shape[0] % num_heads:
            raise ValueError(f"{path}: num_heads = {num_heads} does not divide {inner.shape[0]}")
        counts = np.count_nonzero(inner.reshape(num_heads, -1), axis=1)
        kept[found["layer"]] = kept.get(found["layer"], 0) + counts
        sizes[found["layer"]] = sizes.get(found["layer"], 0) + inner.size // num_heads
    return {layer: 1 - counts / sizes[layer] for layer, counts in kept.items()}
