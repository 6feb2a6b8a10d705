"""Progress of a long pass over text: a bar on a terminal, else a log line now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)
_EVERY = 30.0  # seconds between log lines


@contextmanager
def progress(title: str, total_chars: int, documents: int = 0, chars: int = 0) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the numbers of documents and characters done since its last call.

    `documents` and `chars` were done before; `total_chars` 0 means unknown.
    """
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
    logs = not sys.stderr.isatty()
    with rich.Progress(*columns, console=Console(stderr=True), disable=logs) as bar:
        number = bar.add_task(title, total=total_chars or None, completed=chars, documents=documents)
        task, start = bar.tasks[0], time.monotonic()
        logged = start

        def report(how_far: str) -> None:
            rate = (task.completed - chars) / 1e6 / max(time.monotonic() - start, 1e-9)
            counts = task.fields["documents"], task.completed / 1e6, rate
            log.info("%s: %s%d documents, %.1f MB, %.2f MB/s", title, how_far, *counts)

        def advance(documents: int, chars: int) -> None:
            nonlocal logged
            bar.update(number, advance=chars, documents=task.fields["documents"] + documents)
            if logs and time.monotonic() - logged >= _EVERY:
                logged = time.monotonic()
                report(f"{min(100, task.percentage):.0f}% " if total_chars else "")

        yield advance
        bar.update(number, total=task.completed)
        if logs:
            report("done, ")
