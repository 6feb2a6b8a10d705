"""Jit the steps of a run for one mesh: donated state, shardings fixed, so nothing moves or recompiles by accident."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxprune.config import PruneConfig
from jaxprune.training.sharding import batch_sharding, everywhere, gathered, put_batch, put_whole, state_shardings
from jaxprune.training.state import Masks, Params, TrainState, create
from jaxprune.training.steps import LossFn, eval_step, prune_step, train_step


class Program(NamedTuple):
    """Everything a loop calls on the device."""

    init: Callable[[Params, Masks], TrainState]
    """The first state, made where it belongs, of params and masks that every process holds whole."""
    draw: Callable[[Callable[[jax.Array], Params], jax.Array], TrainState]
    """(init, key) -> the first state with params `init(key)` and nothing pruned; each device draws its shard alone."""
    train: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, Any]]]
    prune: Callable[[TrainState, Any, jax.Array], TrainState]
    evaluate: Callable[[TrainState, Any], dict[str, Any]]
    put: Callable[[dict[str, Any]], dict[str, jax.Array]]
    """This process's rows of a batch on its devices."""
    put_whole: Callable[[dict[str, Any]], dict[str, jax.Array]]
    """A batch that every process holds whole on the devices."""
    mesh: Mesh
    abstract: TrainState
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored to."""


def compile_steps(
    params: Params,
    masks: Masks,
    mesh: Mesh,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    prune: PruneConfig,
    num_heads: int,
    accumulate: int = 1,
) -> Program:
    """The steps for params and masks of these shapes (arrays or ShapeDtypeStructs), compiled on first use."""
    soft = prune.mode == "soft"
    shapes = jax.eval_shape(lambda p, m: create(p, m, tx), params, masks)
    shardings = state_shardings(shapes, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    copied, rows = everywhere(mesh), batch_sharding(mesh)
    loss_fn = gathered(loss_fn, mesh)
    prune_kwargs = {"criterion": prune.criterion, "scope": prune.scope, "method": prune.method}
    first = jax.jit(lambda p, m: create(p, m, tx), out_shardings=shardings)

    def init(p: Params, m: Masks) -> TrainState:
        return first(*put_whole((p, m), (shardings.params, shardings.masks)))

    def draw(init: Callable[[jax.Array], Params], key: jax.Array) -> TrainState:
        def make(key):
            return create(init(key), jax.tree.map(lambda m: jnp.ones(m.shape, bool), shapes.masks), tx)

        return jax.jit(make, out_shardings=shardings)(key)

    return Program(
        init=init,
        draw=draw,
        train=jax.jit(
            partial(train_step, loss_fn=loss_fn, tx=tx, soft=soft, accumulate=accumulate),
            donate_argnums=0,
            in_shardings=(shardings, rows, copied),
            out_shardings=(shardings, copied),
        ),
        prune=jax.jit(
            partial(prune_step, tx=tx, soft=soft, num_heads=num_heads, **prune_kwargs),
            donate_argnums=0,
            in_shardings=(shardings, copied, copied),
            out_shardings=shardings,
        ),
        evaluate=jax.jit(partial(eval_step, loss_fn=loss_fn), in_shardings=(shardings, rows), out_shardings=copied),
        put=partial(put_batch, sharding=rows),
        put_whole=lambda batch: put_whole(batch, dict.fromkeys(batch, rows)),
        mesh=mesh,
        abstract=abstract,
    )


def placed(program: Program, state: Any) -> TrainState:
    """A state on the host, whole in every process, where the program wants it."""
    return put_whole(state, jax.tree.map(lambda x: x.sharding, program.abstract))


def evaluate_all(program: Program, state: TrainState, batches: Any) -> dict[str, tuple[Any, Any]]:
    """Sums and counts over all `batches` (on the device), added in float64 on the host; arrays for a population."""
    total: dict[str, tuple[Any, Any]] = {}
    for batch in batches:
        sums = jax.device_get(program.evaluate(state, batch))
        for name, parts in sums.items():
            value, count = (np.asarray(part, np.float64) for part in parts)
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + value, before[1] + count)
    return total
