"""Several examples in one row of fixed length, so that nearly no computation goes into padding."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_GRAIN = 16  # row lengths are multiples of it: shapes that matrix units like
_LONGEST = 4  # the longest row tried, in longest examples
_TOKENS = 2048
_SAMPLE = 256  # batches that decide the row length


class Shape(NamedTuple):
    """The one shape of a run's batches."""

    rows: int
    length: int
    """Tokens per row."""
    slots: int
    """Examples per row, at most."""


def pack(lengths: Sequence[int], length: int, slots: int) -> list[list[int]]:
    """Rows of indices into `lengths` (tokens): first fit, longest first; at most `length` tokens and `slots` indices.

    Equal lengths keep their order, so that the rows are a function of the arguments alone.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, left in enumerate(room):
            if lengths[index] <= left and len(rows[row]) < slots:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def shape_of(batches: Sequence[np.ndarray], longest: int, multiple: int = 1) -> Shape:
    """The shape with the fewest tokens into which each of `batches` packs: arrays of lengths, of `longest` at most.

    The number of rows is a multiple of `multiple`; of shapes with as many tokens, that with the shortest rows is taken.
    """
    sizes = [_GRAIN * n for n in range(math.ceil(longest / _GRAIN), _LONGEST * math.ceil(longest / _GRAIN) + 1)]
    sample = batches[:: math.ceil(len(batches) / _SAMPLE)]
    length = min(sizes, key=lambda size: (size * _extent(sample, size, multiple)[0], size))
    rows, slots = _extent(batches, length, multiple)
    return Shape(rows, length, slots)


def shape_for(longest: int, multiple: int = 1) -> Shape:
    """A shape of about `_TOKENS` tokens for examples of `longest` tokens at most, whatever batches they make.

    The number of rows is a multiple of `multiple`.
    """
    length = math.ceil(longest / _GRAIN) * _GRAIN
    rows = max(_TOKENS // length, 1)
    return Shape(math.ceil(rows / multiple) * multiple, length, slots=length // 8)


def _extent(batches: Iterable[np.ndarray], length: int, multiple: int) -> tuple[int, int]:
    """Rows and slots that the batches need."""
    rows = slots = 1
    for batch in batches:
        packed = pack(batch.tolist(), length, length)
        rows, slots = max(rows, len(packed)), max(slots, *map(len, packed))
    return math.ceil(rows / multiple) * multiple, slots
