"""Files of a local corpus: which there are, and a reader per format.

Readers yield the texts of a file's documents. Errors are one-line UserErrors that name the file, the line, row or byte,
the value and the remedy.
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

from jaxprune.config.sections import SourceConfig
from jaxprune.data.bucket import AnyPath, any_path, matches
from jaxprune.errors import UserError

_BATCH_ROWS = 256


def missing_field(where: str, field: str, fields: Iterable[str]) -> UserError:
    """The error for a text column that is not there: names the columns there are, and the nearest."""
    names = sorted(fields)
    near = difflib.get_close_matches(field, names, 1)
    hint = f"; did you mean text_field: {near[0]}?" if near else "; set text_field"
    return UserError(f"{where}: no column text_field = {field!r}; there are {', '.join(names) or 'none'}{hint}")


def parquet(path: AnyPath, field: str) -> Iterator[str]:
    """Rows of a Parquet file, a row group in memory at a time."""
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise missing_field(str(path), field, schema.names)
            kind = schema.field(field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{path}: column {field!r} holds {kind}, not text; set text_field")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield text or ""
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_line(error)}); write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: column {field!r} holds bytes that are not UTF-8 ({error.reason})") from error


def jsonl(path: AnyPath, field: str) -> Iterator[str]:
    """Lines of a JSON Lines file, one object each."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({_line(error)}); one object per line is needed") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: holds {type(row).__name__}, not an object like {{{field!r}: ...}}")
        if field not in row:
            raise missing_field(f"{path}:{number}", field, row)
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{path}:{number}: {field!r} holds {type(text).__name__} {str(text)[:40]!r}, not text")
        yield text or ""


_ARTICLE = re.compile(r"^ ?= [^=].*? = *$")
_HEADING = re.compile(r"^ ?(?:= )+(.*?)(?: =)+ *$")


def text(path: AnyPath, field: str) -> Iterator[str]:
    """Blocks of a plain text file, parted by blank lines (BERT's own format: a sentence a line, a blank line between).

    A file that starts with a WikiText heading (` = Title = `) is parted at such headings instead.
    """
    block: list[str] = []
    wikitext = None
    for _, line in _lines(path):
        blank = not line.strip()
        if wikitext is None and not blank:
            wikitext = bool(_ARTICLE.match(line))
        if (bool(_ARTICLE.match(line)) if wikitext else blank) and block:
            yield "\n".join(block)
            block = []
        if not blank:
            block.append(_HEADING.sub(r"\1", line) if wikitext else line)
    if block:
        yield "\n".join(block)


_TITLE = re.compile(r'\btitle="([^"]*)"')


def wikiextractor(path: AnyPath, field: str) -> Iterator[str]:
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
                raise UserError(f"{path}:{number}: text outside <doc ...> blocks; set format to what the file is")
        elif line.startswith("</doc>"):
            yield "\n".join(block[1:] if block and block[0].strip() == title else block)
            block = None
        else:
            block.append(line)
    if block is not None:
        raise UserError(f"{path}:{start}: <doc> is never closed; the file is cut off")


def _lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file (.gz is unpacked), without line ends and byte order mark."""
    offset = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                offset += len(line)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {offset + error.start} is not UTF-8 ({error.reason}); convert it: iconv -f LATIN1 -t UTF-8"
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


FORMATS: dict[str, Callable[[AnyPath, str], Iterator[str]]] = {
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


def _format_of(path: AnyPath) -> str | None:
    """Format that a file's name tells, or None."""
    name = path.name.removesuffix(".gz")
    if re.fullmatch(r"wiki_\d+", name):
        return "wikiextractor"
    return SUFFIXES.get(Path(name).suffix.lower())


def label(source: SourceConfig) -> str:
    """How messages name a source."""
    return f"source {source.kind}" + (f" {source.path}" if source.path else "")


def files(source: SourceConfig) -> list[tuple[AnyPath, str]]:
    """(file, format) of a local source, sorted. Errors: UserError for a missing path, an empty or unknown file."""
    root = any_path(source.path)
    if root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    else:
        paths = [root] if root.is_file() else matches(root)
    if not paths and not root.is_dir():
        raise UserError(f"{label(source)}: no such file, folder or glob; correct sources.path")
    formats = [(path, _format_of(path) if source.format == "auto" else source.format) for path in paths]
    readable = [(path, name) for path, name in formats if name]
    if not readable:
        raise UserError(
            f"{label(source)}: no .parquet, .jsonl, .txt or WikiExtractor (wiki_00) file; set format if names differ"
        )
    for path, _ in readable:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; remove it or give a file with text")
    return readable


def size_hint(source: SourceConfig) -> int:
    """Bytes of text in a source, roughly; 0 if unknown. Serves the progress bar."""
    if source.kind != "local" or source.max_documents:
        return source.max_chars
    total = 0
    for path, name in files(source):
        if name == "parquet":
            with path.open("rb") as file:
                meta = pyarrow.parquet.read_metadata(file)
            groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
            columns = [group.column(c) for group in groups for c in range(group.num_columns)]
            total += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == source.text_field)
        else:
            total += path.stat().st_size * (3 if path.suffix == ".gz" else 1)
    return min(total, source.max_chars or total)
