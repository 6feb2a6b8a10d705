"""Order of the examples: a pseudo-random permutation of any size that needs no memory."""

import functools

import numpy as np

from jaxprune.data.bits import mix, random_bits

_ROUNDS = 6


@functools.lru_cache(64)
def _keys(key: tuple[int, ...]) -> list[np.ndarray]:
    return [random_bits(*key, r) for r in range(_ROUNDS)]


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Places of `index` under the permutation of range(size) that `key` selects.

    A Feistel network over the smallest even number of bits that holds `size`, walked until the value falls inside
    (Black & Rogaway 2002). index: int64 (B,) in [0, size). Returns int64 (B,), a bijection.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    x = np.atleast_1d(index).astype(np.uint64)
    todo = np.arange(x.size)
    while todo.size:
        left, right = x[todo] >> half, x[todo] & low
        for k in _keys(key):
            left, right = right, left ^ (mix(right ^ k) & low)
        x[todo] = (left << half) | right
        todo = todo[x[todo] >= np.uint64(size)]
    return x.astype(np.int64)
