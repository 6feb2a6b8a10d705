"""Random bits that are a pure function of counters: no state, the same on every host, thread and restart."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: np.ndarray) -> np.ndarray:
    """Scramble uint64 values by a bijection, the finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(*counters: int | np.ndarray) -> np.ndarray:
    """64 random bits for each combination of counters (seed, stream, epoch, example, position, ...).

    Counters are integers in [0, 2**64) or integer arrays, broadcast against each other. Returns uint64 of the
    broadcast shape, at least 1-d.
    """
    bits = np.zeros(1, np.uint64)
    for counter in counters:
        bits = mix(bits + _GOLDEN * (np.atleast_1d(np.asarray(counter)).astype(np.uint64) + np.uint64(1)))
    return bits


def below(bits: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Map random bits to integers in [0, n), n < 2**32 (bias below n / 2**32). int64, shape of `bits`."""
    return (((bits >> np.uint64(32)) * np.asarray(n).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def uniform(bits: np.ndarray) -> np.ndarray:
    """Map random bits to float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
