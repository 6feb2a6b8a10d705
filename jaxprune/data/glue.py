"""GLUE data: a hub dataset or the TSV files of a `glue_data/` folder, as texts, as token ids, as batches.

Shapes: N examples, L tokens, B examples in a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.data.tasks import TASKS, Task, task

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "TASKS",
    "Batch",
    "Encoded",
    "Examples",
    "GlueData",
    "GlueIterator",
    "Task",
    "batches",
    "encode",
    "eval_batches",
    "load",
    "order",
    "subset",
    "task",
]

Batch = dict[str, np.ndarray]
"""`input_ids`, `token_type_ids`, `attention_mask` int32 (B, L), `labels` int32 or float32 (B,), `example_weights`
float32 (B,): 1 for an example, 0 for a row that only fills up the last batch."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts and labels of one split, in file order."""

    task: Task
    source: str
    """File, or hub name, config, split and revision."""
    first: Sequence[str]
    """N texts."""
    second: Sequence[str] | None
    """N texts, or None for a task on single texts."""
    labels: np.ndarray
    """(N,) int32 class numbers, or float32 scores."""
    skipped: int = 0
    """Malformed rows left out (QQP only)."""

    def __len__(self) -> int:
        return len(self.first)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """N examples as `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, padded to one length L."""

    task: Task
    input_ids: np.ndarray
    """(N, L) int32."""
    token_type_ids: np.ndarray
    """(N, L) int32: 1 on `b [SEP]`, else 0."""
    attention_mask: np.ndarray
    """(N, L) int32: 1 on tokens, 0 on padding."""
    labels: np.ndarray
    """(N,) int32 or float32."""

    def __len__(self) -> int:
        return len(self.labels)


def load(name: str, glue: str, split: str, revision: str = "") -> Examples:
    """Examples of task `name` from a hub dataset or from a local folder in the layout of the official `glue_data/`.

    `split` is `train` or `dev`, for MNLI also `dev_mismatched` (its `dev` is the matched set). `revision` pins a commit
    of the hub dataset. Raises one-line ValueErrors that name the file, the row (1 = first line of the file; on the hub
    0 = first example), the value and the remedy.
    """
    row = task(name)
    known = {s: (files, hub_split) for s, files, hub_split in row.splits}
    if split not in known:
        why = "; GLUE publishes no test labels" if split.startswith("test") else ""
        raise ValueError(f"{name} has no split {split!r}{why}. Use one of {', '.join(known)}")
    files, hub_split = known[split]
    if Path(glue).expanduser().is_dir():
        if revision:
            raise ValueError(f"revision = {revision!r} pins a hub dataset, but glue = {glue!r} is a folder: remove one")
        return _from_folder(row, Path(glue).expanduser(), split, files)
    if glue.startswith((".", "/", "~")) or "\\" in glue or glue.count("/") > 1:
        raise ValueError(f"glue = {glue!r}: no such folder. Give a folder that holds {row.name}/, or a hub dataset")
    return _from_hub(row, glue, hub_split, revision)


def subset(examples: Examples, count: int, seed: int) -> Examples:
    """The first `count` of the examples after a shuffle by `seed`; all, in file order, if `count` is 0 or too large."""
    if count <= 0 or count >= len(examples):
        return examples
    keep = order(len(examples), seed, 2**32)[:count]
    second = examples.second
    return dataclasses.replace(
        examples,
        first=[examples.first[i] for i in keep],
        second=None if second is None else [second[i] for i in keep],
        labels=examples.labels[keep],
    )


