"""Tables with the texts and labels of a task: CSV, TSV, JSON Lines and Parquet files, or a dataset.

Errors are one-line UserErrors that name the file, the line or row, the value and the remedy. Lines count from 1, the
header's included; rows of Parquet files and datasets from 0.
"""

import difflib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.data.separated_values import separated_rows
from jaxprune.data.text_lines import whole_lines
from jaxprune.errors import UserError
from jaxprune.files import parse_json


class Table(NamedTuple):
    """Some columns of N rows."""

    source: str
    """File, or dataset, configuration, split and revision."""
    unit: str
    """What `numbers` count: lines or rows."""
    numbers: Sequence[int]
    """(N,) where each row stands."""
    columns: dict[str, list[Any]]
    """Column -> its N values; None where a row has none."""

    def where(self, index: int) -> str:
        """Where a row stands, for errors."""
        return f"{self.source}, {self.unit} {self.numbers[index]}"


def read_table(path: str, columns: Sequence[str]) -> Table:
    """The `columns` of a file, read by its suffix: text is UTF-8, CSV and TSV have a header and quote with `\"`."""
    file = Path(path).expanduser()
    if file.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: give a file that ends in {', '.join(FORMATS)}, or set dataset to read a dataset")
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    return _filled(FORMATS[file.suffix.lower()](file, columns))


def read_dataset(name: str, subset: str, split: str, revision: str, columns: Sequence[str]) -> Table:
    """The `columns` of a split of a dataset: a hub name, a folder that `datasets` loads, or one that it saved."""
    import datasets

    source = "/".join(filter(None, (name, subset, split))) + (f"@{revision}" if revision else "")
    try:
        if (Path(name).expanduser() / "dataset_dict.json").is_file():
            data = datasets.DatasetDict.load_from_disk(str(Path(name).expanduser())).get(split)
        else:
            data = datasets.load_dataset(name, subset or None, split=split, revision=revision or None)
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise UserError(f"dataset = {name!r}: no {source}: {reason[0]}. Check the names and the network") from error
    if not isinstance(data, datasets.Dataset):
        raise UserError(f"dataset = {name!r}: has no split {split!r}; name one in train and dev")
    _check_columns(source, data.column_names, columns)
    cells = {column: _named(data.features[column], data[column][:]) for column in columns}
    return _filled(Table(source, "row", range(len(data)), cells))


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 file without their ends, and without blank ones at its end; only a newline ends a line."""
    lines = [line.removesuffix("\r") for line in _text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = b"".join(whole_lines(file, path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        reason = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else f"byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}, row {row}: not UTF-8 ({reason}). Convert it: iconv -f ... -t UTF-8") from None


def _csv(path: Path, columns: Sequence[str], separator: str) -> Table:
    reader = separated_rows(io.StringIO(_text(path), newline=""), separator, lambda line: f"{path}, line {line}")
    first = next(reader, None)
    if first is None:
        return Table(str(path), "line", [], {})
    _check_columns(str(path), first[1], columns)
    rows, at = [*reader], {column: first[1].index(column) for column in columns}
    cells = {column: [row[i] for _, row in rows] for column, i in at.items()}
    return Table(str(path), "line", [line for line, _ in rows], cells)


def _jsonl(path: Path, columns: Sequence[str]) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, object_pairs_hook=_once)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}). Write one object per line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: holds {str(row)[:40]!r}. Write an object per line: {{...}}")
        rows.append(row)
        numbers.append(number)
    if rows:
        _check_columns(str(path), dict.fromkeys(key for row in rows for key in row), columns)
    return Table(str(path), "line", numbers, {column: [row.get(column) for row in rows] for column in columns})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"two keys {_repeated(key for key, _ in pairs)!r}")
    return made


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(str(path), file.schema_arrow.names, columns)
            table = file.read(columns=[*columns])
        table.validate(full=True)  # of a damaged file, pyarrow ends the process where it is read
        values = {column: table[column].to_pylist() for column in columns}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}). Write it again") from None
    return Table(str(path), "row", range(len(table)), values)


FORMATS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".csv": lambda path, columns: _csv(path, columns, ","),
    ".tsv": lambda path, columns: _csv(path, columns, "\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
"""Suffix -> reader."""


def _filled(table: Table) -> Table:
    if not len(table.numbers):
        raise UserError(f"{table.source}: empty, no examples. Name a file that holds some")
    return table


def _check_columns(source: str, names: Iterable[str], columns: Sequence[str]) -> None:
    names = [*names]
    if repeated := _repeated(names):
        raise UserError(f"{source}: two columns are called {repeated!r}. Rename one")
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"{source}: no column {column!r}; {hint}It has {', '.join(names)}")


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _named(feature: Any, values: Sequence[Any]) -> list[Any]:
    """Values of a dataset's column, class numbers as their names; -1, which marks an unknown label, as None."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is None:
        return [*values]
    of = dict(enumerate(names))
    return [[of.get(v) for v in value] if isinstance(value, list) else of.get(value) for value in values]
