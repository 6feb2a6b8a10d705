"""The one training loop, for pre-training and fine-tuning, pruned or not."""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.config.sections import TrainConfig
from jaxprune.errors import Diverged, Preempted
from jaxprune.progress import Progress
from jaxprune.pruning.masks import sparsity as sparsity_of
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program
from jaxprune.training.processes import Stop
from jaxprune.training.records import Records
from jaxprune.training.state import TrainState
from jaxprune.training.steps import added, means
from jaxprune.training.watchdog import Watchdog

_REMEDY = "lower the learning rate and start in another --workdir"


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
    """A checkpointable iterator, as grain's."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Window:
    """Sums of the metrics since the last line of the log; part of a checkpoint, so that a resumed run logs the same."""

    def __init__(self, saved: Mapping[str, Any] | None):
        self.steps: int = saved["steps"] if saved else 0
        self.sums: dict[str, Any] = dict(saved["sums"]) if saved else {}

    def add(self, metrics: dict[str, Any]) -> None:
        """Take in the metrics of one more step, on the host."""
        self.steps, self.sums = self.steps + 1, added(self.sums, metrics)

    def clear(self) -> None:
        """Begin the next line of the log."""
        self.steps, self.sums = 0, {}

    def saved(self) -> dict[str, Any]:
        """What JSON can hold, to begin another with."""
        return {"steps": self.steps, "sums": self.sums}


def fit(
    state: TrainState,
    batches: Batches,
    program: Program,
    *,
    key: jax.Array,
    steps: int,
    plan: Mapping[int, Any],
    terms: Mapping[str, float],
    put: Callable[[dict[str, np.ndarray]], Any],
    cfg: TrainConfig,
    records: Records,
    checkpoints: Checkpoints,
    progress: Progress,
    frozen: Any = (),
    window: Window | None = None,
    position: Mapping[str, Any] | None = None,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    learning_rate: Callable[[int], float] | None = None,
    tokens_per_step: int = 0,
) -> TrainState:
    """Train from `state.step` to `steps` and return the last state: dense, then pruned as `plan` says, then recovery.

    After step i: check that it was finite, prune if the plan names i, log, evaluate, save, stop if asked to; a
    resumed run goes through the same sequence. `terms`: the loss's, and their weights; `frozen`: see `LossFn`. `window`
    goes on from a checkpoint's; `position` is saved beside the place in the data. `progress` shows the newest step
    whose metrics are on the host: the device never waits for it. Raises Preempted or Diverged.
    """
    step = int(state.step)
    window = window or Window(None)
    sparsity = sparsity_of(state.masks)
    in_flight: deque[tuple[int, dict[str, Any]]] = deque()
    ahead = _steps_in_flight()
    since, unlogged = time.monotonic(), 0

    def drain(limit: int) -> None:
        nonlocal unlogged
        while len(in_flight) > limit:
            number, metrics = in_flight.popleft()
            metrics = jax.device_get(metrics)
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(metrics)):
                raise Diverged(f"step {number}: loss or gradient is not finite; {_REMEDY}")
            window.add(metrics)
            unlogged += 1
            rate = f", {tokens_per_step * progress.rate:,.0f} tokens/s" if tokens_per_step and progress.rate else ""
            progress.stage = "training"
            progress.update(number, f"loss {means(metrics, terms)['loss']:.3f}, sparsity {sparsity:.3f}{rate}")

    def prune() -> None:
        nonlocal state, sparsity
        with progress.during("pruning"):
            _check_finite(state, step)
            state, report = program.prune(state, program.amounts(plan[step]), key)
            sparsity = records.pruned(step, plan[step], report)

    def log() -> None:
        nonlocal since, unlogged
        values = means(window.sums, terms) | {"sparsity": sparsity}
        if learning_rate is not None:
            values["learning_rate"] = learning_rate(step - 1)
        values["tokens_per_second"] = tokens_per_step * unlogged / (time.monotonic() - since)
        records.metrics(step, values)
        window.clear()
        since, unlogged = time.monotonic(), 0

    first = step + 1
    progress.begin(steps, step)
    progress.stage = "compiling"
    with Stop() as stop, Watchdog(progress, cfg.stall_minutes):
        if step == 0 and 0 in plan:
            prune()
        while step < steps:
            state, metrics = program.train(state, frozen, put(next(batches)), key)
            step += 1
            if step == first:
                _give_back()
            in_flight.append((step, metrics))
            last, stopping = step == steps, stop.requested(step)
            log_now = step % cfg.log_every == 0 or last
            eval_now = evaluate is not None and (last or (cfg.eval_every > 0 and step % cfg.eval_every == 0))
            save_now = last or stopping or step % cfg.save_every == 0
            drain(0 if step in plan or log_now or eval_now or save_now else ahead)
            if step in plan:
                prune()
            if log_now:
                log()
            if evaluate is not None and eval_now:
                before = time.monotonic()
                with progress.during("evaluating"):
                    records.metrics(step, {f"dev_{name}": value for name, value in evaluate(state).items()})
                since += time.monotonic() - before
            if save_now:
                with progress.during("saving"):
                    _check_finite(state, step)
                    beside = {"batches": batches.get_state(), "window": window.saved(), **(position or {})}
                    checkpoints.save(step, state, beside, records.content(), wait=last or stopping)
            if stopping and not last:
                raise Preempted(f"step {step} of {steps} is saved; run the same command to resume")
    return state


def _give_back() -> None:
    """Give the system what compiling took and freed: glibc keeps it, 0.4 GB for six layers, beside the step's own."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _steps_in_flight() -> int:
    # Un-awaited steps can deadlock on simulated CPU devices; an accelerator is kept busy by two.
    if jax.default_backend() != "cpu":
        return 2
    return 1 if jax.device_count() == 1 else 0


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _check_finite(state: TrainState, step: int) -> None:
    if not _all_finite(state.params):
        raise Diverged(f"step {step}: a weight is not finite, so nothing was pruned or saved; {_REMEDY}")
