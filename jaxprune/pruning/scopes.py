"""Scopes: which weights share one threshold."""

import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

_HEADS = re.compile(r"(.*/)?attention/(query|key|value|output)/kernel")
_LAYER = re.compile(r"((.*/)?layer_\d+)(/.*)?")


class Slot(NamedTuple):
    """Where one leaf's weights are counted: in group `first`, or split along `axis` into `parts` groups from `first`.

    `offset` numbers the leaf's elements on from those of the group's earlier leaves; `salt` is a hash of its name.
    """

    first: int
    axis: int | None
    parts: int
    offset: int
    salt: int


class Groups(NamedTuple):
    """One slot per leaf, the number of weights of each group, and the largest element number of any group plus one."""

    slots: tuple[Slot, ...]
    sizes: tuple[int, ...]
    span: int


def path_of(key_path: Sequence) -> str:
    """The path of a leaf as `encoder/layer_00/attention/query/kernel`, from a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def _global(path: str, shape: tuple[int, ...], num_heads: int | None) -> tuple[str, int | None]:
    """One group for the whole tree."""
    return "", None


def _matrix(path: str, shape: tuple[int, ...], num_heads: int | None) -> tuple[str, int | None]:
    """One group per leaf: the paper's "matrix-local"."""
    return "/" + path, None


def _layer(path: str, shape: tuple[int, ...], num_heads: int | None) -> tuple[str, int | None]:
    """Leaves under one `layer_NN` form a group; any other leaf is its own group."""
    match = _LAYER.fullmatch(path)
    return (match[1] if match else "/" + path), None


def _head(path: str, shape: tuple[int, ...], num_heads: int | None) -> tuple[str, int | None]:
    """Q, K, V columns and O rows of one attention head form a group; any other leaf is its own group."""
    match = _HEADS.fullmatch(path)
    if not match:
        return "/" + path, None
    if num_heads is None:
        raise ValueError("scope = 'head' needs num_heads, the number of attention heads per layer")
    axis = 0 if match[2] == "output" else 1
    if len(shape) != 2 or num_heads < 1 or shape[axis] % num_heads:
        raise ValueError(f"num_heads = {num_heads} does not divide axis {axis} of {path}, a leaf of shape {shape}")
    return (match[1] or "") + "attention", axis


def group(paths: Sequence[str], shapes: Sequence[tuple[int, ...]], scope: str, num_heads: int | None = None) -> Groups:
    """The groups of a scope over leaves of the given paths and shapes.

    Raises:
      ValueError: an unknown scope; scope "head" without `num_heads`, or one that does not divide a kernel.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope = {scope!r} is unknown; use one of {', '.join(SCOPES)}")
    firsts: dict[str, int] = {}
    spans: dict[str, int] = {}
    sizes: list[int] = []
    slots = []
    for path, shape in zip(paths, shapes, strict=True):
        name, axis = SCOPES[scope](path, shape, num_heads)
        parts = 1 if axis is None else num_heads or 1
        if name not in firsts:
            firsts[name], spans[name] = len(sizes), 0
            sizes += [0] * parts
        slots.append(Slot(firsts[name], axis, parts, spans[name], zlib.crc32(name.encode())))
        spans[name] += math.prod(shape)
        for part in range(parts):
            sizes[firsts[name] + part] += math.prod(shape) // parts
    return Groups(tuple(slots), tuple(sizes), max(spans.values(), default=0))


SCOPES: dict[str, Callable[[str, tuple[int, ...], int | None], tuple[str, int | None]]] = {
    "global": _global,
    "matrix": _matrix,
    "layer": _layer,
    "head": _head,
}
