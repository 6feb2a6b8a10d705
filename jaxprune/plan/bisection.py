"""The largest size that fits, by doubling and bisection."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int, *, limit: int = 1 << 16) -> int:
    """The largest n that fits, to a sixteenth (n itself up to 16), searched from `start`; 0 if not even 1 does.

    Whatever is smaller than a size that fits must fit.
    """
    low, high = (start, 0) if fits(start) else (0, start)
    while not high and low < limit:
        low, high = (2 * low, 0) if fits(2 * low) else (low, 2 * low)
    while high and low == 0 and high > 1:
        half = high // 2
        low, high = (half, high) if fits(half) else (0, half)
    while high and low and high - low > max(low // 16, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
