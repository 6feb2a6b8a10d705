"""Progress of a long pass over text: a bar on a terminal, else a log line now and then."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)
_EVERY = 30.0  # seconds between log lines


class Advance(Protocol):
    """Reports that so many more documents and characters are done."""

    def __call__(self, documents: int, chars: int) -> None: ...


@contextmanager
def progress(title: str, total_chars: int, documents: int = 0, chars: int = 0) -> Iterator[Advance]:
    """Yield a function to call with what is done, besides what was done before; `total_chars` 0 means unknown."""
    if sys.stderr.isatty():
        with _bar(title, total_chars, documents, chars) as advance:
            yield advance
        return
    start = last = time.monotonic()
    before, done = chars, [documents, chars]

    def advance(documents: int, chars: int) -> None:
        nonlocal last
        done[0] += documents
        done[1] += chars
        if (now := time.monotonic()) - last >= _EVERY:
            last = now
            part = f"{min(1.0, done[1] / total_chars):.0%} " if total_chars else ""
            log.info("%s: %s%d documents, %.1f MB, %.2f MB/s", title, part, *_rates(done, before, now - start))

    yield advance
    log.info("%s: done, %d documents, %.1f MB, %.2f MB/s", title, *_rates(done, before, time.monotonic() - start))


def _rates(done: list[int], before: int, seconds: float) -> tuple[int, float, float]:
    return done[0], done[1] / 1e6, (done[1] - before) / 1e6 / max(seconds, 1e-9)


@contextmanager
def _bar(title: str, total_chars: int, documents: int, chars: int) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.fields[documents]:,} documents"),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total_chars or None, completed=chars, documents=documents)
        count = documents

        def advance(documents: int, chars: int) -> None:
            nonlocal count
            count += documents
            bar.update(task, advance=chars, documents=count)

        yield advance
        bar.update(task, total=bar.tasks[0].completed)
