"""A part of a product of values in which every two values of two axes meet: what most faults of combinations take."""

import itertools
import os
import random
from collections.abc import Mapping, Sequence

SEED = int(os.environ.get("JAXPRUNE_SEED", "0"))
"""Draws the part of a product that is run; another seed, another part."""


def drawn(product: Mapping[str, Sequence[str]], apart: Sequence[set[str]]) -> list[tuple[str, ...]]:
    """Rows, a value of each axis; every two values meet but those of `apart`, which do not go together."""
    rows = [row for row in itertools.product(*product.values()) if not any(two <= {*row} for two in apart)]
    random.Random(SEED).shuffle(rows)
    missing, part = set().union(*map(pairs, rows)), []
    while missing:
        part.append(max(rows, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(part[-1])
    return part


def pairs(row: Sequence[str]) -> set:
    """Every two values of a row, each with the axis that it is of."""
    return {*itertools.combinations(enumerate(row), 2)}
