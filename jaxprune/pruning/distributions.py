"""Distributions: how one sparsity is shared out among the groups of a scope."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor, prod

Distribution = Callable[[tuple[int, ...]], Fraction]
"""Shape of a leaf -> how densely it is kept beside others: densities are proportional to it, and at most 1."""


def uniform(shape: tuple[int, ...]) -> Fraction:
    """The same share everywhere."""
    return Fraction(1)


def erk(shape: tuple[int, ...]) -> Fraction:
    """(n_1 + n_2 + ...) / (n_1 n_2 ...) of the axes: small and narrow matrices are kept more densely.

    Erdos-Renyi-Kernel (Evci et al. 2020, "Rigging the Lottery", equation 3).
    """
    return Fraction(sum(shape), prod(shape))


DISTRIBUTIONS: dict[str, Distribution] = {"uniform": uniform, "erk": erk}


def shared(total: int, weights: Sequence[Fraction], sizes: Sequence[int]) -> list[int]:
    """Integers that add up to `total` and are near one multiple of the weights, each at most its size.

    They are Webster's apportionment: the j-th unit of a group comes at the multiple (j - 1/2) / weight, and the first
    `total` units of all groups are given, the earlier group's first where two come at once. So no integer grows when
    the total falls: hard masks stay within their amounts.
    """
    whole = (Fraction(size) / w for size, w in zip(sizes, weights) if size)
    low, high = Fraction(0), max(whole, default=Fraction(0)) + 1

    def given(multiple: Fraction) -> list[int]:
        return [min(size, floor(multiple * w + Fraction(1, 2))) for size, w in zip(sizes, weights)]

    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(given(middle)) <= total else (low, middle)
    counts = given(low)
    while sum(counts) < total:
        open_groups = [i for i, (count, size) in enumerate(zip(counts, sizes)) if count < size]
        counts[min(open_groups, key=lambda i: (2 * counts[i] + 1) / weights[i])] += 1
    return counts
