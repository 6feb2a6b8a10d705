"""Flat views of trees, {path: array}, and what a path says about its matrix."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxprune.errors import UserError

Leaves = Mapping[str, np.ndarray]
"""{path: array}; the parts of a path are separated by `/`, a kernel is (in, out)."""
_LAYER = re.compile(r"(?:^|.*?/)[^/\d]*(\d+)(?:/|$)")


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """{path: array} of nested dicts (or of such a flat dict), in their order; leaves that are None are left out."""
    leaves: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{path}/")
        elif value is not None:
            leaves[path] = np.asarray(value)
    return leaves


def layer_of(path: str) -> int | None:
    """The number of the layer, which ends the first part of the path that ends in a number; None outside layers."""
    match = _LAYER.match(path)
    return int(match[1]) if match else None


def kinds(paths: Iterable[str]) -> dict[str, str]:
    """{path: short name of its matrix, alike in all layers}, such as `query`, `attention output`, `word embeddings`.

    It is made of the parts between the layer and the leaf's own name: of the last ones, as many as tell the matrix from
    all others in `paths`.
    """
    modules = {path: _module(path) for path in paths}
    different = {*modules.values()}

    def short(module: tuple[str, ...]) -> str:
        lengths = (n for n in range(1, len(module)) if sum(m[-n:] == module[-n:] for m in different) == 1)
        return " ".join(module[-next(lengths, len(module)) :]).replace("_", " ")

    return {path: short(module) for path, module in modules.items()}


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """{path: its layer and its kind}: `03 attention output`, `word embeddings`; two paths never share a name."""
    paths = list(paths)
    kind = kinds(paths)
    layers = {path: layer_of(path) for path in paths}
    names = {path: kind[path] if (layer := layers[path]) is None else f"{layer:02d} {kind[path]}" for path in paths}
    return names if len({*names.values()}) == len(names) else {path: path for path in paths}


def _module(path: str) -> tuple[str, ...]:
    parts = tuple(_LAYER.sub("", path, count=1).split("/"))
    return parts[:-1] or parts


def common_paths(a: Leaves, b: Leaves, names: tuple[str, str] = ("a", "b")) -> list[str]:
    """The paths of two trees, in the order of `a`; UserError when one side lacks a path or differs in shape."""
    for path in sorted(a.keys() ^ b.keys()):
        raise UserError(f"{path}: only in {names[path in b]}; compare two models of one shape")
    for path in a:
        if a[path].shape != b[path].shape:
            shapes = f"{a[path].shape} in {names[0]}, {b[path].shape} in {names[1]}"
            raise UserError(f"{path}: {shapes}; compare two models of one shape")
    return list(a)
