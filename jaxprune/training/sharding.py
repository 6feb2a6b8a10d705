"""Where arrays live: one mesh, one rule from shapes to shardings."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxprune.config import MeshConfig

DATA_AXES = ("data", "fsdp")


def make_mesh(cfg: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices. ValueError names the sizes when they do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": cfg.data, "fsdp": cfg.fsdp}
    known = 1
    for size in sizes.values():
        known *= size if size > 0 else 1
    sizes = {axis: size if size > 0 else max(len(devices) // known, 1) for axis, size in sizes.items()}
    if sizes["data"] * sizes["fsdp"] != len(devices):
        raise ValueError(
            f"mesh.data = {cfg.data}, mesh.fsdp = {cfg.fsdp} do not cover {len(devices)} devices; set one of them to -1"
        )
    return jax.make_mesh(tuple(sizes.values()), DATA_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over every data axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def put_batch(batch: dict[str, Any], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a global batch as global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """ValueError unless every device gets the same number of rows in every micro-batch."""
    if batch_size % (mesh.size * accumulate):
        raise ValueError(
            f"batch_size = {batch_size} does not split over {mesh.size} devices x train.accumulate = {accumulate}; "
            f"use a multiple of {mesh.size * accumulate}"
        )
