"""Examples of a task as token ids, and as batches of rows that hold several of them, for training and evaluation.

Shapes: N examples, T texts that are encoded by themselves (N, or 2 N where similarity is asked for), R rows, L tokens,
U examples in a row, S = U T / N texts in a row.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxprune.data.examples import Examples, example_weights
from jaxprune.data.permutation import shuffled
from jaxprune.data.row_packing import Shape, pack, shape_of
from jaxprune.data.tasks import Task
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError

Batch = dict[str, np.ndarray]
"""`input_ids`, `token_type_ids`, `position_ids`, `segment_ids` int32 (R, L): the texts of a row count from 1, 0 is
padding, positions from 0 in each; `starts` int32 (R, S): where they begin; `labels` (R, U) or (R, U, C),
`example_weights` float32 (R, U), and what else is known of each example, 0 in an empty slot. The examples of a batch
are those of its step, in any order."""

_NOTHING: Mapping[str, np.ndarray] = {}

_CHUNK = 512  # examples of an evaluation that are packed together


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N examples as token ids `cls a sep` or `cls a sep b sep`, one after the other without padding."""

    task: Task
    ids: np.ndarray
    """(sum of lengths,) int32."""
    types: np.ndarray
    """(sum of lengths,) int32: the tokenizer's type of second texts on `b sep`, else 0."""
    ends: np.ndarray
    """(T,) int64: where each text ends in `ids`."""
    labels: np.ndarray
    """(N,) int32 or float32; (N, C) float32 with several labels per example."""
    weights: np.ndarray
    """(N,) float32: what an example counts for in training."""
    pad: int
    """The id that fills rows up."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts(self) -> int:
        """Texts of an example that are encoded by themselves, T / N: 2 for similarity, else 1."""
        return len(self.ends) // len(self)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64: tokens of each example."""
        return np.diff(self.ends[self.texts - 1 :: self.texts], prepend=0)


def encode(examples: Examples, vocabulary: Vocabulary, max_len: int, *, apart: bool = False) -> Encoded:
    """Token ids of the examples, each at most `max_len` with its special tokens.

    A pair that is too long loses tokens of its longer text, as transformers' `longest_first` does, on the side that the
    tokenizer says. `apart` encodes the texts of a pair each by itself, to be compared. Names of special tokens in a
    text are these tokens, as in transformers. Errors: UserError without examples, or if `max_len` leaves no room.
    """
    if not len(examples):
        raise UserError(f"{examples.source}: no examples")
    paired = examples.second is not None and not apart
    room = max_len - 2 - paired * vocabulary.separators
    if room < 2:
        raise UserError(f"max_len = {max_len} leaves no room for text: use 8 or more")
    first = vocabulary.encode(list(examples.first), names_as_ids=True)
    second = vocabulary.encode(list(examples.second), names_as_ids=True) if examples.second is not None else None
    separators = vocabulary.separators
    cls, sep = [vocabulary.special["cls"]], [vocabulary.special["sep"]]

    def kept(text: list[int], count: int) -> list[int]:
        return text[max(0, len(text) - count) :] if vocabulary.cuts_left else text[:count]

    ids: list[list[int]] = []
    lengths_b: list[int] = []  # of `b sep`
    if paired and second is not None:
        for a, b in zip(first, second, strict=True):
            keep_a, keep_b = longest_first(len(a), len(b), room)
            ids.append(cls + kept(a, keep_a) + sep * separators + kept(b, keep_b) + sep)
            lengths_b.append(keep_b + 1)
    else:
        single = first if second is None else [text for pair in zip(first, second, strict=True) for text in pair]
        ids = [cls + kept(text, room) + sep for text in single]
        lengths_b = [0] * len(ids)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    ends = np.cumsum(lengths)
    before_b = ends - np.array(lengths_b)
    flat = np.fromiter((number for text in ids for number in text), np.int32, int(ends[-1]))
    types = vocabulary.second_type * (np.arange(len(flat)) >= np.repeat(before_b, lengths)).astype(np.int32)
    pad = vocabulary.special["pad"]
    return Encoded(examples.task, flat, types, ends, examples.labels, example_weights(examples), pad)


