"""Populations: runs of one shape that train together, the steps of one run over a leading member axis.

Members may differ in weights, masks, learning rate, data, dropout and sparsity, which are all data to the steps; they
share the model, the optimizer's other settings, and what a prune scores and counts.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune.config import PruneConfig
from jaxprune.pruning import sparsity
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program, placed
from jaxprune.training.records import Records
from jaxprune.training.sharding import DATA_AXES, put_batch, put_whole, state_shardings
from jaxprune.training.state import Masks, Params, TrainState, create
from jaxprune.training.steps import LossFn, eval_step, prune_step, train_step
from jaxprune.training.workdir import Workdir, owned_workdir


class MemberBatches:
    """The batches of M runs as one checkpointable iterator: every array gets a leading axis M."""

    def __init__(self, members: Sequence[Any]):
        self._members = members

    def __iter__(self) -> "MemberBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return stack([next(batches) for batches in self._members])

    def get_state(self) -> dict[str, Any]:
        """The states of all members, by number."""
        return {str(i): batches.get_state() for i, batches in enumerate(self._members)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a state of `get_state`."""
        for i, batches in enumerate(self._members):
            batches.set_state(state[str(i)])


class MemberRecords:
    """The `Records` of all members as one: each gets its own numbers."""

    def __init__(self, members: Sequence[Records]):
        self._members = members

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """A line for each member; a value is a number for all or an array (M,)."""
        for i, records in enumerate(self._members):
            records.metrics(step, {name: float(x[i]) if np.ndim(x) else x for name, x in values.items()})

    def pruned(self, step: int, target: Sequence[float], before: Masks, state: TrainState) -> None:
        """A line for each member; masks and state are the population's."""
        for i, records in enumerate(self._members):
            records.pruned(step, target[i], member(before, i), member(state, i))


