"""A watch over training that stands still: it ends the process, so that whatever restarts it can."""

import faulthandler
import os
import sys
import threading
from contextlib import suppress

from jaxprune.errors import EXIT_STALLED
from jaxprune.progress import Progress, duration

_LOOKS = 60  # in the time that may pass


class Watchdog:
    """While entered, ends this process with EXIT_STALLED once `progress` has not moved for `minutes`; 0 never does.

    Before, the stacks of all threads go to standard error. What is lost are the steps since the last checkpoint. Time
    is counted in looks, not by a clock: a process that is stopped (SIGSTOP, a laptop that sleeps) has not stood still.
    """

    def __init__(self, progress: Progress, minutes: float):
        self._progress, self._seconds = progress, 60 * minutes
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        seen, looks = self._progress.moved, 0
        while not self._closed.wait(self._seconds / _LOOKS):
            moved = self._progress.moved
            seen, looks = moved, looks + 1 if moved == seen else 0
            if looks > _LOOKS:
                self._end()

    def _end(self) -> None:
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.__stderr__ or 2)
            still = f"nothing has moved for {duration(self._seconds)} while {self._progress.stage}"
            remedy = "run the same command to resume (train.stall_minutes says how long it may take)"
            print(f"jaxprune: {self._progress.title}: {still}; {remedy}", file=sys.stderr, flush=True)
        os._exit(EXIT_STALLED)