def longest_first(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """Tokens of each text that stay: the longer one is cut to what the other leaves, at least half of the room.

    Where both are cut and the room is odd, the longer one (`b` in a tie) keeps the token more, as in `tokenizers`.
    """
    if length_a + length_b <= room:
        return length_a, length_b
    short = min(length_a, length_b, room // 2)
    return (room - short, short) if length_a > length_b else (short, room - short)


class TaskData:
    """Training batches by step number: `batch(step)` is a pure function of (examples, batch size, seed, step).

    Each epoch visits each example once, in its own order, and its last batch has what is left. The others have one
    example of each of `batch_size` classes of length, drawn at random, so that all have about as many tokens. All
    batches of `epochs` have one shape, into which also examples of `longest` tokens fit; its rows are a multiple of
    `multiple`.
    """

    def __init__(
        self, encoded: Encoded, batch_size: int, seed: int, *, epochs: int = 1, longest: int = 0, multiple: int = 1
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size} is below 1")
        self.encoded, self.batch_size, self.seed = encoded, batch_size, seed
        self.steps_per_epoch = math.ceil(len(encoded) / batch_size)
        self._ordered = functools.lru_cache(maxsize=2)(self._order)
        lengths = encoded.lengths
        batches = [lengths[self._examples(step)] for step in range(epochs * self.steps_per_epoch)]
        self.shape = shape_of(batches, max(longest, int(lengths.max())), multiple)

    def _order(self, epoch: int) -> np.ndarray:
        """(N,) int64: the examples of an epoch, batch after batch."""
        order = shuffled(len(self.encoded), self.seed, epoch)
        whole = len(order) // self.batch_size
        drawn, rest = np.split(order, [whole * self.batch_size])
        classes = drawn[np.argsort(self.encoded.lengths[drawn], kind="stable")].reshape(self.batch_size, whole)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))  # random numbers, all different
        return np.concatenate([_rows_sorted(classes, place[classes]).T.reshape(-1), rest])

    def _examples(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._ordered(epoch)[within * self.batch_size :][: self.batch_size]

    def batch(self, step: int, beside: Mapping[str, np.ndarray] = _NOTHING) -> Batch:
        """The batch of a step, counted from 0 over all epochs; `beside`: name -> (N, ...), more about each example."""
        examples = self._examples(step)
        packed = pack(self.encoded.lengths[examples].tolist(), self.shape.length, self.shape.slots)
        rows = [examples[row] for row in packed]
        more = {name: _placed(values, rows, self.shape) for name, values in beside.items()}
        return _filled(self.encoded, rows, self.shape, self.encoded.weights) | more

    def __iter__(self) -> "TaskIterator":
        return TaskIterator(self)


class TaskIterator:
    """Endless batches from step 0 or from a saved state."""

    def __init__(self, data: TaskData, beside: Mapping[str, np.ndarray] = _NOTHING) -> None:
        self._data, self._beside, self._next = data, beside, 0

    def __iter__(self) -> "TaskIterator":
        return self

    def __next__(self) -> Batch:
        self._next += 1
        return self._data.batch(self._next - 1, self._beside)

    def get_state(self) -> dict[str, int]:
        """{"next_index": the step whose batch comes next}."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a state of `get_state`. Errors: UserError if it is not one."""
        step = state.get("next_index")
        if not isinstance(step, int) or step < 0:
            raise UserError(f"data state {state!r} is not of the form {{'next_index': step}}")
        self._next = step


def eval_batches(encoded: Encoded, shape: Shape) -> Iterator[tuple[np.ndarray, Batch]]:
    """Each example once, all of weight 1: (its number at every slot, int64 (R, U), -1 in an empty one; the batch)."""
    weights = np.ones(len(encoded), np.float32)
    waiting: list[np.ndarray] = []
    for start in range(0, len(encoded), _CHUNK):
        packed = pack(encoded.lengths[start : start + _CHUNK].tolist(), shape.length, shape.slots)
        waiting += [np.array(row) + start for row in packed]
        last = start + _CHUNK >= len(encoded)
        while len(waiting) >= shape.rows or (last and waiting):
            rows, waiting = waiting[: shape.rows], waiting[shape.rows :]
            numbers = np.full((shape.rows, shape.slots), -1)
            for i, row in enumerate(rows):
                numbers[i, : len(row)] = row
            yield numbers, _filled(encoded, rows, shape, weights)


def outputs(encoded: Encoded, shape: Shape, forward: Callable[[Batch], np.ndarray]) -> np.ndarray:
    """What `forward` gives (R, U, ...) for each example, in their order: (N, ...)."""
    result: np.ndarray | None = None
    for numbers, batch in eval_batches(encoded, shape):
        values = forward(batch)
        if result is None:
            result = np.empty((len(encoded), *values.shape[2:]), values.dtype)
        result[numbers[numbers >= 0]] = values[numbers >= 0]
    assert result is not None
    return result


def _rows_sorted(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return np.take_along_axis(table, np.argsort(keys, 1), 1)


def _placed(values: np.ndarray, rows: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    """(N, ...) -> (R, U, ...): the values of the examples of each row, 0 in an empty slot."""
    placed = np.zeros((shape.rows, shape.slots, *values.shape[1:]), values.dtype)
    for r, examples in enumerate(rows):
        placed[r, : len(examples)] = values[examples]
    return placed


def _filled(encoded: Encoded, rows: Sequence[np.ndarray], shape: Shape, weights: np.ndarray) -> Batch:
    """The batch whose row r holds the examples `rows[r]`."""
    R, L, U, texts = *shape, encoded.texts
    names = "input_ids", "token_type_ids", "position_ids", "segment_ids"
    batch: Batch = {name: np.zeros((R, L), np.int32) for name in names}
    batch["input_ids"][:] = encoded.pad
    batch["starts"] = np.zeros((R, U * texts), np.int32)
    batch["labels"] = _placed(encoded.labels, rows, shape)
    batch["example_weights"] = _placed(weights, rows, shape)
    for r, examples in enumerate(rows):
        at = 0
        for slot, text in enumerate((examples[:, None] * texts + np.arange(texts)).reshape(-1)):
            begin, end = encoded.ends[text - 1] if text else 0, encoded.ends[text]
            cells = slice(at, at + int(end - begin))
            batch["input_ids"][r, cells] = encoded.ids[begin:end]
            batch["token_type_ids"][r, cells] = encoded.types[begin:end]
            batch["position_ids"][r, cells] = np.arange(end - begin)
            batch["segment_ids"][r, cells] = slot + 1
            batch["starts"][r, slot] = at
            at = cells.stop
    return batch
