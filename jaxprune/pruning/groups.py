"""Groups: the sets of weights over which one threshold holds."""

import math
import zlib
from collections.abc import Sequence

from jaxprune.errors import UserError
from jaxprune.pruning.interface import Group, Groups, Scope, Slot, Structure
from jaxprune.pruning.structures import tile_of


def _global(path: str, shape: tuple[int, ...]) -> tuple[str, int | None, int]:
    """One group for the whole tree."""
    return "", None, 1


def _matrix(path: str, shape: tuple[int, ...]) -> tuple[str, int | None, int]:
    """One group per leaf: the paper's "matrix-local"."""
    return "/" + path, None, 1


SCOPES: dict[str, Scope] = {"global": _global, "matrix": _matrix}


def group(
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    regexes: Sequence[str | None],
    scope: Scope,
    structure: Structure,
) -> Groups:
    """The groups of leaves of the given paths and shapes, apart for every regex of amounts (None = left alone).

    Leaves whose tiles are chosen among m are groups of their own, of size m.

    Raises:
      UserError: a scope that names no leaf, parts or tiles that do not divide a leaf.
    """
    named = [scope(path, shape) for path, shape in zip(paths, shapes, strict=True)]
    if paths and not any(named):
        name, few = getattr(scope, "__name__", scope), ", ".join(paths[:3])
        raise UserError(f"scope = {name} names none of {len(paths)} prunable leaves ({few}, ...); use another scope")
    firsts: dict[tuple, int] = {}
    spans: dict[tuple, int] = {}
    groups: list[Group] = []
    slots: list[Slot | None] = []
    for path, shape, regex, scoped in zip(paths, shapes, regexes, named, strict=True):
        if regex is None:
            slots.append(None)
            continue
        tile = tile_of(structure, path, shape)
        tiles = [n // t for n, t in zip(shape, tile.together)]
        name, axis, parts = scoped if scoped and not tile.among else ("/" + path, None, 1)
        if axis is not None and (not 0 <= axis < len(shape) or parts < 1 or tiles[axis] % parts):
            raise UserError(f"scope: {parts} parts do not divide axis {axis} of {path}, a leaf of {tuple(tiles)} tiles")
        key = (regex, name, tile.among is not None, parts)
        if key not in firsts:
            firsts[key], spans[key] = len(groups), 0
            groups += [Group(name, regex, 0, tile.least, tile.among is not None)] * parts
        slots.append(Slot(tile, firsts[key], axis, parts, spans[key], zlib.crc32((regex + name).encode())))
        spans[key] += math.prod(tiles)
        for i in range(firsts[key], firsts[key] + parts):
            size = tile.among[1] if tile.among else groups[i].size + math.prod(tiles) // parts
            groups[i] = groups[i]._replace(size=size)
    return Groups(tuple(slots), tuple(groups), max(spans.values(), default=0))
