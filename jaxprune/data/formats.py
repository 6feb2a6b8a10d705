"""Readers of corpus files: each yields (place, text) of the documents in one file, place being "file:line" or like it.

Errors are ValueErrors on one line that name the file, the line, row or byte, and the remedy.
"""

import difflib
import gzip
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow
import pyarrow.parquet

from jaxprune.data.storage import Place

Texts = Iterator[tuple[str, str]]
_BATCH_ROWS = 256


def missing_field(place: str, field: str, fields: Iterable[str]) -> ValueError:
    """The error for a text column that is not there: names the columns there are, and the nearest."""
    names = sorted(fields)
    near = difflib.get_close_matches(field, names, 1)
    hint = f"; did you mean text_field: {near[0]}?" if near else "; set text_field"
    return ValueError(f"{place}: no column text_field = {field!r}; there are {', '.join(names) or 'none'}{hint}")


def parquet(path: Place, field: str) -> Texts:
    """Rows of a Parquet file, a row group in memory at a time."""
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise missing_field(str(path), field, schema.names)
            kind = schema.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise ValueError(f"{path}: column {field!r} holds {kind}, not text; set text_field")
            row = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield f"{path}: row {row}", text or ""
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({_line(error)}); write it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: column {field!r} holds bytes that are not UTF-8 ({error.reason})") from error


def jsonl(path: Place, field: str) -> Texts:
    """Lines of a JSON Lines file, one object each."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({_line(error)}); one object per line is needed") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: holds {type(row).__name__}, not an object like {{{field!r}: ...}}")
        if field not in row:
            raise missing_field(f"{path}:{number}", field, row)
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{path}:{number}: {field!r} holds {type(text).__name__} {str(text)[:40]!r}, not text")
        yield f"{path}:{number}", text or ""


_ARTICLE = re.compile(r"^ ?= [^=].*? = *$")
_HEADING = re.compile(r"^ ?(?:= )+(.*?)(?: =)+ *$")


def text(path: Place, field: str) -> Texts:
    """Blocks of a plain text file, parted by blank lines (BERT's own format: a sentence a line, a blank line between).

    A file that starts with a WikiText heading (` = Title = `) is parted at such headings instead.
    """
    block: list[str] = []
    start, wikitext = 1, None
    for number, line in _lines(path):
        blank = not line.strip()
        if wikitext is None and not blank:
            wikitext = bool(_ARTICLE.match(line))
        if (bool(_ARTICLE.match(line)) if wikitext else blank) and block:
            yield f"{path}:{start}", "\n".join(block)
            block = []
        if blank:
            continue
        if not block:
            start = number
        block.append(_HEADING.sub(r"\1", line) if wikitext else line)
    if block:
        yield f"{path}:{start}", "\n".join(block)


_TITLE = re.compile(r'\btitle="([^"]*)"')


def wikiextractor(path: Place, field: str) -> Texts:
    """Articles of a WikiExtractor file, `<doc ...>` blocks or JSON lines; the repeated title line is left out."""
    block: list[str] | None = None
    start, title = 0, ""
    for number, line in _lines(path):
        if block is None:
            if line.startswith("{"):
                yield from jsonl(path, field)
                return
            if line.startswith("<doc"):
                match = _TITLE.search(line)
                block, start, title = [], number, html.unescape(match[1]) if match else ""
            elif line.strip():
                raise ValueError(f"{path}:{number}: text outside <doc ...> blocks; set format to what the file is")
        elif line.startswith("</doc>"):
            yield f"{path}:{start}", "\n".join(block[1:] if block and block[0].strip() == title else block)
            block = None
        else:
            block.append(line)
    if block is not None:
        raise ValueError(f"{path}:{start}: <doc> is never closed; the file is cut off")


def _lines(path: Place) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file (.gz is unpacked), without line ends and byte order mark."""
    offset = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise ValueError(
            f"{path}: byte {place} is not UTF-8 ({error.reason}); convert it, as in: iconv -f LATIN1 -t UTF-8"
        ) from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


FORMATS: dict[str, Callable[[Place, str], Texts]] = {
    "parquet": parquet,
    "jsonl": jsonl,
    "text": text,
    "wikiextractor": wikiextractor,
}
"""Format name -> reader."""

SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}
"""File name suffix (before .gz) -> format; WikiExtractor's files are named wiki_00, wiki_01, ..."""


def format_of(path: Place) -> str | None:
    """Format that a file's name tells, or None."""
    name = path.name.removesuffix(".gz")
    if re.fullmatch(r"wiki_\d+", name):
        return "wikiextractor"
    return SUFFIXES.get(Path(name).suffix.lower())
