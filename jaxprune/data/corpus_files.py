"""Files of a local corpus: which there are, and a reader per format.

Readers yield the texts of a file's documents. Errors are one-line UserErrors that name the file, the line, row or byte,
the value and the remedy.
"""

import difflib
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxprune.config.sections import SourceConfig
from jaxprune.data.bucket import AnyPath, any_path, matches
from jaxprune.data.corpus_tables import arrow, comma_separated, missing_field, parquet, tab_separated
from jaxprune.data.text_lines import COMPRESSIONS, lines, one_line
from jaxprune.errors import UserError
from jaxprune.files import parse_json


def jsonl(path: AnyPath, field: str) -> Iterator[str]:
    """Lines of a JSON Lines file, one object each."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:  # an integer of 5,000 digits is a ValueError
            raise UserError(f"{path}:{number}: not JSON ({one_line(error)}); one object per line is needed") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: holds {type(row).__name__}, not an object like {{{field!r}: ...}}")
        if field not in row:
            raise missing_field(f"{path}:{number}", field, row)
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{path}:{number}: {field!r} holds {type(text).__name__} {str(text)[:40]!r}, not text")
        yield text or ""


MAX_CHARS = 1 << 22
"""Of a document that its file may never end, line ends counted: longer than books are. There it ends, between two
lines, and what follows is another document, so that memory has a bound."""

_ARTICLE = re.compile(r"^ ?= [^=].*? = *$")
_HEADING = re.compile(r"^ ?(?:= )+(.*?)(?: =)+ *$")


def text(path: AnyPath, field: str) -> Iterator[str]:
    """Blocks of a plain text file, parted by blank lines (BERT's own format: a sentence a line, a blank line between).

    A file that starts with a WikiText heading (` = Title = `) is parted at such headings instead; one that has neither,
    every MAX_CHARS.
    """
    block: list[str] = []
    size, wikitext = 0, None
    for _, line in lines(path):
        blank = not line.strip()
        if wikitext is None and not blank:
            wikitext = bool(_ARTICLE.match(line))
        ends = bool(_ARTICLE.match(line)) if wikitext else blank
        if block and (ends or size + len(line) >= MAX_CHARS):
            yield "\n".join(block)
            block, size = [], 0
        if not blank:
            block.append(_HEADING.sub(r"\1", line) if wikitext else line)
            size += len(line) + 1
    if block:
        yield "\n".join(block)


# The title's own quotes may be bare: it ends at a quote before another attribute or the tag's end.
_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+[\w:-]+="|\s*/?>\s*$)')


def wikiextractor(path: AnyPath, field: str) -> Iterator[str]:
    """Articles of a WikiExtractor file, `<doc ...>` blocks or JSON lines; the repeated title line is left out.

    One above MAX_CHARS is parted there.
    """
    block: list[str] | None = None
    start, size, title = 0, 0, ""
    for number, line in lines(path):
        if block is None:
            if line.startswith("{"):
                yield from jsonl(path, field)
                return
            if line.startswith("<doc"):
                match = _TITLE.search(line)
                block, start, size, title = [], number, 0, html.unescape(match[1]).strip() if match else ""
            elif line.strip():
                raise UserError(f"{path}:{number}: text outside <doc ...> blocks; set format to what the file is")
        elif line.startswith("</doc>"):
            yield "\n".join(block)
            block = None
        elif number > start + 1 or html.unescape(line).strip() != title:
            if block and size + len(line) >= MAX_CHARS:
                yield "\n".join(block)
                block, size = [], 0
            block.append(line)
            size += len(line) + 1
    if block is not None:
        raise UserError(f"{path}:{start}: <doc> is never closed; the file is cut off")


FORMATS: dict[str, Callable[[AnyPath, str], Iterator[str]]] = {
    "parquet": parquet,
    "arrow": arrow,
    "csv": comma_separated,
    "tsv": tab_separated,
    "jsonl": jsonl,
    "text": text,
    "wikiextractor": wikiextractor,
}
"""Format name -> reader."""

_BINARY = ("parquet", "arrow")  # formats with a compression of their own: not read from packed files

SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}
"""File name suffix (before .gz and the like) -> format; WikiExtractor's files are named wiki_00, wiki_01, ..."""

_NOT_TEXT = re.compile(r"\..*|(dataset_info|dataset_dict|state)\.json|cache-.*\.arrow")
"""Hidden files, and what `datasets` saves beside its tables."""


class Listing(NamedTuple):
    """Files of a local source, sorted."""

    files: list[tuple[AnyPath, str]]
    """Each with its format."""
    unread: list[AnyPath]
    """Files whose format no reader knows."""


def _format_of(path: AnyPath) -> str | None:
    """Format that a file's name tells, or None."""
    name = Path(path.name)
    packed = name.suffix.lower() in COMPRESSIONS
    name = Path(name.stem) if packed else name
    kind = "wikiextractor" if re.fullmatch(r"wiki_\d+", name.name) else SUFFIXES.get(name.suffix.lower())
    return None if packed and kind in _BINARY else kind


def label(source: SourceConfig) -> str:
    """How messages name a source."""
    return f"source {source.kind}" + (f" {source.path}" if source.path else "")


def listing(source: SourceConfig) -> Listing:
    """Files of a local source. Errors: UserError for an unknown format, a missing path, an empty or unknown file."""
    if source.format not in ("auto", *FORMATS):
        near = difflib.get_close_matches(source.format, ("auto", *FORMATS), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(('auto', *FORMATS))}"
        raise UserError(f"{label(source)}: unknown format = {source.format!r}; {hint}")
    root = any_path(source.path)
    if root.is_dir():
        paths = sorted(path for path in root.rglob("*") if path.is_file() and not _NOT_TEXT.fullmatch(path.name))
    else:
        paths = [root] if root.is_file() else matches(root)
    if not paths and not root.is_dir():
        raise UserError(f"{label(source)}: no such file, folder or glob; correct sources.path")
    formats = [(path, _format_of(path) if source.format == "auto" else source.format) for path in paths]
    readable = [(path, name) for path, name in formats if name]
    if not readable:
        known = ", ".join(SUFFIXES)
        raise UserError(f"{label(source)}: no {known} or WikiExtractor (wiki_00) file; set format if names differ")
    for path, _ in readable:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; remove it or give a file with text")
    return Listing(readable, [path for path, name in formats if not name])


def unread_files(source: SourceConfig) -> str:
    """One line that counts and names the files of a local source that are not read; "" if there are none."""
    unread = listing(source).unread if source.kind == "local" else []
    if not unread:
        return ""
    names = ", ".join(path.name for path in unread[:5]) + (", ..." if len(unread) > 5 else "")
    return f"{label(source)}: {len(unread)} file(s) of a format that no reader knows are not read: {names}"


def size_hint(source: SourceConfig) -> int:
    """Bytes of a source, roughly, other columns of tables among them; 0 if unknown. Serves the progress bar."""
    if source.kind != "local" or source.max_documents:
        return source.max_chars
    total = 0
    for path, name in listing(source).files:
        if name == "parquet":
            from pyarrow.parquet import read_metadata

            with path.open("rb") as file:
                meta = read_metadata(file)
            total += sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
        else:
            total += path.stat().st_size * (3 if path.suffix.lower() in COMPRESSIONS else 1)
    return min(total, source.max_chars or total)
