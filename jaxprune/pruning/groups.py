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


def _output(path: str, shape: tuple[int, ...]) -> tuple[str, int | None, int]:
    """One group per output of a matrix, the last axis of a kernel (in, out): as Wanda and SparseGPT compare weights."""
    return ("/" + path, len(shape) - 1, 0) if len(shape) > 1 else _matrix(path, shape)


SCOPES: dict[str, Scope] = {"global": _global, "matrix": _matrix, "output": _output}


def group(
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    regexes: Sequence[str | None],
    scope: Scope,
    structure: Structure,
) -> Groups:
    """The groups of leaves of the given paths and shapes, apart for every regex of amounts (None = left alone).

    Leaves whose tiles are chosen among m are groups of their own, of size m. Leaves whose tiles are bound count as one
    leaf, whose path is the name that binds them and whose shape is (number of tiles,).

    Raises:
      UserError: a scope or structure that names no leaf, parts or tiles that do not divide a leaf, bound leaves with
        different amounts or numbers of tiles.
    """
    tiles = [
        None if regex is None else tile_of(structure, path, shape)
        for path, shape, regex in zip(paths, shapes, regexes, strict=True)
    ]
    if any(regex is not None for regex in regexes) and not any(tiles):
        raise UserError(f"structure: is one of none of {len(paths)} prunable leaves ({', '.join(paths[:3])}, ...)")
    grids = [
        tuple(n // t for n, t in zip(shape, tile.together)) if tile else shape for shape, tile in zip(shapes, tiles)
    ]
    named = [
        scope(tile.bound, (math.prod(grid),)) if tile and tile.bound else scope(path, shape)
        for path, shape, tile, grid in zip(paths, shapes, tiles, grids, strict=True)
    ]
    if paths and not any(named):
        name, few = getattr(scope, "__name__", scope), ", ".join(paths[:3])
        raise UserError(f"scope = {name} names none of {len(paths)} prunable leaves ({few}, ...); use another scope")
    firsts: dict[tuple, int] = {}
    spans: dict[tuple, int] = {}
    groups: list[Group] = []
    slots: list[Slot | None] = []
    bound: dict[str, tuple[str, str, int, Slot]] = {}
    for path, regex, tile, grid, scoped in zip(paths, regexes, tiles, grids, named, strict=True):
        if regex is None or tile is None:
            slots.append(None)
            continue
        if tile.bound in bound:
            other, amount, size, slot = bound[tile.bound]
            if (amount, size) != (regex, math.prod(grid)):
                what = f"{math.prod(grid)} tiles" if amount == regex else f"the amount of {regex!r}"
                theirs = f"{size}" if amount == regex else f"that of {amount!r}"
                raise UserError(f"structure: {path} has {what}, {other} {theirs}, though both are {tile.bound}")
            slots.append(slot._replace(tile=tile))
            continue
        leaf, grid = (tile.bound, (math.prod(grid),)) if tile.bound else (path, grid)
        name, axis, parts = scoped if scoped and not tile.among else ("/" + leaf, None, 1)
        parts = parts or grid[axis or 0] or 1
        if axis is not None and (not 0 <= axis < len(grid) or parts < 1 or grid[axis] % parts):
            raise UserError(f"scope: {parts} parts do not divide axis {axis} of {leaf}, a leaf of {grid} tiles")
        key = (regex, name, tile.among is not None, parts)
        if key not in firsts:
            firsts[key], spans[key] = len(groups), 0
            groups += [Group(name, regex, 0, tile.least, tile.among is not None)] * parts
        slot = Slot(tile, firsts[key], axis, parts, spans[key], zlib.crc32((regex + name).encode()))
        slots.append(slot)
        if tile.bound:
            bound[tile.bound] = path, regex, math.prod(grid), slot
        spans[key] += math.prod(grid)
        for i in range(firsts[key], firsts[key] + parts):
            size = tile.among[1] if tile.among else groups[i].size + math.prod(grid) // parts
            groups[i] = groups[i]._replace(size=size)
    return Groups(tuple(slots), tuple(groups), max(spans.values(), default=0))
