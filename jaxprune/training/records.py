"""What a run writes while it trains: JSON lines and TensorBoard files."""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxprune.pruning.interface import PruneReport
from jaxprune.pruning.masks import pruned_share
from jaxprune.pruning.names import path_of
from jaxprune.training.workdir import Workdir

_FLUSH_SECONDS = 60.0
NAMES = ("metrics.jsonl", "prunes.jsonl")


class Records:
    """Writes metrics and prunes of one run; after a restart, continues behind `step` without doubling a line.

    `saved` is what `content` was when that step was saved: a file that no longer begins so is written again. Everything
    is written by the thread that trains: one of the clock's or the disk's moods would leave it waiting for another.
    """

    def __init__(self, workdir: Workdir, *, step: int, saved: Mapping[str, bytes] | None = None):
        self._workdir = workdir
        self._board: Any = None
        if not workdir.owner:
            return
        with _without("torch"):  # tensorboardX imports it where it is installed: seconds and memory for nothing
            from tensorboardX.event_file_writer import EventsWriter

        for name in NAMES:
            if saved and name in saved:
                workdir.rewind_to(name, saved[name])
            else:
                workdir.rewind(name, step or -1)  # from the start: a prune of step 0 is done again
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._board = EventsWriter(str(workdir / "tensorboard" / "events"), f".{os.getpid()}")
        self._flushed = time.monotonic()
        start = _events().SessionLog(status=_events().SessionLog.START)
        self._write(_events().Event(step=step + 1, session_log=start))  # hides what is drawn behind

    def content(self) -> dict[str, bytes]:
        """Name -> content of the files of lines."""
        paths = [self._workdir / name for name in NAMES] if self._workdir.owner else []
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl and a point per value in TensorBoard."""
        self._workdir.append("metrics.jsonl", {"step": step, **values})
        self._draw(step, values)

    def pruned(self, step: int, target: Any, report: PruneReport) -> float:
        """A line of prunes.jsonl about a prune to the sparsity `target`; the sparsity that it came to."""
        counts = {name: _leaves(getattr(report, name)) for name in ("kept", "regrown", "removed", "size")}
        kept, size, regrown, removed = (
            sum(int(n) for n in counts[name].values()) for name in ("kept", "size", "regrown", "removed")
        )
        sparsity = pruned_share(kept, size)
        record = {
            "target": target,
            "sparsity": sparsity,
            "kept": kept,
            "size": size,
            "regrown": regrown,
            "newly_pruned": removed,
            "leaves": {path: pruned_share(int(counts["kept"][path]), int(n)) for path, n in counts["size"].items()},
            "thresholds": plain_thresholds(report.threshold),
        }
        self._workdir.append("prunes.jsonl", {"step": step, **record})
        self._draw(step, {"sparsity": sparsity})
        return sparsity

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if not self._board:
            return
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(_events().Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:  # it waits for the disk
            self._board.flush()
            self._flushed = time.monotonic()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._board.write_event(event)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()


@contextmanager
def _without(name: str) -> Iterator[None]:
    """A block in which a package that is not imported yet cannot be."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]


def _events() -> Any:
    """The classes of TensorBoard's events."""
    from tensorboardX.proto import event_pb2

    return event_pb2


def _leaves(tree: Any) -> dict[str, Any]:
    """{path: value} of a tree on the host."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))}


def plain_thresholds(tree: Any) -> dict[str, Any]:
    """{path: number, or a list of them, or None where there is none} of a tree of thresholds."""
    return {path: _plain(value) for path, value in _leaves(tree).items()}


def _plain(threshold: Any) -> Any:
    """A number, or a list of them; None where nothing is kept."""
    values = [float(x) if math.isfinite(x) else None for x in np.ravel(threshold)]
    return values[0] if np.ndim(threshold) == 0 else values
