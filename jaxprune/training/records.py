"""What a run writes while it trains: JSON lines, TensorBoard files, a progress bar."""

import logging
import math
import sys
import time
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxprune.pruning import changed_counts, leaf_counts, smallest_kept
from jaxprune.training.processes import is_first
from jaxprune.training.state import Masks, TrainState
from jaxprune.training.workdir import Workdir

log = logging.getLogger("jaxprune")


class Records:
    """Writes metrics and prunes of one run; after a restart, continues behind `step` without doubling a line."""

    def __init__(self, workdir: Workdir, *, step: int):
        self._workdir = workdir
        self._board: Any = None
        if not workdir.owner:
            return
        from tensorboardX import SummaryWriter

        for name in ("metrics.jsonl", "prunes.jsonl"):
            workdir.rewind(name, step or -1)  # from the start: a prune of step 0 is done again
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl and a point per value in TensorBoard."""
        self._workdir.append("metrics.jsonl", {"step": step, **values})
        self._draw(step, values)

    def pruned(self, step: int, target: float, before: Masks, state: TrainState) -> None:
        """A line of prunes.jsonl: what a prune to the sparsity `target` made of the masks `before`."""
        regrown, newly_pruned = changed_counts(before, state.masks)
        counts = leaf_counts(state.masks)
        kept, size = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
        smallest = smallest_kept(_magnitudes(state.params), state.masks)
        record = {
            "target": target,
            "sparsity": 1 - kept / size,
            "kept": kept,
            "size": size,
            "regrown": regrown,
            "newly_pruned": newly_pruned,
            "leaves": {path: 1 - k / n for path, (k, n) in counts.items()},
            "smallest_kept": {path: x if math.isfinite(x) else None for path, x in smallest.items()},
        }
        self._workdir.append("prunes.jsonl", {"step": step, **record})
        self._draw(step, {"sparsity": record["sparsity"]})

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()


@jax.jit
def _magnitudes(params: Any) -> Any:
    return jax.tree.map(jnp.abs, params)


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
