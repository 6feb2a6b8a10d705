"""Batches for pre-training: masked tokens and next sentences, a pure function of (data, seed, step).

Shapes: B examples of this host, L tokens, P predictions.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.sections import DataConfig
from jaxprune.data import data_manifest, tokenizer
from jaxprune.data.bucket import BucketPath, any_path
from jaxprune.data.example_shards import ExampleShards
from jaxprune.data.masking import Masking, mask
from jaxprune.data.permutation import permute
from jaxprune.errors import UserError

Batch = dict[str, np.ndarray]

_EVAL_SEED = 0x5EED  # masks and order of evaluation: the same for every run, so that losses compare
_STEPS = 1 << 40  # length of the endless sequence of batches


class PretrainData:
    """One split of prepared data as batches. The global batch of a step does not depend on the number of hosts.

    `seed`: of order and masks. `rows`: those of the global batch, of `batch_size`, that this host makes, ascending;
    None makes all. `verify` compares hashes too where all files are below 4 GiB together; sizes are always compared.
    Errors: UserError if `path` is not finished prepared data on a local disk, a file is damaged (it is named), `rows`
    are not of the batch, or the masking does not suit the tokenizer.
    """

    def __init__(
        self,
        path: str | Path,
        cfg: DataConfig,
        split: str,
        batch_size: int,
        seed: int,
        *,
        rows: np.ndarray | None = None,
        verify: bool = True,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} is below 1")
        if rows is not None and not (np.size(rows) and 0 <= rows[0] <= rows[-1] < batch_size):
            raise UserError(f"rows {rows} are not of a batch of batch_size = {batch_size}")
        folder = any_path(path)
        if isinstance(folder, BucketPath):
            raise UserError(
                f"data.path {folder}: training maps its files into memory, so they must lie on a local disk;"
                f" copy them there (gcloud storage cp -r {folder} DIRECTORY) and name that"
            )
        manifest = data_manifest.read_manifest(folder)
        data_manifest.verify(folder, manifest["files"], hashes=None if verify else False)
        special = data_manifest.special_tokens(folder, manifest)
        vocab = tokenizer.load(str(folder.absolute() / "tokenizer"), special=special)
        if vocab.sha256 != manifest["vocab_sha256"]:
            raise UserError(f"{folder / 'tokenizer'}: not the vocabulary the data was made with; prepare it again")
        self.cfg, self.split, self.batch_size, self.seed, self.manifest = cfg, split, batch_size, seed, manifest
        self._shards = ExampleShards(folder, manifest, split)
        self._masking = Masking(cfg, vocab, manifest["seq_len"])
        self._rows = (np.arange(batch_size) if rows is None else rows).astype(np.int64)
        self.examples = len(self._shards)
        """Examples in the split."""
        self.seq_len: int = manifest["seq_len"]
        """L, tokens per example."""
        self.next_sentence: bool = manifest["next_sentence"]
        """Whether examples are pairs with a next-sentence label."""
        self.vocab_size: int = manifest["vocab_size"]
        """Rows that the word embeddings need at least."""
        self.vocabulary = vocab
        self.predictions = self._masking.predictions
        """P, predictions per example at most."""

    @property
    def predicted_share(self) -> float:
        """Share of the tokens, special ones included, that is predicted, in [0, 1]: of 1,024 examples at random."""
        row_B = permute(np.arange(min(1024, self.examples)), self.examples, _EVAL_SEED)
        batch = self._masked(row_B, _EVAL_SEED, np.zeros_like(row_B))
        return float(batch["masked_weights"].sum() / batch["attention_mask"].sum())

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the batches: the data, the vocabulary, the masking, the seed, the batch size."""
        masking = self.cfg.model_dump(mode="json", exclude={"path"}) | {"max_predictions": self.predictions}
        decides = {
            "data": {name: file["sha256"] for name, file in self.manifest["files"].items()},
            "vocab": self.manifest["vocab_sha256"],
            "masking": masking,
            "split": self.split,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int) -> Batch:
        """This host's rows of the batch of a step, in an endless sequence of epochs without a seam or a dropped row.

        int32 unless said: `input_ids` `token_type_ids` `attention_mask` (B, L); `masked_positions` `masked_ids`
        `masked_weights` (float32) (B, P); with pairs `next_sentence_label` (B,), 0 = B follows A, 1 = random.
        """
        epoch_B, within_B = np.divmod(step * self.batch_size + self._rows, self.examples)
        row_B = np.empty_like(within_B)
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
            index_B = step * self.batch_size + self._rows
            real_B = index_B < self.examples
            row_B = permute(np.where(real_B, index_B, 0), self.examples, _EVAL_SEED)
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
        iterator = iter(grain.MapDataset.range(_STEPS).map(self.batch).to_iter_dataset(read))
        iterator.set_state({"next_index": start_step})
        return iterator

    def _masked(self, row_B: np.ndarray, seed: int, epoch_B: np.ndarray) -> Batch:
        ids_BL, info_B = self._shards.take(row_B)
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
