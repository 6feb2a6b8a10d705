"""Counts of conditions over leaves: one fused pass over a leaf on each device, then a sum of counts across devices."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.pruning.scopes import Slot


def _sums(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """uint32 sums of equally shaped arrays over `axes` as one reduction, into which XLA fuses what makes the arrays.

    One reduction per array instead would read (on CPU: even store) the operands once for each.
    """
    zeros = [jnp.uint32(0)] * len(arrays)
    return list(lax.reduce(list(arrays), zeros, lambda a, b: [p + q for p, q in zip(a, b)], tuple(axes)))


def _local(arrays: Sequence[jax.Array], line: int | None) -> list[jax.Array]:
    """Sums of uint32 arrays over all axes but `line`, on one device."""
    shape = arrays[0].shape
    axes = range(len(shape))
    if line is not None or len(shape) < 2:
        return _sums(arrays, [axis for axis in axes if axis != line])
    # First one sum per row (or column): all cores have work, and the rows are few beside the elements.
    first = 0 if shape[0] * 64 <= math.prod(shape) else len(shape) - 1
    rows = _sums(arrays, [axis for axis in axes if axis != first])
    return _sums(lax.optimization_barrier(rows), [0])  # without the barrier XLA merges the two into one serial loop


def _mesh_axes(part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _split(parts: Sequence, line: int | None) -> tuple[PartitionSpec, tuple[str, ...]]:
    """The spec of sums along `line`, and the mesh axes that split the leaf's other axes."""
    others = tuple(name for axis, part in enumerate(parts) if axis != line for name in _mesh_axes(part))
    return PartitionSpec() if line is None else PartitionSpec(parts[line]), others


def _even(sharding: NamedSharding, shape: Sequence[int]) -> list:
    """The parts of a sharding's spec, one per axis; None where they would not divide the axis."""
    parts = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    pieces = [math.prod(sharding.mesh.shape[name] for name in _mesh_axes(part)) for part in parts]
    return [part if size % n == 0 else None for part, size, n in zip(parts, shape, pieces)]


@functools.cache
def _partitioned(ndim: int, line: int | None):
    """`_local` for three arrays of `ndim` axes, for any sharding that XLA chooses.

    XLA itself would gather the operands of a reduction of several arrays over a sharded axis; this sums on each device
    and then sums the sums.
    """

    def lower(others, *arrays):
        sums = tuple(_local(arrays, line))
        return lax.psum(sums, others) if others else sums

    def infer(mesh, arg_shapes, result_shape):
        sharding = arg_shapes[0].sharding
        out, _ = _split(_even(sharding, arg_shapes[0].shape), line)
        return (NamedSharding(sharding.mesh, out),) * 3

    def partition(mesh, arg_shapes, result_shape):
        sharding = arg_shapes[0].sharding
        parts = _even(sharding, arg_shapes[0].shape)
        out, others = _split(parts, line)
        operand, result = (NamedSharding(sharding.mesh, spec) for spec in (PartitionSpec(*parts), out))
        return mesh, functools.partial(lower, others), (result,) * 3, (operand,) * 3

    names = [f"i{axis}" for axis in range(ndim)]
    operand, result = " ".join(names), "" if line is None else names[line]
    sums = custom_partitioning(functools.partial(lower, ()))
    sums.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=f"{', '.join([operand] * 3)} -> {', '.join([result] * 3)}",
    )
    batchable = jax.custom_batching.custom_vmap(sums)

    @batchable.def_vmap
    def _(size, batched, *arrays):
        arrays = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(arrays, batched)]
        axes = [axis + 1 for axis in range(ndim) if axis != line]
        return tuple(_sums(arrays, axes)), (True,) * 3

    return batchable


def part_of_line(slot: Slot, size: int) -> jax.Array:
    """Bool (parts, size), True where a position on the slot's axis belongs to a part."""
    part = jnp.arange(size, dtype=jnp.int32) // (size // slot.parts)
    return part[None, :] == jnp.arange(slot.parts, dtype=jnp.int32)[:, None]


def count(conditions: Sequence[jax.Array], slot: Slot) -> jax.Array:
    """uint32 counts (parts, 3) of True in each of three conditions of a leaf's shape, in one pass over the leaf."""
    ones = [c.astype(jnp.uint32) for c in conditions]
    shape, line = ones[0].shape, slot.axis
    sharding = jax.typeof(ones[0]).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        out, others = _split(_even(sharding, shape), line)

        def lower(*arrays):
            sums = _local(arrays, line)
            return lax.psum(sums, others) if others else sums

        sums = jax.shard_map(lower, in_specs=sharding.spec, out_specs=out)(*ones)
    else:
        sums = _partitioned(len(shape), line)(*ones)
    if line is None:
        return jnp.stack(sums)[None]
    mine = part_of_line(slot, shape[line])
    return jnp.stack([jnp.sum(jnp.where(mine, s[None, :], 0), axis=1, dtype=jnp.uint32) for s in sums], axis=1)
