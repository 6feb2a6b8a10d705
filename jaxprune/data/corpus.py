"""Documents of a corpus: from the hub, from files on a disk or in a bucket, or from what is installed."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from jaxprune.config.sections import SourceConfig
from jaxprune.data.corpus_files import FORMATS, label, listing
from jaxprune.data.corpus_tables import missing_field
from jaxprune.errors import UserError


def documents(source: SourceConfig) -> Iterator[str]:
    """Texts of a source's documents, in order, cleaned of NUL, byte order marks and lone surrogates; none is blank.

    Errors: UserError on one line that names the file and the line, row or byte, the value and the remedy, also when the
    source holds no text at all.
    """
    return itertools.chain.from_iterable(Reader((source,)).rows())


class Reader:
    """Documents of several sources in order, which can go on from where another reader of the same sources stood."""

    def __init__(self, sources: Sequence[SourceConfig], state: dict[str, Any] | None = None) -> None:
        self.sources = sources
        self.blank = 0
        """Blank documents left out so far."""
        self._position: dict[str, Any] = {"source": 0, "file": 0, "row": 0, "documents": 0, "chars": 0}
        self._stream: dict[str, Any] | None = None  # its position as `datasets` has it
        self._rows: Any = None  # its dataset, while one streams
        if state is not None:
            self._position, self.blank, self._stream = dict(state["position"]), state["blank"], state["stream"]

    def state(self) -> dict[str, Any]:
        """Where the reader stands, after the last row that `rows` gave; made of what JSON can hold."""
        stream = self._stream if self._rows is None else self._rows.state_dict()
        return {"position": dict(self._position), "blank": self.blank, "stream": stream}

    def rows(self) -> Iterator[list[str]]:
        """The documents of each row: one, none if it is blank, or one for each line (`paragraphs`)."""
        position = self._position
        for source in self.sources[position["source"] :]:
            if not self._full(source):
                for text in self._raw(source):
                    position["row"] += 1
                    yield self._take(source, text)
                    if self._full(source):
                        break
            if not position["documents"]:
                raise UserError(f"{label(source)}: holds no text; give a corpus with at least two documents")
            position.update(source=position["source"] + 1, file=0, row=0, documents=0, chars=0)
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
        return (
            0 < source.max_documents <= self._position["documents"] or 0 < source.max_chars <= self._position["chars"]
        )

    def _take(self, source: SourceConfig, text: str) -> list[str]:
        taken = []
        for part in text.splitlines() if source.paragraphs else (text,):
            if part := clean(part):
                taken.append(part)
                self._position["documents"] += 1
                self._position["chars"] += len(part)
                if self._full(source):
                    break
            else:
                self.blank += 1
        return taken

    def _raw(self, source: SourceConfig) -> Iterator[str]:
        position = self._position
        if source.kind == "hub":
            yield from self._hub(source)
        elif source.kind == "local":
            for path, name in listing(source).files[position["file"] :]:
                yield from itertools.islice(FORMATS[name](path, source.text_field), position["row"], None)
                position.update(file=position["file"] + 1, row=0)
        else:
            from jaxprune.data.builtin import harvest

            for document in harvest(source.max_chars)[position["row"] :]:
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
                rows = rows.skip(self._position["row"]) if self._position["row"] < len(rows) else ()
            elif self._stream is not None:
                rows.load_state_dict(self._stream)
            self._rows = rows if source.streaming else None
            for row in rows:
                if not isinstance(row, dict) or source.text_field not in row:
                    raise missing_field(label(source), source.text_field, row if isinstance(row, dict) else ())
                text = row[source.text_field]
                if text is not None and not isinstance(text, str):
                    raise UserError(
                        f"{label(source)}: {source.text_field!r} holds {type(text).__name__}, not text; set text_field"
                    )
                yield text or ""
        except UserError:
            raise
        except Exception as error:  # `datasets` and the hub's client raise many types
            raise UserError(f"{label(source)}: {_reason(error)}") from error


def clean(text: str) -> str:
    """The text without NUL, byte order marks, lone surrogates and outer white space."""
    text = text.replace("\0", "").replace("\ufeff", "").strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "ignore").decode().strip()
    return text


def _reason(error: BaseException) -> str:
    """One line from the innermost cause, which `datasets` hides, and the remedy."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    lines = [f"{type(each).__name__}: {(str(each).strip().splitlines() or [''])[0]}" for each in chain]
    text = lines[0] + (f" ({lines[-1]})" if str(chain[-1]) not in lines[0] else "")
    network = ("ConnectionError", "ConnectError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "MaxRetryError")
    if any(line.startswith(network) or "Couldn't reach" in line for line in lines):
        return f"cannot reach the hub ({text[:300]}); go online, or use kind: local with downloaded files"
    return f"{text[:400]}; check path, name, split and revision"
