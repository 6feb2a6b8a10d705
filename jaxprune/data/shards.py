"""Packed examples on disk: memory-mapped .npy shards and the manifest that vouches for them.

A split `train` is `train-00000.ids.npy`, (n, L) token ids, beside `train-00000.info.npy`, (n,) records of INFO, and so
on; `manifest.json` is written last, so a directory without one is unfinished.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.data import storage
from jaxprune.data.storage import Place

MANIFEST = "manifest.json"
FORMAT = 1
INFO = np.dtype([("a_len", "<u2"), ("b_len", "<u2"), ("is_random", "?"), ("doc_a", "<u4"), ("doc_b", "<u4")])
"""Per example: tokens of both segments, whether B is random, and the running numbers of the documents."""
_HASH_LIMIT = 4 << 30  # bytes up to which opening a directory reads every file


def ids_dtype(vocab_size: int) -> np.dtype:
    """Smallest unsigned type that holds the ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def sha256(path: Place) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes the shards of one split; each file gets its name only once it is whole."""

    def __init__(self, folder: Place, split: str, shard_examples: int) -> None:
        self.folder, self.split, self.size = folder, split, shard_examples
        self.files: dict[str, dict[str, Any]] = {}
        """Size and hash of every file written, as the manifest holds them."""
        self.examples = 0
        """Examples in `files`."""
        self._ids: list[np.ndarray] = []
        self._info: list[np.ndarray] = []
        self._held = 0

    def add(self, ids_NL: np.ndarray, info_N: np.ndarray) -> None:
        """Append examples, in order."""
        while len(ids_NL):
            room = self.size - self._held
            self._ids.append(ids_NL[:room])
            self._info.append(info_N[:room])
            self._held += len(self._ids[-1])
            ids_NL, info_N = ids_NL[room:], info_N[room:]
            if self._held == self.size:
                self.flush()

    def held(self) -> list[np.ndarray]:
        """The examples that no file holds yet, as the arguments of `add`; none if there are none."""
        return [np.concatenate(self._ids), np.concatenate(self._info)] if self._held else []

    def flush(self) -> None:
        """Write what is held as one shard."""
        if not self._held:
            return
        stem = f"{self.split}-{len(self.files) // 2:05d}"
        for kind, array in zip(("ids", "info"), self.held()):
            name = f"{stem}.{kind}.npy"
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            self.files[name] = write(self.folder, name, content.getvalue())
        self.examples += self._held
        self._ids, self._info, self._held = [], [], 0


def write(folder: Place, name: str, content: bytes) -> dict[str, Any]:
    """Write a file; its size and hash, as the manifest holds them."""
    storage.write(folder / name, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(folder: Place, manifest: dict[str, Any]) -> None:
    """Write manifest.json at once or not at all."""
    storage.write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Place) -> dict[str, Any]:
    """The manifest of prepared data. Errors: ValueError if there is none, or it is damaged or of another format."""
    path = folder / MANIFEST
    if not folder.is_dir():
        if isinstance(folder, Path) and (url := storage.url_within(folder)):
            raise ValueError(
                f"data.path {url}: training maps its files into memory, so they must lie on a local disk;"
                f" copy them there (gcloud storage cp -r {url} DIRECTORY) and name that"
            )
        raise ValueError(f"data.path {folder}: no such directory; run `jaxprune prepare` first")
    if not path.is_file():
        raise ValueError(f"data.path {folder}: no {MANIFEST}, so it is not finished; run `jaxprune prepare` again")
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete the directory and run `jaxprune prepare` again") from error
    if found != FORMAT:
        raise ValueError(f"{path}: format {found}, but this version reads {FORMAT}; run `jaxprune prepare` again")
    return manifest


def verify(folder: Place, manifest: dict[str, Any], *, hashes: bool | None = None) -> None:
    """Check every file against the manifest.

    Sizes always; hashes if asked, or (None) if all files are below 4 GiB together.
    Errors: ValueError that names the damaged file.
    """
    entries = manifest["files"]
    if hashes is None:
        hashes = sum(entry["size"] for entry in entries.values()) <= _HASH_LIMIT
    remedy = "delete the directory and run `jaxprune prepare` again"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing; {remedy}")
        if (size := path.stat().st_size) != entry["size"]:
            raise ValueError(f"{path}: damaged, {size} bytes instead of {entry['size']}; {remedy}")
        if hashes and sha256(path) != entry["sha256"]:
            raise ValueError(f"{path}: damaged, its SHA-256 is not the manifest's; {remedy}")


class Examples:
    """The examples of one split, memory-mapped."""

    def __init__(self, folder: Path, manifest: dict[str, Any], split: str) -> None:
        counts = manifest["splits"].get(split)
        if counts is None:
            raise ValueError(f"{folder}: no split {split!r}; there are {', '.join(manifest['splits'])}")
        names = sorted(name for name in manifest["files"] if name.startswith(f"{split}-") and name.endswith(".ids.npy"))
        self._ids = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in names]
        self._info = [
            np.load(folder / name.replace(".ids.", ".info."), mmap_mode="r", allow_pickle=False) for name in names
        ]
        self._ends = np.cumsum([len(ids) for ids in self._ids])
        if len(self._ends) == 0 or self._ends[-1] != counts["examples"]:
            raise ValueError(f"{folder}: shards and manifest disagree on {split}; run `jaxprune prepare` again")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids (B, L) and INFO records (B,) of the examples at `index`."""
        shard_B = np.searchsorted(self._ends, index_B, side="right")
        ids_BL = np.empty((len(index_B), self._ids[0].shape[1]), self._ids[0].dtype)
        info_B = np.empty(len(index_B), INFO)
        for shard in np.unique(shard_B):
            at = np.flatnonzero(shard_B == shard)
            row = index_B[at] - (self._ends[shard] - len(self._ids[shard]))
            ids_BL[at] = self._ids[shard][row]
            info_B[at] = self._info[shard][row]
        return ids_BL, info_B