def encode(examples: Examples, tokenizer: "tokenizers.Tokenizer", max_len: int, *, multiple: int = 16) -> Encoded:
    """Token ids of the examples, one length L for all: the longest example rounded up to `multiple`, at most `max_len`.

    A pair that is too long loses tokens from the end of its longer text, one by one, and of `b` when both are as long
    (BERT's `_truncate_seq_pair`). Special tokens are set here, whatever the tokenizer's own template, truncation
    and padding say. One length per split depends on the data alone and compiles once; CoLA needs 48 and SST-2 80 of
    the usual 128. Raises ValueError if the vocabulary lacks `[CLS]`, `[SEP]` or `[PAD]`, or `max_len` leaves no room.
    """
    names = ("[CLS]", "[SEP]", "[PAD]")
    special = {name: number for name in names if (number := tokenizer.token_to_id(name)) is not None}
    if missing := ", ".join(name for name in names if name not in special):
        raise ValueError(f"tokenizer: its {tokenizer.get_vocab_size()} tokens lack {missing}; use one made for BERT")
    pair = examples.second is not None
    room = max_len - (3 if pair else 2)
    if room < 2:
        raise ValueError(f"max_len = {max_len} leaves no room for text: use 8 or more")
    if not len(examples):
        raise ValueError(f"{examples.source}: no examples")
    ids_a, len_a = _token_ids(tokenizer, examples.first)
    ids_b, len_b = _token_ids(tokenizer, examples.second) if examples.second is not None else (ids_a, 0 * len_a)
    keep_a, keep_b = _cut(len_a, len_b, room) if pair else (np.minimum(len_a, room), len_b)

    used = keep_a + 2 + (keep_b + 1 if pair else 0)
    length = min(max_len, math.ceil(int(used.max()) / multiple) * multiple)
    column = np.arange(length)[None, :]
    used, in_a, start_b = used[:, None], keep_a[:, None], keep_a[:, None] + 2
    input_ids = np.full((len(examples), length), special["[PAD]"], np.int32)
    input_ids[:, 0] = special["[CLS]"]
    np.copyto(input_ids, special["[SEP]"], where=(column == in_a + 1) | (column == used - 1))
    _place(input_ids, ids_a, len_a, (column >= 1) & (column <= in_a), keep_a)
    if pair:
        _place(input_ids, ids_b, len_b, (column >= start_b) & (column < used - 1), keep_b)
    attention_mask = (column < used).astype(np.int32)
    token_type_ids = ((column >= start_b) & (column < used)).astype(np.int32)
    return Encoded(examples.task, input_ids, token_type_ids, attention_mask, examples.labels)


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int64: a permutation that depends on (count, seed, epoch) alone, the same under every numpy version."""
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")


class GlueData:
    """Training batches by step number: `batch(step)` is a pure function of (examples, batch size, seed, step).

    Each epoch visits each example once, in its own order; its last batch is filled up with repeated rows of weight 0.
    With `trim`, a batch drops the columns that are padding in all its rows, down to a multiple of `trim`: fewer tokens,
    at most L / `trim` compiled shapes. 0 keeps one shape.
    """

    def __init__(self, encoded: Encoded, batch_size: int, seed: int, *, trim: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} is below 1")
        if not len(encoded):
            raise ValueError(f"{encoded.task.name}: no training examples")
        self.encoded, self.batch_size, self.seed, self.trim = encoded, batch_size, seed, trim
        self.steps_per_epoch = math.ceil(len(encoded) / batch_size)
        self._order = functools.lru_cache(maxsize=2)(order)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._order(len(self.encoded), self.seed, epoch)[place * self.batch_size :][: self.batch_size]
        return _gather(self.encoded, rows, self.batch_size, self.trim)

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
        """Go to a state of `get_state`. Raises ValueError if it is not one."""
        step = state.get("next_index")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"data state {state!r} is not of the form {{'next_index': step}}")
        self._next = step


def batches(encoded: Encoded, *, batch_size: int, seed: int, epoch: int, trim: int = 0) -> Iterator[Batch]:
    """The batches of one training epoch, as `GlueData` orders them."""
    data = GlueData(encoded, batch_size, seed, trim=trim)
    for place in range(data.steps_per_epoch):
        yield data.batch(epoch * data.steps_per_epoch + place)


def eval_batches(encoded: Encoded, batch_size: int, *, trim: int = 0) -> Iterator[Batch]:
    """All examples once, in file order; drop the predictions whose `example_weights` are 0 and nothing else."""
    for start in range(0, len(encoded), batch_size):
        rows = np.arange(start, min(start + batch_size, len(encoded)))
        yield _gather(encoded, rows, batch_size, trim)


def _gather(encoded: Encoded, rows: np.ndarray, batch_size: int, trim: int) -> Batch:
    weights = np.zeros(batch_size, np.float32)
    weights[: len(rows)] = 1
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
    mask = encoded.attention_mask[rows]
    length = mask.shape[1]
    if trim:
        length = min(length, math.ceil(int(mask.sum(axis=1).max()) / trim) * trim)
    return {
        "input_ids": encoded.input_ids[rows, :length],
        "token_type_ids": encoded.token_type_ids[rows, :length],
        "attention_mask": mask[:, :length],
        "labels": encoded.labels[rows],
        "example_weights": weights,
    }


def _token_ids(tokenizer: "tokenizers.Tokenizer", texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All ids in a row (sum of lengths,) int32 and the lengths (N,) int64; the caller's tokenizer stays as it is."""
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids, lengths = [], []
    for start in range(0, len(texts), 8192):
        part = [e.ids for e in tokenizer.encode_batch_fast(list(texts[start : start + 8192]), add_special_tokens=False)]
        lengths += map(len, part)
        ids.append(np.fromiter((i for row in part for i in row), np.int32))
    return np.concatenate(ids), np.array(lengths, np.int64)


