"""An unfinished prepare on disk: `progress.npz`, one file that is whole or not there."""

import importlib.metadata
import io
import json
import logging
import zipfile
from typing import Any, NamedTuple

import numpy as np

from jaxprune.data import storage
from jaxprune.data.storage import Place

log = logging.getLogger(__name__)

PROGRESS = "progress.npz"
_PACKAGES = ("jaxprune", "tokenizers", "sentencex", "datasets")  # whose versions decide the bytes


def versions() -> dict[str, str]:
    """Version of each package that decides the bytes of prepared data."""
    return {name: _version(name) for name in _PACKAGES}


class Attempt(NamedTuple):
    """How far a prepare was."""

    said: dict[str, Any]
    """What JSON can hold."""
    all_arrays: dict[str, np.ndarray]
    """Arrays under "part/name"."""

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """The arrays of a part by name."""
        return {name.partition("/")[2]: array for name, array in self.all_arrays.items() if name.startswith(f"{part}/")}


def save(out: Place, said: dict[str, Any], arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """Record how far a prepare is: what JSON can hold, and arrays by part and name."""
    text = json.dumps({"versions": versions(), **said})
    flat = {f"{part}/{name}": array for part, named in arrays.items() for name, array in named.items()}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, said=np.frombuffer(text.encode(), np.uint8), **flat)
    storage.write(out / PROGRESS, content.getvalue())


def load(out: Place) -> Attempt | None:
    """What `save` recorded; None if there is nothing that this version can go on from."""
    path = out / PROGRESS
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        said = json.loads(arrays.pop("said").tobytes())
        then = said["versions"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("prepare: %s is damaged (%s); starting over", path, (str(error).splitlines() or [""])[0])
        return None
    if then != versions():
        made = ", ".join(f"{name} {version}" for name, version in then.items())
        log.warning("prepare: %s was written with %s; starting over with the versions of now", path, made)
        return None
    return Attempt(said, arrays)


def remove(out: Place) -> None:
    """Forget an attempt."""
    if (out / PROGRESS).is_file():
        (out / PROGRESS).unlink()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
