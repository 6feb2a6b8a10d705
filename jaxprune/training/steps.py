"""The three pure steps of a run: train, prune, evaluate. Jit them once; nothing here knows a model or data."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxprune.optax import mask_moments, masked
from jaxprune.pruning.axes import explicit_sharding
from jaxprune.pruning.interface import Pruner, PruneReport
from jaxprune.pruning.masks import apply_masks
from jaxprune.training.state import TrainState

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Any, Any, Batch, jax.Array | None], tuple[Sums, Sums]]
"""(params, frozen, batch, key) -> (terms, metrics), each name -> (sum, count); counts are functions of the batch alone.
The loss is the sum over terms of weight x sum / count, each weight 1 unless given. `frozen` is data beside the batch
that is not trained, such as a teacher's weights; () where there is none."""

NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})


def train_step(
    state: TrainState,
    frozen: Any,
    batch: Batch,
    key: jax.Array,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    pruner: Pruner,
    weights: Mapping[str, float] = NO_WEIGHTS,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step, and its metrics as (sum, count) pairs plus `grad_norm`.

    With hard masks the optimizer is `masked(tx)`: clipping and moments see live weights only, and pruned weights are
    +0.0 afterwards. With soft masks the forward pass sees masked weights while the stored ones stay, and gradients are
    masked, or go straight through with `pruner.straight_through`; without a gradient `tx` still moves what lies under
    masks, by older moments and weight decay. The pruner observes the gradients of
    all weights, as the forward pass sees them. `accumulate` splits the batch (leading axis) into that many
    micro-batches whose gradients add up to the gradient of the whole batch. `weights` are those of terms in the loss, 1
    where not named. Under `pmap` or `shard_map` name the mapped axis in `axis_name`.
    """
    soft = pruner.mode == "soft"
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def total(sums):
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    def loss(params, micro, micro_key, counts):
        terms, metrics = loss_fn(params, frozen, micro, micro_key)
        if counts is None:
            counts = {name: total(count) for name, (_, count) in terms.items()}
        parts = {name: value / jnp.maximum(counts[name], 1) for name, (value, _) in terms.items()}
        parts |= {name: weight * parts[name] for name, weight in weights.items() if name in parts and weight != 1}
        return sum(part for name, part in parts.items() if weights.get(name, 1)), terms | metrics

    gradient = jax.grad(loss, has_aux=True)
    effective = apply_masks(state.params, state.masks) if soft else state.params
    if axis_name is not None:
        effective = _own(effective, axis_name)
    if accumulate == 1:
        grads, metrics = gradient(effective, batch, key, None)
    else:
        terms, _ = loss_fn(effective, frozen, batch, None)  # XLA drops this forward pass but for the counts
        counts = {name: total(count) for name, (_, count) in terms.items()}
        grads, metrics = _accumulated(gradient, effective, batch, key, counts, accumulate)
    grads, metrics = total(grads), total(metrics)
    remembered = pruner.observe(state.pruner, state.params, state.masks, grads)
    if pruner.straight_through is None:
        live = apply_masks(grads, state.masks)
    else:
        live = _straight_through(grads, state.params, state.masks, pruner.straight_through)
    if soft:
        updates, opt_state = tx.update(live, state.opt_state, state.params)
    else:
        updates, opt_state = masked(tx).update(grads, state.opt_state, state.params, masks=state.masks)
    params = optax.apply_updates(state.params, updates)
    metrics = metrics | {"grad_norm": optax.tree.norm(live)}
    return TrainState(state.step + 1, params, state.masks, opt_state, remembered), metrics


def _straight_through(grads: Any, params: Any, masks: Any, decay: float) -> Any:
    """Gradients of all weights, and of those under masks `decay` times their value more."""

    def through(m, g, w):
        return g if m is None else jnp.where(m, g, g + decay * w.astype(g.dtype))

    return jax.tree.map(through, masks, grads, params, is_leaf=lambda x: x is None)


def _own(params: Any, axis_name: str) -> Any:
    """`params` as values of each device's own: of common ones `shard_map` sums the gradients, and so would we again."""
    here = jax.lax.axis_index(axis_name) >= 0  # always, and XLA leaves it out; `pcast` would fail under `vmap`
    return jax.tree.map(lambda x: jnp.where(here, x, x), params)


def _accumulated(gradient, params, batch, key, counts, pieces):
    """Gradient and metrics, added over micro-batches; the counts of the whole batch weigh each."""
    micro_batches = jax.tree.map(partial(_pieces, pieces=pieces), batch)

    def add(carry, piece):
        index, micro = piece
        return jax.tree.map(jnp.add, carry, gradient(params, micro, jax.random.fold_in(key, index), counts)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, params, first, key, counts))  # sharded as they are
    return jax.lax.scan(add, zeros, (jnp.arange(pieces), micro_batches))[0]


def _pieces(x: jax.Array, pieces: int) -> jax.Array:
    """Rows (n, ...) as (pieces, n / pieces, ...): each piece takes some of every shard's, so no data moves."""
    if sharding := explicit_sharding(x):
        rows, *others = sharding.spec
        sharding = sharding.update(spec=PartitionSpec(rows, None, *others))
    return x.reshape(-1, pieces, *x.shape[1:], out_sharding=sharding).swapaxes(0, 1)


def prune_step(state: TrainState, sparsity: Any, key: jax.Array, *, pruner: Pruner) -> tuple[TrainState, PruneReport]:
    """`state` with masks of the given sparsity (`Amounts`, or what `Pruner.update` takes), and what changed.

    Hard masks are monotone but where a pruner regrows, and what they prune becomes +0.0 in params and optimizer
    moments. Soft masks are made anew from the stored dense values.
    """
    key = jax.random.fold_in(key, state.step)
    params, masks, remembered, report = pruner.update(
        state.pruner, state.params, state.masks, sparsity, key, state.step
    )
    opt_state = state.opt_state if pruner.mode == "soft" else mask_moments(state.opt_state, masks)
    return TrainState(state.step, params, masks, opt_state, remembered), report


def eval_step(state: TrainState, frozen: Any, batch: Batch, *, loss_fn: LossFn) -> Sums:
    """Terms and metrics of one batch without dropout, as (sum, count) pairs to add up over batches."""
    terms, metrics = loss_fn(apply_masks(state.params, state.masks), frozen, batch, None)
    return terms | metrics


def means(sums: dict[str, Any], terms: Mapping[str, float]) -> dict[str, float]:
    """Host floats: sum / count by name (0 / 0 is 0), scalars as they are, and `loss` = the weighted sum of the `terms`
    (name -> weight)."""
    values: dict[str, float] = {}
    for name, value in sums.items():
        values[name] = float(value[0]) / max(float(value[1]), 1.0) if isinstance(value, tuple | list) else float(value)
    return {"loss": sum(weight * values[name] for name, weight in terms.items())} | values


def added(total: dict[str, Any] | None, sums: dict[str, Any]) -> dict[str, Any]:
    """`total` plus the (sum, count) pairs of one more step or batch, in float64; other values are the last ones."""
    total = total or {}
    result: dict[str, Any] = {}
    for name, value in sums.items():
        if isinstance(value, tuple):
            before = total.get(name, (0.0, 0.0))
            result[name] = tuple(float(np.float64(a) + np.float64(b)) for a, b in zip(before, value, strict=True))
        else:
            result[name] = float(value)
    return result
