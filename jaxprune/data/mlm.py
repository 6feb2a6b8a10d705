"""Batches for pre-training: masked tokens and next sentences, a pure function of (data, seed, step).

Shapes: B examples of this host, L tokens, P predictions.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config import DataConfig
from jaxprune.data import shards, tokenizer
from jaxprune.data.masking import Masking, mask, masking
from jaxprune.data.order import permute

Batch = dict[str, np.ndarray]

_EVAL_SEED = 0x5EED  # masks and order of evaluation: the same for every run, so that losses compare
_STEPS = 1 << 40  # length of the endless sequence of batches


@dataclass(frozen=True)
class PretrainData:
    """One split of prepared data as batches. The global batch of a step does not depend on the number of hosts.

    Errors: ValueError if `path` is not finished prepared data, a file is damaged (it is named), `rows` are not of the
    batch, or the masking does not suit the tokenizer. `verify` compares hashes too where all files are
    below 4 GiB together; sizes are always compared.
    """

    path: str | Path
    cfg: DataConfig
    split: str
    batch_size: int
    """Rows of the global batch."""
    seed: int
    """Of order and masks."""
    rows: np.ndarray | None = field(default=None, compare=False)
    """Rows of the global batch that this host makes, ascending; None makes all."""
    verify: bool = True
    manifest: dict[str, Any] = field(init=False, repr=False, compare=False)
    _rows: shards.Examples = field(init=False, repr=False, compare=False)
    _masking: Masking = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        folder = Path(self.path).expanduser().absolute()
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} is below 1")
        if self.rows is not None and not (np.size(self.rows) and 0 <= self.rows[0] <= self.rows[-1] < self.batch_size):
            raise ValueError(f"rows {self.rows} are not of a batch of batch_size = {self.batch_size}")
        manifest = shards.read_manifest(folder)
        shards.verify(folder, manifest, hashes=None if self.verify else False)
        vocab = tokenizer.load(str(folder / "tokenizer"))
        if vocab.sha256 != manifest["vocab_sha256"]:
            raise ValueError(f"{folder / 'tokenizer'}: not the vocabulary the data was made with; prepare it again")
        set_ = object.__setattr__
        set_(self, "manifest", manifest)
        set_(self, "_rows", shards.Examples(folder, manifest, self.split))
        set_(self, "_masking", masking(self.cfg, vocab))

    @property
    def examples(self) -> int:
        """Examples in the split."""
        return len(self._rows)

    @property
    def seq_len(self) -> int:
        """L, tokens per example."""
        return self.manifest["seq_len"]

    @property
    def next_sentence(self) -> bool:
        """Whether examples are pairs with a next-sentence label."""
        return self.manifest["next_sentence"]

    @property
    def vocab_size(self) -> int:
        """Rows that the word embeddings need at least."""
        return self.manifest["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the batches: the data, the vocabulary, the masking, the seed, the batch size."""
        said = {
            "data": {name: entry["sha256"] for name, entry in self.manifest["files"].items()},
            "vocab": self.manifest["vocab_sha256"],
            "masking": self.cfg.model_dump(mode="json", exclude={"path"}),
            "split": self.split,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of a step, in an endless sequence of epochs without a seam or a dropped row.

        int32 unless said: `input_ids` `token_type_ids` `attention_mask` (B, L); `masked_positions` `masked_ids`
        `masked_weights` (float32) (B, P); with pairs `next_sentence_label` (B,), 0 = B follows A, 1 = random.
        """
        place_B = step * self.batch_size + self._host_rows()
        epoch_B, within_B = np.divmod(place_B, self.examples)
        row_B = np.empty_like(place_B)
        for epoch in np.unique(epoch_B):
            at = epoch_B == epoch
            row_B[at] = permute(within_B[at], self.examples, self.seed, int(epoch))
        return self._masked(row_B, self.seed, epoch_B)

    def eval_batches(self, max_batches: int = 0) -> Iterator[Batch]:
        """Every example once, masked the same way each time; `max_batches` stops early (0: all), at a random sample.

        Rows that fill up the last batch have `example_weights` (B,) float32 0 and no predictions.
        """
        count = -(-self.examples // self.batch_size)
        for step in range(min(count, max_batches) if max_batches else count):
            place_B = step * self.batch_size + self._host_rows()
            real_B = place_B < self.examples
            row_B = permute(np.where(real_B, place_B, 0), self.examples, _EVAL_SEED)
            batch = self._masked(row_B, _EVAL_SEED, np.zeros_like(row_B))
            batch["example_weights"] = real_B.astype(np.float32)
            batch["masked_weights"] *= batch["example_weights"][:, None]
            yield batch

    def iterator(self, start_step: int, prefetch: int) -> Any:
        """A grain iterator over `batch(start_step)`, `batch(start_step + 1)`, ...; `prefetch` batches are made ahead.

        Threads only: no worker process is started. Its state is {"next_index": step}, for any number of hosts.
        """
        import grain  # here, since it imports jax where that is installed

        read = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        iterator = iter(grain.MapDataset.source(_Steps(self)).to_iter_dataset(read))
        iterator.set_state({"next_index": start_step})
        return iterator

    def _host_rows(self) -> np.ndarray:
        """Places of this host's rows in the global batch, int64."""
        return np.arange(self.batch_size, dtype=np.int64) if self.rows is None else self.rows.astype(np.int64)

    def _masked(self, row_B: np.ndarray, seed: int, epoch_B: np.ndarray) -> Batch:
        ids_BL, info_B = self._rows.take(row_B)
        a_B, b_B = (info_B[name].astype(np.int32)[:, None] for name in ("a_len", "b_len"))
        length_B = a_B + 2 + (b_B + 1) * (b_B > 0)
        position_L = np.arange(ids_BL.shape[1])
        masked = mask(ids_BL, length_B[:, 0], self._masking, seed, epoch_B, row_B)
        attention_BL = position_L < length_B
        batch = {
            "input_ids": masked.ids_BL,
            "token_type_ids": (attention_BL & (position_L >= a_B + 2)).astype(np.int32),
            "attention_mask": attention_BL.astype(np.int32),
            "masked_positions": masked.positions_BP,
            "masked_ids": masked.targets_BP,
            "masked_weights": masked.weights_BP,
        }
        if self.next_sentence:
            batch["next_sentence_label"] = info_B["is_random"].astype(np.int32)
        return batch


class _Steps:
    """The batches of all steps as a sequence, for grain."""

    def __init__(self, data: PretrainData) -> None:
        self.data = data

    def __len__(self) -> int:
        return _STEPS

    def __getitem__(self, index: int) -> Batch:
        return self.data.batch(int(index))

    def __repr__(self) -> str:
        return f"PretrainData({self.data.fingerprint[:12]})"
