"""Jit the steps of a run for one mesh: donated state, shardings fixed, so nothing moves or recompiles by accident."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxprune.pruning.interface import Pruner, PruneReport
from jaxprune.training.sharding import batch_sharding, everywhere, gathered, put_batch, put_whole, state_shardings
from jaxprune.training.state import Masks, Params, TrainState, create
from jaxprune.training.steps import NO_WEIGHTS, LossFn, added, eval_step, prune_step, train_step


class Program(NamedTuple):
    """Everything a loop calls on the device."""

    init: Callable[[Params, Masks], TrainState]
    """The first state, made where it belongs, of params and masks that every process holds whole."""
    draw: Callable[[Callable[[jax.Array], Params], jax.Array], TrainState]
    """(init, key) -> the first state with params `init(key)` and nothing pruned; each device draws its shard alone."""
    train: Callable[..., tuple[TrainState, dict[str, Any]]]
    """(state, frozen, batch, key) -> (state, metrics)."""
    prune: Callable[..., tuple[TrainState, PruneReport]]
    """(state, amounts, key) -> (state, report)."""
    amounts: Callable[[Any], Any]
    """A sparsity of the plan -> what `prune` takes: exact counts, made on the host."""
    evaluate: Callable[..., dict[str, Any]]
    """(state, frozen, batch) -> sums."""
    put: Callable[[dict[str, Any]], dict[str, jax.Array]]
    """This process's rows of a batch on its devices."""
    put_whole: Callable[[dict[str, Any]], dict[str, jax.Array]]
    """A batch that every process holds whole on the devices."""
    mesh: Mesh
    abstract: TrainState
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored to."""
    frozen: Any
    """What `train` takes as frozen, as ShapeDtypeStructs with shardings."""


def compile_steps(
    params: Params,
    masks: Masks,
    mesh: Mesh,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    pruner: Pruner,
    accumulate: int = 1,
    frozen: Any = (),
    weights: Mapping[str, float] = NO_WEIGHTS,
    measured: LossFn | None = None,
) -> Program:
    """The steps for params, masks and frozen data of these shapes (arrays or ShapeDtypeStructs), compiled on first use.

    `frozen` is placed like params. `weights` are those of `train_step`; `measured` is the loss that `evaluate` takes in
    place of `loss_fn`, with `()` for frozen.
    """
    new = partial(create, tx=tx, pruner=pruner)
    shapes = jax.eval_shape(new, params, masks)
    shardings = state_shardings(shapes, mesh)
    beside = state_shardings(frozen, mesh)
    abstract, abstract_frozen = (
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)
        for tree, placed in ((shapes, shardings), (frozen, beside))
    )
    copied, rows = everywhere(mesh), batch_sharding(mesh)
    first = jax.jit(new, out_shardings=shardings)

    def init(p: Params, m: Masks) -> TrainState:
        return first(*put_whole((p, m), (shardings.params, shardings.masks)))

    def draw(init: Callable[[jax.Array], Params], key: jax.Array) -> TrainState:
        def make(key):
            return new(init(key), jax.tree.map(lambda m: jnp.ones(m.shape, bool), shapes.masks))

        return jax.jit(make, out_shardings=shardings)(key)

    return Program(
        init=init,
        draw=draw,
        train=jax.jit(
            partial(
                train_step,
                loss_fn=gathered(loss_fn, mesh),
                tx=tx,
                pruner=pruner,
                weights=weights,
                accumulate=accumulate,
            ),
            donate_argnums=0,
            in_shardings=(shardings, beside, rows, copied),
            out_shardings=(shardings, copied),
        ),
        prune=jax.jit(
            partial(prune_step, pruner=pruner),
            donate_argnums=0,
            in_shardings=(shardings, copied, copied),
            out_shardings=(shardings, copied),
        ),
        amounts=partial(pruner.amounts, abstract.masks),
        evaluate=jax.jit(
            partial(eval_step, loss_fn=gathered(measured or loss_fn, mesh)),
            in_shardings=(shardings, () if measured else beside, rows),
            out_shardings=copied,
        ),
        put=partial(put_batch, sharding=rows),
        put_whole=lambda batch: put_whole(batch, dict.fromkeys(batch, rows)),
        mesh=mesh,
        abstract=abstract,
        frozen=abstract_frozen,
    )


def evaluate_all(program: Program, state: TrainState, batches: Iterable[Any], frozen: Any = ()) -> dict[str, Any]:
    """Sums and counts over all `batches` (on the device), added in float64 on the host."""
    total: dict[str, Any] = {}
    for batch in batches:
        total = added(total, jax.device_get(program.evaluate(state, frozen, batch)))
    return total
