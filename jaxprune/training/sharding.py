"""Where arrays live: one mesh, one rule from shapes to shardings."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprune.config.sections import MeshConfig
from jaxprune.errors import UserError

DATA_AXES = ("data", "fsdp")


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices. UserError names the sizes when they do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(cfg, axis) for axis in DATA_AXES}
    known = int(np.prod([size for size in sizes.values() if size > 0]))
    sizes = {axis: size if size > 0 else max(len(devices) // known, 1) for axis, size in sizes.items()}
    if int(np.prod([*sizes.values()])) != len(devices):
        given = ", ".join(f"mesh.{axis} = {getattr(cfg, axis)}" for axis in DATA_AXES)
        raise UserError(f"{given} do not cover {len(devices)} devices; set one of them to -1")
    kind = AxisType.Explicit if cfg.axes == "explicit" else AxisType.Auto
    return jax.make_mesh(tuple(sizes.values()), DATA_AXES, axis_types=(kind,) * len(DATA_AXES), devices=devices)


def within(mesh: Mesh) -> AbstractContextManager[Any]:
    """A block in which `mesh` is the current one: some operations on Explicit axes look for it there."""
    return jax.set_mesh(mesh) if mesh.explicit_axes else nullcontext()


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding per leaf: the largest axis that `fsdp` divides is split over it, small arrays are copied.

    The rule sees shapes only, so masks and moments lie where their parameter lies.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"])), abstract)


def _spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    axes = [axis for axis, size in enumerate(shape) if len(shape) > 1 and size % fsdp == 0]
    if fsdp == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over every data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of a global batch that this process's devices need, ascending; a mesh may deal them out in any order."""
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def put_batch(batch: dict[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a global batch (`process_rows`) as global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_whole(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as global arrays; each device gets its shard alone."""

    def put(x, sharding):
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def gathered(loss_fn: Any, mesh: Mesh) -> Any:
    """`loss_fn` with split params and frozen data copied to every device first: one all-gather each, no more.

    Explicit axes want that to be said. Left alone under Auto axes, XLA splits some activations like the params instead
    and moves them about.
    """
    if mesh.shape["fsdp"] == 1:
        return loss_fn
    copied = everywhere(mesh)
    copy = jax.sharding.reshard if mesh.explicit_axes else jax.lax.with_sharding_constraint

    def whole(params, frozen, *rest):
        return loss_fn(*jax.tree.map(lambda p: copy(p, copied), (params, frozen)), *rest)

    return whole


def shards(mesh: Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in DATA_AXES]))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """UserError unless every device gets the same number of rows in every micro-batch."""
    pieces = shards(mesh)
    if batch_size % (pieces * accumulate):
        raise UserError(
            f"batch_size = {batch_size} does not split over {pieces} devices x train.accumulate = {accumulate}; "
            f"use a multiple of {pieces * accumulate}"
        )
