"""How far an unfinished prepare is: `progress.npz`, one file that is whole or not there."""

import hashlib
import importlib.metadata
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxprune
from jaxprune.data import bucket
from jaxprune.data.bucket import AnyPath
from jaxprune.data.written_names import note
from jaxprune.files import parse_json

log = logging.getLogger(__name__)

RESUME_POINT = "progress.npz"
_ARRAY = "array"  # {_ARRAY: name} stands for an array in the JSON text


def versions() -> dict[str, str]:
    """Version of each package that decides the bytes of prepared data."""
    packages = ("tokenizers", "sentencex", "datasets")
    return {"jaxprune": jaxprune.__version__} | {name: importlib.metadata.version(name) for name in packages}


def save(folder: AnyPath, point: dict[str, Any]) -> None:
    """Record how far a prepare is: what JSON can hold, and arrays at any depth."""
    arrays: dict[str, np.ndarray] = {}

    def name_of(array: np.ndarray) -> dict[str, str]:
        arrays[f"array_{len(arrays)}"] = array
        return {_ARRAY: f"array_{len(arrays) - 1}"}

    text = json.dumps({"versions": versions(), **point}, default=name_of)
    content = io.BytesIO()
    arrays["text"] = np.frombuffer(text.encode(), np.uint8)
    np.savez(content, allow_pickle=False, sha256=_digest(arrays), **arrays)
    note(folder, RESUME_POINT)
    bucket.write(folder / RESUME_POINT, content.getvalue())


def load(folder: AnyPath) -> dict[str, Any] | None:
    """What `save` recorded; None if there is nothing that this version can go on from."""
    path = folder / RESUME_POINT
    if not path.is_file():
        return None
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as packed:
            if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
                raise ValueError("it is packed, as none is that was written here")
        with np.load(content, allow_pickle=False) as file:
            arrays = dict(file)
        if not np.array_equal(arrays.pop("sha256"), _digest(arrays)):
            raise ValueError("not as it was written")
        text = arrays["text"].tobytes()
        point = parse_json(text, object_hook=lambda fields: arrays[fields[_ARRAY]] if _ARRAY in fields else fields)
        then = point["versions"]
    except (ValueError, KeyError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        log.warning("prepare: %s is damaged (%s); starting over", path, (str(error).splitlines() or [""])[0])
        return None
    if then != versions():
        made = ", ".join(f"{name} {version}" for name, version in then.items())
        log.warning("prepare: %s was written with %s; starting over with the versions of now", path, made)
        return None
    return point


def _digest(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """SHA-256 (32,) of names, types, shapes and content."""
    made = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        made.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return np.frombuffer(made.digest(), np.uint8)
