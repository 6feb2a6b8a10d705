"""Documents of a corpus: from the hub, from files on a disk or in a bucket, or from what is installed."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from jaxprune.config import SourceConfig
from jaxprune.data import storage
from jaxprune.data.formats import FORMATS, format_of, missing_field
from jaxprune.data.storage import Place

log = logging.getLogger(__name__)


def documents(source: SourceConfig, counts: Counter[str] | None = None) -> Iterator[str]:
    """Texts of a source's documents, in order, cleaned of NUL, byte order marks and lone surrogates; none is blank.

    `counts["blank"]` grows by each blank document left out. Errors: ValueError on one line that names the file and the
    line, row or byte, the value and the remedy, also when the source holds no text at all.
    """
    reader = Reader((source,))
    before = 0
    for texts in reader.rows():
        if counts is not None:
            counts["blank"] += reader.blank - before
            before = reader.blank
        yield from texts


class Reader:
    """Documents of several sources in order, which can go on from where another reader of the same sources stood."""

    def __init__(self, sources: Sequence[SourceConfig], state: dict[str, Any] | None = None) -> None:
        self.sources = sources
        self.blank = 0
        """Blank documents left out so far."""
        self._at: dict[str, Any] = {"source": 0, "file": 0, "row": 0, "documents": 0, "chars": 0}
        self._stream: dict[str, Any] | None = None  # a place as `datasets` has it
        self._rows: Any = None  # its dataset, while one streams
        if state is not None:
            self._at, self.blank, self._stream = dict(state["at"]), state["blank"], state["stream"]

    def state(self) -> dict[str, Any]:
        """Where the reader stands, after the last row that `rows` gave; made of what JSON can hold."""
        stream = self._stream if self._rows is None else self._rows.state_dict()
        return {"at": dict(self._at), "blank": self.blank, "stream": stream}

    def rows(self) -> Iterator[list[str]]:
        """The documents of each row: one, none if it is blank, or one for each line (`paragraphs`)."""
        at = self._at
        for source in self.sources[at["source"] :]:
            if not self._full(source):
                for text in self._raw(source):
                    at["row"] += 1
                    yield self._take(source, text)
                    if self._full(source):
                        break
            if not at["documents"]:
                raise ValueError(f"{label(source)}: holds no text; give a corpus with at least two documents")
            at.update(source=at["source"] + 1, file=0, row=0, documents=0, chars=0)
            self._rows = self._stream = None

    def chunks(self, chars: int) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Documents of at least `chars` characters together, but for the last, with the state after them."""
        chunk: list[str] = []
        held = 0
        for texts in self.rows():
            chunk += texts
            held += sum(map(len, texts))
            if held >= chars:
                yield chunk, self.state()
                chunk, held = [], 0
        if chunk:
            yield chunk, self.state()

    def _full(self, source: SourceConfig) -> bool:
        return 0 < source.max_documents <= self._at["documents"] or 0 < source.max_chars <= self._at["chars"]

    def _take(self, source: SourceConfig, text: str) -> list[str]:
        taken = []
        for part in text.splitlines() if source.paragraphs else (text,):
            if part := clean(part):
                taken.append(part)
                self._at["documents"] += 1
                self._at["chars"] += len(part)
                if self._full(source):
                    break
            else:
                self.blank += 1
        return taken

    def _raw(self, source: SourceConfig) -> Iterator[str]:
        at = self._at
        if source.kind == "hub":
            yield from self._hub(source)
        elif source.kind == "local":
            for path, kind in files(source)[at["file"] :]:
                for _, text in itertools.islice(FORMATS[kind](path, source.text_field), at["row"], None):
                    yield text
                at.update(file=at["file"] + 1, row=0)
        else:
            from jaxprune.data.builtin import harvest

            for document in harvest(source.max_chars)[at["row"] :]:
                yield document.text

    def _hub(self, source: SourceConfig) -> Iterator[str]:
        """Rows of a dataset on the hub (or in a folder that `datasets` can load)."""
        import datasets

        try:
            rows: Any = datasets.load_dataset(
                source.path,
                source.name or None,
                split=source.split,
                revision=source.revision or None,
                streaming=source.streaming,
            )
            if not source.streaming:
                rows = rows.skip(self._at["row"]) if self._at["row"] < len(rows) else ()
            elif self._stream is not None:
                rows.load_state_dict(self._stream)
            self._rows = rows if source.streaming else None
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


def files(source: SourceConfig) -> list[tuple[Place, str]]:
    """(file, format) of a local source, sorted. Errors: ValueError for a missing path, an empty or unknown file."""
    path = storage.place(source.path) if "://" in source.path else Path(source.path).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    elif path.is_file():
        found = [path]
    else:
        found = storage.glob(path)
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
            with path.open("rb") as file:
                meta = pyarrow.parquet.read_metadata(file)
            groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
            columns = [group.column(c) for group in groups for c in range(group.num_columns)]
            total += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == source.text_field)
        else:
            total += path.stat().st_size * (3 if path.suffix == ".gz" else 1)
    return min(total, source.max_chars or total)


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
