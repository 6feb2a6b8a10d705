"""Documents of a corpus: from the hub, from files, or from what is installed."""

import glob
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet

from jaxprune.config import SourceConfig
from jaxprune.data.formats import FORMATS, format_of, missing_field

log = logging.getLogger(__name__)


def documents(source: SourceConfig, counts: Counter[str] | None = None) -> Iterator[str]:
    """Texts of a source's documents, in order, cleaned of NUL, byte order marks and lone surrogates; none is blank.

    `counts["blank"]` grows by each blank document left out. Errors: ValueError on one line that names the file and the
    line, row or byte, the value and the remedy, also when the source holds no text at all.
    """
    counts = Counter() if counts is None else counts
    taken = chars = 0
    for text in _raw(source):
        for part in text.splitlines() if source.paragraphs else (text,):
            part = clean(part)
            if not part:
                counts["blank"] += 1
                continue
            yield part
            taken, chars = taken + 1, chars + len(part)
            if taken == source.max_documents or 0 < source.max_chars <= chars:
                return
    if not taken:
        raise ValueError(f"{label(source)}: holds no text; give a corpus with at least two documents")


def clean(text: str) -> str:
    """The text without NUL, byte order marks, lone surrogates and outer white space."""
    text = text.replace("\0", "").replace("\ufeff", "").strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "ignore").decode().strip()
    return text


def label(source: SourceConfig) -> str:
    """How messages name a source."""
    return f"source {source.kind}" + (f" {source.path}" if source.path else "")


def files(source: SourceConfig) -> list[tuple[Path, str]]:
    """(file, format) of a local source, sorted. Errors: ValueError for a missing path, an empty or unknown file."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())  # noqa: PTH207
        if not found:
            raise ValueError(f"{label(source)}: no such file, folder or glob; correct sources.path")
    kinds = [(p, format_of(p) if source.format == "auto" else source.format) for p in found]
    known = [(p, kind) for p, kind in kinds if kind]
    if not known:
        raise ValueError(
            f"{label(source)}: no .parquet, .jsonl, .txt or WikiExtractor (wiki_00) file; set format if names differ"
        )
    for p, _ in known:
        if p.stat().st_size == 0:
            raise ValueError(f"{p}: is empty; remove it or give a file with text")
    return known


def size_hint(source: SourceConfig) -> int:
    """Bytes of text in a source, roughly; 0 if unknown. Serves the progress bar."""
    if source.kind != "local" or source.max_documents:
        return source.max_chars
    total = 0
    for path, kind in files(source):
        if kind == "parquet":
            meta = pyarrow.parquet.read_metadata(path)
            groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
            columns = [group.column(c) for group in groups for c in range(group.num_columns)]
            total += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == source.text_field)
        else:
            total += path.stat().st_size * (3 if path.suffix == ".gz" else 1)
    return min(total, source.max_chars or total)


def _raw(source: SourceConfig) -> Iterator[str]:
    if source.kind == "local":
        for path, kind in files(source):
            for _, text in FORMATS[kind](path, source.text_field):
                yield text
    elif source.kind == "hub":
        yield from _hub(source)
    else:
        from jaxprune.data.builtin import harvest

        for document in harvest(source.max_chars):
            yield document.text


def _hub(source: SourceConfig) -> Iterator[str]:
    """Rows of a dataset on the hub (or in a folder that `datasets` can load)."""
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path,
            source.name or None,
            split=source.split,
            revision=source.revision or None,
            streaming=source.streaming,
        )
        for row in rows:
            if not isinstance(row, dict) or source.text_field not in row:
                raise missing_field(label(source), source.text_field, row if isinstance(row, dict) else ())
            text = row[source.text_field]
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"{label(source)}: {source.text_field!r} holds {type(text).__name__}, not text; set text_field"
                )
            yield text or ""
    except GeneratorExit:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(label(source)):
            raise
        raise ValueError(f"{label(source)}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line from the innermost cause, which `datasets` hides, and the remedy."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    message = (str(chain[0]).strip().splitlines() or [""])[0]
    inner = (str(chain[-1]).strip().splitlines() or [""])[0]
    text = f"{type(chain[0]).__name__}: {message}"
    if len(chain) > 1 and inner and inner not in text:
        text += f" ({type(chain[-1]).__name__}: {inner})"
    names = {type(e).__name__ for e in chain}
    network = ("ConnectionError", "ConnectError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "MaxRetryError")
    if names & set(network) or any("Couldn't reach" in str(e) for e in chain):
        return f"cannot reach the hub ({text[:300]}); go online, or use kind: local with downloaded files"
    return f"{text[:400]}; check path, name, split and revision"
