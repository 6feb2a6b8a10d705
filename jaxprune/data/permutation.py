"""Orders of examples that are pure functions of a key: one of any size without memory, and one of a small set."""

import functools

import numpy as np

from jaxprune.data.random_bits import mix, random_bits

_ROUNDS = 6


@functools.lru_cache(64)
def _round_keys(key: tuple[int, ...]) -> list[np.ndarray]:
    return [random_bits(*key, r) for r in range(_ROUNDS)]


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Values at `index` of the permutation of range(size) that `key` selects.

    A Feistel network over the smallest even number of bits that holds `size`, walked until the value falls inside
    (Black & Rogaway 2002). index: int64 (B,) in [0, size). Returns int64 (B,), a bijection.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    value = np.atleast_1d(index).astype(np.uint64)
    outside = np.arange(value.size)
    while outside.size:
        left, right = value[outside] >> half, value[outside] & low
        for round_key in _round_keys(key):
            left, right = right, left ^ (mix(right ^ round_key) & low)
        value[outside] = (left << half) | right
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: a permutation that depends on (count, seed, epoch) alone, the same under every numpy version."""
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
