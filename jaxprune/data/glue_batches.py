"""GLUE examples as token ids, and as batches for training and evaluation.

Shapes: N examples, L tokens, B examples in a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxprune.data.glue_examples import Examples
from jaxprune.data.glue_tasks import Task
from jaxprune.data.permutation import shuffled
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError

Batch = dict[str, np.ndarray]
"""`input_ids`, `token_type_ids`, `attention_mask` int32 (B, L), `labels` int32 or float32 (B,), `example_weights`
float32 (B,): 1 for an example, 0 for a row that only fills up the last batch."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N examples `cls a sep` or `cls a sep b sep`, padded to one length L."""

    task: Task
    input_ids: np.ndarray
    """(N, L) int32."""
    token_type_ids: np.ndarray
    """(N, L) int32: 1 on `b sep`, else 0."""
    attention_mask: np.ndarray
    """(N, L) int32: 1 on tokens, 0 on padding."""
    labels: np.ndarray
    """(N,) int32 or float32."""

    def __len__(self) -> int:
        return len(self.labels)


def encode(examples: Examples, vocabulary: Vocabulary, max_len: int, *, multiple: int = 16) -> Encoded:
    """Token ids of the examples, one length L for all: the longest example rounded up to `multiple`, at most `max_len`.

    A pair that is too long loses tokens from the end of its longer text, one by one, and of `b` when both are as long
    (BERT's `_truncate_seq_pair`). One length per split depends on the data alone and compiles once; CoLA needs 48 and
    SST-2 80 of the usual 128. Errors: UserError without examples, or if `max_len` leaves no room.
    """
    pair = examples.second is not None
    room = max_len - (3 if pair else 2)
    if room < 2:
        raise UserError(f"max_len = {max_len} leaves no room for text: use 8 or more")
    if not len(examples):
        raise UserError(f"{examples.source}: no examples")
    ids_a, len_a = _token_ids(vocabulary, examples.first)
    ids_b, len_b = _token_ids(vocabulary, examples.second) if examples.second is not None else (ids_a, 0 * len_a)
    keep_a, keep_b = _cut(len_a, len_b, room) if pair else (np.minimum(len_a, room), len_b)

    used = keep_a + 2 + (keep_b + 1 if pair else 0)
    length = min(max_len, math.ceil(int(used.max()) / multiple) * multiple)
    column = np.arange(length)[None, :]
    used, end_a, start_b = used[:, None], keep_a[:, None] + 1, keep_a[:, None] + 2
    input_ids = np.full((len(examples), length), vocabulary.special["pad"], np.int32)
    input_ids[:, 0] = vocabulary.special["cls"]
    input_ids[(column == end_a) | (column == used - 1)] = vocabulary.special["sep"]
    _fill(input_ids, (column >= 1) & (column < end_a), ids_a, len_a, keep_a)
    if pair:
        _fill(input_ids, (column >= start_b) & (column < used - 1), ids_b, len_b, keep_b)
    attention_mask = (column < used).astype(np.int32)
    token_type_ids = ((column >= start_b) & (column < used)).astype(np.int32)
    return Encoded(examples.task, input_ids, token_type_ids, attention_mask, examples.labels)


class GlueData:
    """Training batches by step number: `batch(step)` is a pure function of (examples, batch size, seed, step).

    Each epoch visits each example once, in its own order; its last batch is filled up with repeated rows of weight 0.
    """

    def __init__(self, encoded: Encoded, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} is below 1")
        if not len(encoded):
            raise UserError(f"{encoded.task.name}: no training examples")
        self.encoded, self.batch_size, self.seed = encoded, batch_size, seed
        self.steps_per_epoch = math.ceil(len(encoded) / batch_size)
        self._shuffled = functools.lru_cache(maxsize=2)(shuffled)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self._shuffled(len(self.encoded), self.seed, epoch)[within * self.batch_size :][: self.batch_size]
        return _batch(self.encoded, rows, self.batch_size)

    def __iter__(self) -> "GlueIterator":
        return GlueIterator(self)


class GlueIterator:
    """Endless batches from step 0 or from a saved state."""

    def __init__(self, data: GlueData) -> None:
        self._data, self._next = data, 0

    def __iter__(self) -> "GlueIterator":
        return self

    def __next__(self) -> Batch:
        self._next += 1
        return self._data.batch(self._next - 1)

    def get_state(self) -> dict[str, int]:
        """{"next_index": the step whose batch comes next}."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a state of `get_state`. Errors: UserError if it is not one."""
        step = state.get("next_index")
        if not isinstance(step, int) or step < 0:
            raise UserError(f"data state {state!r} is not of the form {{'next_index': step}}")
        self._next = step


def eval_batches(encoded: Encoded, batch_size: int) -> Iterator[Batch]:
    """All examples once, in file order; drop the predictions whose `example_weights` are 0 and nothing else."""
    for start in range(0, len(encoded), batch_size):
        yield _batch(encoded, np.arange(start, min(start + batch_size, len(encoded))), batch_size)


def _batch(encoded: Encoded, rows: np.ndarray, batch_size: int) -> Batch:
    weights = (np.arange(batch_size) < len(rows)).astype(np.float32)
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
    names = "input_ids", "token_type_ids", "attention_mask", "labels"
    return {name: getattr(encoded, name)[rows] for name in names} | {"example_weights": weights}


def _token_ids(vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All ids in a row (sum of lengths,) int32 and the lengths (N,) int64."""
    ids, lengths = [], []
    for start in range(0, len(texts), 8192):
        part = vocabulary.encode(list(texts[start : start + 8192]))
        lengths += map(len, part)
        ids.append(np.fromiter((number for row in part for number in row), np.int32))
    return np.concatenate(ids), np.array(lengths, np.int64)


def _cut(len_a: np.ndarray, len_b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text (N,) that stay when the longer one always loses the next token, `b` in a tie."""
    half = room // 2
    keep_a = np.where(len_a + len_b <= room, len_a, np.minimum(len_a, np.maximum(room - len_b, room - half)))
    return keep_a, np.minimum(len_b, room - keep_a)


def _fill(out: np.ndarray, where: np.ndarray, ids: np.ndarray, lengths: np.ndarray, keep: np.ndarray) -> None:
    """Write the first `keep` ids of every text into its True cells of `where` (N, L)."""
    start = np.cumsum(lengths) - lengths
    within = np.arange(int(keep.sum())) - np.repeat(np.cumsum(keep) - keep, keep)
    out[where] = ids[np.repeat(start, keep) + within]
