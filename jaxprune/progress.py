"""How far work is: bars on a terminal, elsewhere a line every few seconds; nothing where `--quiet` was said."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

log = logging.getLogger("jaxprune")

SECONDS = 8.0
"""Between two lines of a log, also while a compiler or a disk keeps everything else waiting."""


class Progress:
    """Work that goes on: its title, its stage, how much of it is done, and words about it. It is shown while it is
    entered; one inside another behind that."""

    _open: ClassVar[list["Progress"]] = []
    """Outermost first."""
    _screen: ClassVar[Any] = None

    def __init__(
        self,
        title: str,
        stage: str = "",
        *,
        total: int = 0,
        done: int = 0,
        count: Callable[[int], str] = "{:,}".format,
    ):
        """`total` 0 is unknown; `done` was done before; `count` puts either into words."""
        self.title, self.stage, self.words = title, stage, ""
        self._count = count
        self.begin(total, done)

    def begin(self, total: int, done: int) -> None:
        """Count anew, as the work is known now."""
        self.total, self.done = total, done
        self._first: tuple[float, int] | None = None
        self.rate = 0.0
        """What is done in a second, since the first update: that one compiled. 0 before the second."""
        self._left: float | None = None
        self._moved = time.monotonic()

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """What goes on until the end of the block."""
        before, self.stage, self._moved = self.stage, stage, time.monotonic()
        yield
        self.stage, self._moved = before, time.monotonic()

    def update(self, done: int, words: str = "", left: float | None = None) -> None:
        """So much is done now; `words` say how it goes, `left` how many seconds it takes where the rate does not."""
        self.done, self.words, self._moved, self._left = done, words, time.monotonic(), left
        began, before = self._first = self._first or (self._moved, done)
        self.rate = (done - before) / (self._moved - began) if self._moved > began else 0.0

    def __str__(self) -> str:
        """`dense: training 120/2,000, loss 5.123, 8 min left`; `(20 s)` where nothing has moved for so long."""
        return f"{self.title}: {self.status}"

    @property
    def moved(self) -> float:
        """When it last moved, by a clock that only such times are compared on."""
        return self._moved

    @property
    def status(self) -> str:
        """All that is shown but for the title."""
        done = self._count(self.done) if self.done or self.total else ""
        counts = f"{done}/{self._count(self.total)}" if self.total else done
        still = time.monotonic() - self._moved
        seconds = (self.total - self.done) / self.rate if self.rate else 0.0
        seconds = seconds if self._left is None else max(0.0, self._left - still)
        left = f"{duration(seconds)} left" if seconds and self.done < self.total else ""
        words = ", ".join(filter(None, [" ".join(filter(None, [self.stage, counts])), self.words, left]))
        return f"{words} ({duration(still)})" if still > SECONDS / 2 else words

    def __enter__(self) -> "Progress":
        Progress._open.append(self)
        if Progress._screen is None and log.isEnabledFor(logging.INFO):
            Progress._screen = _Terminal() if sys.stderr.isatty() else _Lines()
        return self

    def __exit__(self, *_: object) -> None:
        Progress._open.remove(self)
        if Progress._screen is not None and not Progress._open:
            Progress._screen.close()
            Progress._screen = None


class _Lines:
    """A line of the log every few seconds, from a thread of its own: compiling keeps the main one."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while not self._closed.wait(SECONDS):
            log.info("%s", " > ".join(map(str, Progress._open)))

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class _Terminal:
    """A bar for all that is open, and a line about the innermost, at the foot of a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        screen, console = sys.stderr, Console(stderr=True)
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=4, transient=True, redirect_stdout=False
        )
        self._live.start()
        root = logging.getLogger().handlers
        self._handlers = [h for h in root if isinstance(h, logging.StreamHandler) and h.stream is screen]
        for handler in self._handlers:  # a line of the log goes above the bars, not through them
            handler.setStream(sys.stderr)

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table, work = Table.grid(padding=(0, 1)), [*Progress._open]
        for part in work:
            bar = ProgressBar(part.total or None, part.done, width=30, pulse=not part.total)
            table.add_row(Text(part.title, no_wrap=True, overflow="ellipsis"), bar)
        return Group(table, Text(work[-1].status if work else "", no_wrap=True, overflow="ellipsis"))

    def close(self) -> None:
        self._live.stop()
        for handler in self._handlers:
            handler.setStream(sys.stderr)


def duration(seconds: float) -> str:
    """`seconds` in the unit that people would say."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
