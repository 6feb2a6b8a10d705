"""Packed examples on disk, as memory-mapped .npy shards.

A split `train` is `train-00000.ids.npy`, (n, L) token ids, beside `train-00000.info.npy`, (n,) records of INFO, and so
on. Shapes: N examples, L tokens, B examples asked for.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.data import data_manifest
from jaxprune.data.bucket import AnyPath
from jaxprune.errors import UserError

INFO = np.dtype([("a_len", "<u2"), ("b_len", "<u2"), ("is_random", "?"), ("doc_a", "<u4"), ("doc_b", "<u4")])
"""Per example: tokens of both segments, whether B is random, and the running numbers of the documents."""


def ids_dtype(vocab_size: int) -> np.dtype:
    """Smallest unsigned type that holds the ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes the shards of one split; each file gets its name only once it is whole."""

    def __init__(self, folder: AnyPath, split: str, shard_examples: int) -> None:
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

    def held(self) -> dict[str, np.ndarray]:
        """The `ids` and `info` that no file holds yet; empty if there are none."""
        return {"ids": np.concatenate(self._ids), "info": np.concatenate(self._info)} if self._held else {}

    def flush(self) -> None:
        """Write what is held as one shard."""
        stem = f"{self.split}-{len(self.files) // 2:05d}"
        for kind, array in self.held().items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            name = f"{stem}.{kind}.npy"
            self.files[name] = data_manifest.write_file(self.folder, name, content.getvalue())
        self.examples += self._held
        self._ids, self._info, self._held = [], [], 0


class ExampleShards:
    """The examples of one split, memory-mapped."""

    def __init__(self, folder: Path, manifest: dict[str, Any], split: str) -> None:
        counts = manifest["splits"].get(split)
        if counts is None:
            raise UserError(f"{folder}: no split {split!r}; there are {', '.join(manifest['splits'])}")
        stems = sorted(name[:-8] for name in manifest["files"] if name.startswith(f"{split}-") and ".ids." in name)
        self._ids, self._info = (
            [np.load(folder / f"{stem}.{kind}.npy", mmap_mode="r", allow_pickle=False) for stem in stems]
            for kind in ("ids", "info")
        )
        self._ends = np.cumsum([len(ids) for ids in self._ids])
        if len(self._ends) == 0 or self._ends[-1] != counts["examples"]:
            raise UserError(f"{folder}: shards and manifest disagree on {split}; run `jaxprune prepare` again")

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
