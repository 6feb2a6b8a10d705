"""The three pure steps of a run: train, prune, evaluate. Jit them once; nothing here knows a model or data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.pruning import CRITERIA, apply_masks, prune
from jaxprune.training.state import TrainState, mask_moments

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Any, Batch, jax.Array | None], tuple[Sums, Sums]]
"""(params, batch, key) -> (terms, metrics), each name -> (sum, count); counts are functions of the batch alone.
The loss is the sum over terms of sum / count."""


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    soft: bool = False,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step, and its metrics as (sum, count) pairs plus `grad_norm`.

    Gradients are masked before the optimizer, so clipping and moments see live weights only; pruned weights are
    +0.0 afterwards. With `soft` masks the forward pass sees masked weights while the stored ones keep their value.
    `accumulate` splits the batch (leading axis) into that many micro-batches whose gradients add up to the
    gradient of the whole batch. Under `pmap` or `shard_map` name the mapped axis in `axis_name`.
    """
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def total(sums):
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    def loss(params, micro, micro_key, counts):
        terms, metrics = loss_fn(apply_masks(params, state.masks) if soft else params, micro, micro_key)
        if counts is None:
            counts = {name: total(count) for name, (_, count) in terms.items()}
        return sum(value / jnp.maximum(counts[name], 1) for name, (value, _) in terms.items()), terms | metrics

    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        grads, metrics = gradient(state.params, batch, key, None)
    else:
        grads, metrics = _accumulate(gradient, loss_fn, total, state.params, batch, key, accumulate)
    grads, metrics = total(grads), total(metrics)
    grads = apply_masks(grads, state.masks)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if not soft:
        params = apply_masks(params, state.masks)
    metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, state.masks, opt_state), metrics


def _accumulate(gradient, loss_fn, total, params, batch, key, pieces):
    # Counts of the whole batch come first: they weigh every micro-batch. XLA drops the unused forward pass.
    terms, _ = loss_fn(params, batch, None)
    counts = {name: total(count) for name, (_, count) in terms.items()}
    # Every micro-batch takes rows from all shards of the batch, so splitting moves no data between devices.
    micro_batches = jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, piece):
        index, micro = piece
        return jax.tree.map(jnp.add, carry, gradient(params, micro, jax.random.fold_in(key, index), counts)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first, key, counts))
    return jax.lax.scan(add, zeros, (jnp.arange(pieces), micro_batches))[0]


def prune_step(
    state: TrainState,
    sparsity: jax.Array,
    key: jax.Array,
    *,
    tx: optax.GradientTransformation,
    criterion: str = "magnitude",
    scope: str = "matrix",
    method: str = "exact",
    soft: bool = False,
    num_heads: int | None = None,
) -> TrainState:
    """`state` with masks of the given sparsity (float32 in [0, 1]).

    Hard masks are monotone, and what they prune becomes +0.0 in params and optimizer moments. Soft masks are
    recomputed from the stored dense values.
    """
    masks = prune(
        state.params,
        state.masks,
        sparsity,
        criterion=CRITERIA[criterion],
        scope=scope,
        method=method,
        num_heads=num_heads,
        key=jax.random.fold_in(key, state.step),
        monotone=not soft,
    )
    if soft:
        return state._replace(masks=masks)
    params = apply_masks(state.params, masks)
    return TrainState(state.step, params, masks, mask_moments(tx, state.opt_state, masks, params))


def eval_step(state: TrainState, batch: Batch, *, loss_fn: LossFn) -> Sums:
    """Terms and metrics of one batch without dropout, as (sum, count) pairs to add up over batches."""
    terms, metrics = loss_fn(apply_masks(state.params, state.masks), batch, None)
    return terms | metrics


def means(sums: dict[str, Any], terms: tuple[str, ...]) -> dict[str, Any]:
    """Host floats: sum / count by name (0 / 0 is 0), scalars as they are, and `loss` = the sum of the `terms`.

    Of a population, whose sums are arrays (M,), so are the means, float64.
    """
    values: dict[str, Any] = {}
    for name, value in sums.items():
        if isinstance(value, tuple):
            total, count = (np.asarray(part, np.float64) for part in value)
            values[name] = _plain(total / np.maximum(count, 1.0))
        else:
            values[name] = _plain(np.asarray(value, np.float64))
    return {"loss": sum(values[name] for name in terms)} | values


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
