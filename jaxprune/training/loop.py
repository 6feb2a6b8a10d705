"""The one training loop, for pre-training and fine-tuning, pruned or not."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.config import TrainConfig
from jaxprune.training.population import sparsity_of
from jaxprune.training.processes import Stop
from jaxprune.training.records import Bar
from jaxprune.training.state import Masks, TrainState
from jaxprune.training.steps import means

log = logging.getLogger("jaxprune")


_REMEDY = "lower the learning rate and start in another --workdir"


class Preempted(Exception):
    """SIGTERM or SIGINT arrived and the state is saved; the same command resumes. The process exits with 75."""


class Diverged(Exception):
    """Loss or gradient is not finite; nothing was saved since. The process exits with 77."""


class Kept(Protocol):
    """Where metrics and prunes are written: `Records`, or those of every member of a population."""

    def metrics(self, step: int, values: dict[str, Any]) -> None: ...
    def pruned(self, step: int, target: Any, before: Masks, state: TrainState) -> None: ...


class Saved(Protocol):
    """Where states are saved: `Checkpoints`, or those of every member of a population."""

    def save(self, step: int, state: Any, data: Any) -> None: ...
    def wait(self) -> None: ...


class Batches(Iterator[dict[str, np.ndarray]], Protocol):
    """A checkpointable iterator, as grain's."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def fit(
    state: TrainState,
    batches: Batches,
    *,
    key: jax.Array,
    steps: int,
    train_step: Callable[..., tuple[TrainState, dict[str, Any]]],
    put: Callable[[dict[str, np.ndarray]], Any],
    terms: tuple[str, ...],
    cfg: TrainConfig,
    records: Kept,
    checkpoints: Saved,
    title: str,
    plan: Mapping[int, Any] | None = None,
    prune_step: Callable[..., TrainState] | None = None,
    evaluate: Callable[[TrainState], dict[str, Any]] | None = None,
    learning_rate: Callable[[int], Any] | None = None,
    tokens_per_step: int = 0,
) -> TrainState:
    """Train from `state.step` to `steps` and return the last state.

    After step i: check that it was finite, prune if the plan names i, log, evaluate, save, stop if asked to; a
    resumed run goes through the same sequence. train_step(state, batch, key), prune_step(state, sparsity, key) and
    evaluate(state) are compiled by the caller. Raises Preempted or Diverged.
    A population (population.py) goes through as one state: what is a number for a run is an array (M,) then, `key`
    and the sparsities of `plan` too, and `records` and `checkpoints` are those of its members.
    """
    plan = plan or {}
    step = int(np.asarray(state.step).max())
    ahead = _steps_in_flight()
    in_flight: deque[tuple[int, dict[str, Any]]] = deque()
    window: list[dict[str, Any]] = []
    sparsity = sparsity_of(state)
    since, shown = time.monotonic(), {}

    def drain(limit: int) -> None:
        while len(in_flight) > limit:
            done, metrics = in_flight.popleft()
            metrics = jax.device_get(metrics)
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(metrics)):
                raise Diverged(f"step {done}: loss or gradient is not finite; {_REMEDY}")
            window.append(metrics)

    def prune_now() -> None:
        nonlocal state, sparsity
        assert prune_step is not None
        _check_finite(state, step)
        before = _copy(state.masks)  # the step takes its own
        state = prune_step(state, np.asarray(plan[step], np.float32), key)
        records.pruned(step, plan[step], before, state)
        sparsity = sparsity_of(state)

    if step == 0 and 0 in plan:
        prune_now()
    with Bar(title, total=steps, done=step) as bar, Stop() as stop:
        while step < steps:
            state, metrics = train_step(state, put(next(batches)), key)
            step += 1
            in_flight.append((step, metrics))
            last, stopping = step == steps, stop.requested(step)
            log_now = step % cfg.log_every == 0 or last
            eval_now = evaluate is not None and (last or (cfg.eval_every > 0 and step % cfg.eval_every == 0))
            save_now = last or stopping or step % cfg.save_every == 0
            drain(0 if step in plan or log_now or eval_now or save_now else ahead)
            if step in plan:
                prune_now()
            if log_now:
                values = means(_add(window) | {"grad_norm": window[-1]["grad_norm"]}, terms) | {"sparsity": sparsity}
                if learning_rate is not None:
                    values["learning_rate"] = learning_rate(step - 1)
                elapsed = time.monotonic() - since
                values["tokens_per_second"] = tokens_per_step * len(window) / elapsed
                records.metrics(step, values)
                shown = values
                window, since = [], time.monotonic()
            if shown:
                rate = f"{shown['tokens_per_second']:,.0f} tokens/s  " if tokens_per_step else ""
                bar.update(step, f"loss {np.mean(shown['loss']):.3f}  {rate}sparsity {np.mean(sparsity):.3f}")
            if eval_now:
                assert evaluate is not None
                before = time.monotonic()
                records.metrics(step, {f"dev_{name}": value for name, value in evaluate(state).items()})
                since += time.monotonic() - before
            if save_now:
                _check_finite(state, step)
                checkpoints.save(step, state, batches.get_state())
            if stopping and not last:
                checkpoints.wait()
                raise Preempted(f"step {step} of {steps} is saved; run the same command to resume")
    checkpoints.wait()
    return state


def _steps_in_flight() -> int:
    # Un-awaited steps can deadlock on simulated CPU devices; an accelerator is kept busy by two.
    if jax.default_backend() != "cpu":
        return 2
    return 1 if jax.device_count() == 1 else 0


def _add(window: list[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *values: sum(np.float64(value) for value in values), *window)


@jax.jit
def _copy(masks: Masks) -> Masks:
    return jax.tree.map(jnp.copy, masks)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _check_finite(state: TrainState, step: int) -> None:
    if not _all_finite(state.params):
        raise Diverged(f"step {step}: a weight is not finite, so nothing was pruned or saved; {_REMEDY}")
