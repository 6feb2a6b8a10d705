"""Documents in a column of a table: Parquet, Arrow, CSV and TSV files.

Errors are one-line UserErrors that name the file, the line or column, the value and the remedy.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from jaxprune.data.bucket import AnyPath
from jaxprune.data.separated_values import separated_rows
from jaxprune.data.text_lines import lines, one_line
from jaxprune.errors import UserError

_BATCH_ROWS = 256
_SAFE_BYTES, _SAFE_RATIO = 256 << 20, 100
"""A row group may take so much memory in any case, or so many times the room of the file."""


def missing_field(where: str, field: str, fields: Iterable[str]) -> UserError:
    """The error for a text column that is not there: names the columns there are, and the nearest."""
    names = sorted(fields)
    near = difflib.get_close_matches(field, names, 1)
    hint = f"; did you mean text_field: {near[0]}?" if near else "; set text_field"
    there = ", ".join(f"{name:.40}" for name in names) or "none"
    return UserError(f"{where}: no column text_field = {field!r}; there are {there}{hint}")


def parquet(path: AnyPath, field: str) -> Iterator[str]:
    """Rows of a Parquet file, a row group in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw:
            _check_text(path, pyarrow.parquet.read_schema(raw), field)
            # A text that is there many times is read once: else a batch of long ones takes memory for each.
            with pyarrow.parquet.ParquetFile(raw, read_dictionary=[field]) as file:
                _check_size(path, file.metadata)
                yield from _texts(file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]), field)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: column {field!r} holds bytes that are not UTF-8 ({error.reason})") from error


def arrow(path: AnyPath, field: str) -> Iterator[str]:
    """Rows of an Arrow or Feather file, a batch in memory at a time: the stream that `datasets` saves, or a file."""
    import pyarrow

    try:
        with path.open("rb") as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            with pyarrow.ipc.open_file(raw) if is_file else pyarrow.ipc.open_stream(raw) as reader:
                _check_text(path, reader.schema, field)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
                yield from _texts(batches, field)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Arrow file ({one_line(error)}); write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: column {field!r} holds bytes that are not UTF-8 ({error.reason})") from error


def _check_text(path: AnyPath, schema: Any, field: str) -> None:
    import pyarrow.types as kinds

    if field not in schema.names:
        raise missing_field(str(path), field, schema.names)
    kind = schema.field(field).type
    value = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_string(value) or kinds.is_large_string(value) or kinds.is_string_view(value)):
        raise UserError(f"{path}: column {field!r} holds {kind}, not text; set text_field")


def _check_size(path: AnyPath, meta: Any) -> None:
    packed = path.stat().st_size
    for number in range(meta.num_row_groups):  # not by column: of a damaged file, pyarrow ends the process there
        if (size := meta.row_group(number).total_byte_size) > max(_SAFE_BYTES, _SAFE_RATIO * packed):
            raise UserError(f"{path}: {packed:,} bytes unpack to {size:,} at once; write smaller row groups")


def _validate(column: Any) -> None:
    """Raise where a damaged file left a column that pyarrow ends the process over when it is read."""
    try:
        column.validate(full=True)
    except ValueError as error:
        if "UTF8" not in str(error):  # said by who reads it, with the byte
            raise


def _texts(batches: Iterable[Any], field: str) -> Iterator[str]:
    for batch in batches:
        column = batch.column(field)
        _validate(column)
        for text in column:
            yield text.as_py() or ""


def comma_separated(path: AnyPath, field: str) -> Iterator[str]:
    """Rows of a CSV file with a header; a value with a comma, quote or line break stands in `\"`."""
    return _separated(path, field, ",")


def tab_separated(path: AnyPath, field: str) -> Iterator[str]:
    """Rows of a TSV file with a header, quoted as in CSV."""
    return _separated(path, field, "\t")


def _separated(path: AnyPath, field: str, separator: str) -> Iterator[str]:
    reader = separated_rows((line + "\n" for _, line in lines(path)), separator, lambda line: f"{path}:{line}")
    _, header = next(reader, (1, []))
    if field not in header:
        raise missing_field(str(path), field, header)
    column = header.index(field)
    for _, cells in reader:
        yield cells[column]