def _cut(len_a: np.ndarray, len_b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text (N,) that stay when the longer one always loses the next token, `b` in a tie."""
    half = room // 2
    keep_a = np.where(len_a + len_b <= room, len_a, np.minimum(len_a, np.maximum(room - len_b, room - half)))
    return keep_a, np.minimum(len_b, room - keep_a)


def _place(out: np.ndarray, ids: np.ndarray, lengths: np.ndarray, where: np.ndarray, keep: np.ndarray) -> None:
    """Write the first `keep` ids of every text into its True cells of `where` (N, L)."""
    start = np.cumsum(lengths) - lengths
    total = int(keep.sum())
    within = np.arange(total) - np.repeat(np.cumsum(keep) - keep, keep)
    out[where] = ids[np.repeat(start, keep) + within]


def _from_folder(row: Task, folder: Path, split: str, files: tuple[str, ...]) -> Examples:
    directory = folder / row.name
    if not directory.is_dir():
        there = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "nothing"
        raise ValueError(f"{directory}: no such folder. glue = {str(folder)!r} holds {there}; add {row.name}/")
    path = next((directory / name for name in files if (directory / name).is_file()), None)
    if path is not None:
        return _read(row, path)
    raw = directory / "msr_paraphrase_train.txt"
    if row.name == "MRPC" and raw.is_file():
        return _read(row, raw, keep=_mrpc_split(directory / "dev_ids.tsv", split))
    raise ValueError(f"{directory / files[0]}: no such file. The {split} split of {row.name} is read from it")


def _mrpc_split(path: Path, split: str) -> Callable[[dict[str, str]], bool]:
    """GLUE cuts its dev set out of the original training file by a published list of pairs of sentence ids."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file. It lists which pairs of msr_paraphrase_train.txt form GLUE's dev split"
        )
    pairs = {tuple(line.split("\t")[:2]) for line in _lines(path)}
    return lambda cells: ((cells["#1 ID"], cells["#2 ID"]) in pairs) == (split == "dev")


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else f"byte 0x{data[error.start]:02x}"
        raise ValueError(f"{path}, row {line}: not UTF-8 ({what}). Convert it: iconv -f ... -t UTF-8") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _read(row: Task, path: Path, keep: Callable[[dict[str, str]], bool] | None = None) -> Examples:
    """A tab-separated file without quoting (a `"` is a plain character)."""
    lines = _lines(path)
    header = list(row.header) or (lines[0].split("\t") if lines else [])
    begin = 0 if row.header else 1
    if len(lines) <= begin:
        raise ValueError(f"{path}: empty, {len(lines)} rows. Download the {row.name} file again")
    for column in (*row.text, row.label):
        if column not in header:
            raise ValueError(f"{path}, row 1: no column {column!r}; it has {', '.join(header)}. Name the columns so")
    texts: tuple[list[str], ...] = tuple([] for _ in row.text)
    labels: list[float] = []
    skipped = 0
    for number, line in enumerate(lines[begin:], begin + 1):
        values = line.split("\t")
        if len(values) < len(header) and row.skip_short_rows:
            skipped += 1
            continue
        if len(values) < len(header) or any(values[len(header) :]):
            raise ValueError(
                f"{path}, row {number}: {len(values)} tab-separated columns, expected {len(header)}: {line[:60]!r}. "
                "Repair or remove the row"
            )
        cells = dict(zip(header, values))
        if keep is not None and not keep(cells):
            continue
        labels.append(_label(row, cells[row.label], f"{path}, row {number}", coded=row.coded))
        for column, out in zip(row.text, texts):
            out.append(cells[column])
    if not labels:
        raise ValueError(f"{path}: no usable rows ({skipped} too short). Download the {row.name} file again")
    return _examples(row, str(path), texts, labels, skipped)


