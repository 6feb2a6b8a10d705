"""What a run writes while it trains: JSON lines and TensorBoard files."""

import math
from typing import Any

import jax
import numpy as np

from jaxprune.pruning.interface import PruneReport
from jaxprune.pruning.names import path_of
from jaxprune.training.workdir import Workdir


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

    def pruned(self, step: int, target: Any, report: PruneReport) -> float:
        """A line of prunes.jsonl about a prune to the sparsity `target`; the sparsity that it came to."""
        counts = {name: _leaves(getattr(report, name)) for name in ("kept", "regrown", "removed", "size")}
        kept, size, regrown, removed = (
            sum(int(n) for n in counts[name].values()) for name in ("kept", "size", "regrown", "removed")
        )
        sparsity = 1 - kept / size
        record = {
            "target": target,
            "sparsity": sparsity,
            "kept": kept,
            "size": size,
            "regrown": regrown,
            "newly_pruned": removed,
            "leaves": {path: 1 - int(counts["kept"][path]) / int(n) for path, n in counts["size"].items()},
            "thresholds": {path: _plain(value) for path, value in _leaves(report.threshold).items()},
        }
        self._workdir.append("prunes.jsonl", {"step": step, **record})
        self._draw(step, {"sparsity": sparsity})
        return sparsity

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()


def _leaves(tree: Any) -> dict[str, Any]:
    """{path: value} of a tree on the host."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))}


def _plain(threshold: Any) -> Any:
    """A number, or a list of them; None where nothing is kept."""
    values = [float(x) if math.isfinite(x) else None for x in np.ravel(threshold)]
    return values[0] if np.ndim(threshold) == 0 else values
