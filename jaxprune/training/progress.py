"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxprune.training.processes import is_first

log = logging.getLogger("jaxprune")


class Bar:
    """A progress bar on a terminal, below the one that is open there; elsewhere a log line every half minute."""

    _open: ClassVar[Progress | None] = None

    def __init__(self, title: str, *, total: int, done: int, quiet_seconds: float = 30.0):
        self._title, self._total, self._quiet_seconds = title, total, quiet_seconds
        self._said = time.monotonic()
        self._progress = Bar._open
        self._outer = False
        if self._progress is None and sys.stderr.isatty() and is_first():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self._outer, Bar._open = True, self._progress
            self._progress.start()
        if self._progress:
            self._task = self._progress.add_task(title, total=total, completed=done, text="")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer and self._progress:
            Bar._open = None
            self._progress.stop()
        elif self._progress:
            self._progress.remove_task(self._task)

    def update(self, step: int, text: str) -> None:
        """Show `step` and a short text."""
        if self._progress:
            self._progress.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._said >= self._quiet_seconds:
            self._said = time.monotonic()
            log.info("%s %d/%d  %s", self._title, step, self._total, text)