def _examples(row: Task, source: str, texts: Sequence[list[str]], labels: list[float], skipped: int = 0) -> Examples:
    kind = np.float32 if row.regression else np.int32
    return Examples(row, source, texts[0], texts[1] if len(texts) > 1 else None, np.array(labels, kind), skipped)


def _label(row: Task, value: Any, where: str, *, coded: bool) -> float:
    """A class number or a score, checked. Raises ValueError for anything outside the task's set: -1, NaN, a typo."""
    if row.regression:
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        low, high = row.bounds
        if low <= score <= high:
            return score
        raise ValueError(f"{where}: score {value!r} is not a number in [{low:g}, {high:g}]. Repair or remove the row")
    allowed = [str(i) for i in range(len(row.labels))] if coded else list(row.labels)
    if str(value) in allowed:
        return allowed.index(str(value))
    meaning = ", ".join(f"{a} ({n})" for a, n in zip(allowed, row.labels)) if coded else ", ".join(allowed)
    why = " (-1 marks a test set without labels)" if str(value) == "-1" else ""
    raise ValueError(f"{where}: label {value!r}{why} is not one of {meaning}. Repair or remove the row")


def _from_hub(row: Task, glue: str, split: str, revision: str) -> Examples:
    import datasets

    source = f"{glue}/{row.hub}/{split}" + (f"@{revision}" if revision else "")
    try:
        data = datasets.load_dataset(glue, row.hub, split=split, revision=revision or None)
    except Exception as error:  # the hub client raises a dozen unrelated types
        why = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"glue = {glue!r} is no local folder, and the hub gave no {source}: {why[0]}. "
            "Check the name, the revision and the network, or give the folder of a glue_data/ download"
        ) from error
    if not isinstance(data, datasets.Dataset):
        raise ValueError(f"{source}: the hub gave a {type(data).__name__}, expected one split")
    columns = (*(row.hub_text or row.text), "label")
    if missing := [c for c in columns if c not in data.column_names]:
        raise ValueError(f"{source}: no column {missing[0]!r}; it has {', '.join(data.column_names)}. Use nyu-mll/glue")
    names = getattr(data.features["label"], "names", None)
    if not row.regression and names is not None and tuple(names) != row.labels:
        raise ValueError(f"{source}: classes are {', '.join(names)}, expected {', '.join(row.labels)} in this order")
    cells = data.select_columns(list(columns)).to_dict()
    assert isinstance(cells, dict)
    if not cells["label"]:
        raise ValueError(f"{source}: empty, 0 rows. Use nyu-mll/glue")
    labels = [_label(row, v, f"{source}, row {i}", coded=True) for i, v in enumerate(cells["label"])]
    texts = [cells[column] for column in columns[:-1]]
    for column, values in zip(columns, texts):
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(f"{source}, row {i}: column {column!r} holds {value!r}, expected a text")
    return _examples(row, source, texts, labels)
