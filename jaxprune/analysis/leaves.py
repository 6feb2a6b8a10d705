"""Flat views of trees: {path: array}, and what a path says about its matrix."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Leaves = Mapping[str, np.ndarray]
"""{path: array}; a path reads `encoder/layer_00/attention/query/kernel`, a kernel is (in, out)."""

WORDS = "embeddings/word_embeddings/embedding"


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """{path: array} of nested dicts (or of such a flat dict), in their order; leaves that are None are left out."""
    out: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{path}/")
        elif value is not None:
            out[path] = np.asarray(value)
    return out


def layer_of(path: str) -> int | None:
    """The encoder layer of a path, or None outside the encoder."""
    found = re.search(r"(?:^|/)layer_(\d+)/", path)
    return int(found[1]) if found else None


def kind_of(path: str) -> str:
    """A short name of the matrix within its layer: `query`, `attention output`, `word embeddings`, `pooler`."""
    parts = re.sub(r"^.*layer_\d+/", "", path).split("/")
    parts = [part for part in parts if part not in ("kernel", "embedding", "embeddings", "encoder")]
    if parts[:1] == ["attention"] and parts[1:] and parts[1] in ("query", "key", "value"):
        parts = parts[1:]
    return " ".join(parts).replace("_", " ") or path


def pair(a: Leaves, b: Leaves, names: tuple[str, str] = ("a", "b")) -> list[str]:
    """The paths of two trees that belong together; ValueError when one lacks a path or differs in shape."""
    for path in sorted(a.keys() ^ b.keys()):
        raise ValueError(f"{path}: only in {names[path in b]}; compare two models of one shape")
    for path in a:
        if a[path].shape != b[path].shape:
            raise ValueError(
                f"{path}: {a[path].shape} in {names[0]}, {b[path].shape} in {names[1]}; compare two models of one shape"
            )
    return list(a)
