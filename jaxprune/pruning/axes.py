"""Mesh axes under which arrays carry their sharding in their type."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding of an array under Explicit mesh axes; None where XLA chooses it."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def axis_names(part) -> tuple[str, ...]:
    """The mesh axes in one part of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def even_parts(sharding: NamedSharding, shape: Sequence[int]) -> list:
    """The parts of a sharding's spec, one per axis of `shape`; None where they would not divide the axis."""
    parts = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    pieces = [math.prod(sharding.mesh.shape[name] for name in axis_names(part)) for part in parts]
    return [part if size % n == 0 else None for part, size, n in zip(parts, shape, pieces)]


def gathered(x: jax.Array) -> jax.Array:
    """x whole on every device, where that has to be said."""
    sharding = explicit_sharding(x)
    return x if sharding is None else jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))