class MemberCheckpoints:
    """The `Checkpoints` of all members as one: each saves its own state, as a single run would."""

    def __init__(self, members: Sequence[Checkpoints]):
        self._members = members

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Start writing the members of `state`; `data` is of `MemberBatches.get_state`."""
        for i, checkpoints in enumerate(self._members):
            checkpoints.save(step, member(state, i), data[str(i)])

    def wait(self) -> None:
        """Return when the last save of every member is on disk."""
        for checkpoints in self._members:
            checkpoints.wait()


class SameBatches:
    """The batches of one iterator for all of M members."""

    def __init__(self, batches: Any, members: int):
        self._batches, self._members = batches, members

    def __iter__(self) -> "SameBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return repeat(next(self._batches), self._members)

    def get_state(self) -> dict[str, Any]:
        """The state of each member, by number."""
        return dict.fromkeys(map(str, range(self._members)), self._batches.get_state())


class Apart(Exception):
    """Members of a population were interrupted at different steps: each has to go on by itself."""


def restored(
    checkpoints: Sequence[Checkpoints], single: Program, population: Program
) -> tuple[int, TrainState, list[dict[str, Any]]] | None:
    """(step, states, data positions) of members that each have checkpoints of `single`; None when none has any.

    Apart when their newest good checkpoints are of different steps.
    """
    if not any(one.steps() for one in checkpoints):
        return None
    found = [one.restore(single.abstract) if one.steps() else None for one in checkpoints]
    if any(one is None for one in found) or len({one[0] for one in found if one}) > 1:
        raise Apart
    steps, states, positions = zip(*(one for one in found if one), strict=True)
    return steps[0], placed(population, stack([jax.device_get(state) for state in states])), list(positions)


def in_workdirs(
    members: Sequence[tuple[Path, str]],
    compare: Callable[[str, str], list[str]],
    train: Callable[[list[Workdir]], list[dict[str, Any]]],
    finish: Callable[[Workdir, dict[str, Any]], None] = Workdir.finish,
) -> list[dict[str, Any]]:
    """The results of `train`, each finished in the workdir of its member (path, config; see `owned_workdir`).

    Empty, with the workdirs as they were, when they have to go on one by one: one is finished, or they stand `Apart`.
    """
    with ExitStack() as stack:
        places = [stack.enter_context(owned_workdir(path, config, compare)) for path, config in members]
        if any(place.result() for place in places):
            return []
        with suppress(Apart):
            results = train(places)
            for place, result in zip(places, results, strict=True):
                finish(place, result)
            return results
    return []


class Places(NamedTuple):
    """Shardings of a population: the member axis over the mesh axis `member`, the rest as in a single run."""

    state: Any
    rows: NamedSharding
    members: NamedSharding


def compile_population(
    params: Params,
    masks: Masks,
    mesh: Mesh,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    prune: PruneConfig,
    num_heads: int,
    accumulate: int = 1,
    batched: bool | None = None,
) -> Program:
    """The steps of `compile_steps` for a population; `params` and `masks` have shapes with the leading axis M.

    States, batches, keys (M,), sparsities (M,) float32 and metrics have that axis throughout: `train(states, batches,
    keys)`, `prune(states, sparsities, keys)`, `evaluate(states, batches)`, `draw(init, keys)`. Member i is the single
    run with the same data, keys and learning rate to float tolerance. `batched` makes wide operations of those of all
    members on a device; else they take turns, the default on a CPU, where it is faster (benchmarks/population.py).
    ValueError when M does not split over the mesh.
    """
    soft = prune.mode == "soft"
    shapes = jax.eval_shape(jax.vmap(lambda p, m: create(p, m, tx)), params, masks)
    count = shapes.step.shape[0]
    if count % mesh.shape["member"]:
        raise ValueError(f"{count} members do not split over mesh.member = {mesh.shape['member']}; use a multiple")
    state, rows, members = _places(shapes, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, state)
    if batched is None:
        batched = mesh.devices.flat[0].platform != "cpu"
    over = partial(jax.vmap, spmd_axis_name="member") if batched else partial(_in_turn, devices=mesh.shape["member"])
    steps = {"criterion": prune.criterion, "scope": prune.scope, "method": prune.method, "num_heads": num_heads}
    first = jax.jit(over(lambda p, m: create(p, m, tx)), out_shardings=state)

    def draw(init: Any, keys: jax.Array) -> TrainState:
        kept = jax.tree.map(lambda m: np.ones(m.shape[1:], bool), shapes.masks)
        return jax.jit(over(lambda key: create(init(key), kept, tx)), out_shardings=state)(keys)

    return Program(
        init=lambda p, m: first(*put_whole((p, m), (state.params, state.masks))),
        draw=draw,
        train=jax.jit(
            over(partial(train_step, loss_fn=loss_fn, tx=tx, soft=soft, accumulate=accumulate)),
            donate_argnums=0,
            in_shardings=(state, rows, members),
            out_shardings=(state, members),
        ),
        prune=jax.jit(
            over(partial(prune_step, tx=tx, soft=soft, **steps)),
            donate_argnums=0,
            in_shardings=(state, members, members),
            out_shardings=state,
        ),
        evaluate=jax.jit(over(partial(eval_step, loss_fn=loss_fn)), in_shardings=(state, rows), out_shardings=members),
        put=partial(put_batch, sharding=rows),
        put_whole=lambda batch: put_whole(batch, dict.fromkeys(batch, rows)),
        mesh=mesh,
        abstract=abstract,
    )


def _in_turn(step: Callable[..., Any], *, devices: int) -> Callable[..., Any]:
    """`step` for every member; those on one of `devices` along the mesh axis `member` run one after another."""

    def run(*args: Any) -> Any:
        spread = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), args)
        one_device = jax.vmap(partial(jax.lax.map, lambda one: step(*one)), spmd_axis_name="member")
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), one_device(spread))

    return run


def _places(shapes: TrainState, mesh: Mesh) -> Places:
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)

    def of_member(spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec("member", *spec))

    state = jax.tree.map(lambda sharding: of_member(sharding.spec), state_shardings(one, mesh))
    return Places(state, of_member(PartitionSpec(DATA_AXES)), of_member(PartitionSpec()))


def stack(trees: Sequence[Any]) -> Any:
    """One tree of numpy arrays with a leading axis over the trees, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def repeat(batch: dict[str, np.ndarray], members: int) -> dict[str, np.ndarray]:
    """A batch that all members share, with the leading axis."""
    return {name: np.broadcast_to(x, (members, *np.shape(x))) for name, x in batch.items()}


def member(tree: Any, index: int) -> Any:
    """The part of one member."""
    return jax.tree.map(lambda x: x[index], tree)


def sparsity_of(state: TrainState) -> Any:
    """The sparsity of a run's masks; of a population, that of each member, float64 (M,)."""
    if np.ndim(state.step) == 0:
        return sparsity(state.masks)
    return np.array([sparsity(member(state.masks, i)) for i in range(len(state.step))])
