"""How far an unfinished prepare is: `progress.npz`, one file that is whole or not there."""

import importlib.metadata
import io
import json
import logging
import zipfile
from typing import Any

import numpy as np

import jaxprune
from jaxprune.data import bucket
from jaxprune.data.bucket import AnyPath
from jaxprune.data.written_names import note

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
    np.savez(content, allow_pickle=False, text=np.frombuffer(text.encode(), np.uint8), **arrays)
    note(folder, RESUME_POINT)
    bucket.write(folder / RESUME_POINT, content.getvalue())


def load(folder: AnyPath) -> dict[str, Any] | None:
    """What `save` recorded; None if there is nothing that this version can go on from."""
    path = folder / RESUME_POINT
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        text = arrays["text"].tobytes()
        point = json.loads(text, object_hook=lambda fields: arrays[fields[_ARRAY]] if _ARRAY in fields else fields)
        then = point["versions"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("prepare: %s is damaged (%s); starting over", path, (str(error).splitlines() or [""])[0])
        return None
    if then != versions():
        made = ", ".join(f"{name} {version}" for name, version in then.items())
        log.warning("prepare: %s was written with %s; starting over with the versions of now", path, made)
        return None
    return point
