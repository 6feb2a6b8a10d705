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


def _local(line: int | None, mine: jax.Array | None, *arrays: jax.Array) -> list[jax.Array]:
    """Sums (parts,) of uint32 arrays on one device; along `line`, the bool `mine` (parts, size) says what is whose."""
    shape = arrays[0].shape
    axes = range(len(shape))
    if mine is not None:
        lines = _sums(arrays, [axis for axis in axes if axis != line])
        return [jnp.sum(jnp.where(mine, x[None], 0), axis=1, dtype=jnp.uint32) for x in lines]
    if len(shape) < 2:
        return [x[None] for x in _sums(arrays, axes)]
    # First one sum per row (or column): all cores have work, and the rows are few beside the elements.
    first = 0 if shape[0] * 64 <= math.prod(shape) else len(shape) - 1
    rows = _sums(arrays, [axis for axis in axes if axis != first])
    rows = lax.optimization_barrier(rows)  # without it XLA merges the two into one serial loop
    return [x[None] for x in _sums(rows, [0])]


def _plain(line: int | None, mine: jax.Array | None, *arrays: jax.Array) -> list[jax.Array]:
    """The sums of `_local` from reductions of one operand, which XLA partitions, and on TPU fuses, by itself."""
    if mine is None:
        return [jnp.sum(x, dtype=jnp.uint32)[None] for x in arrays]
    axes = range(1, arrays[0].ndim + 1)
    mine = jnp.expand_dims(mine, [axis for axis in axes if axis - 1 != line])
    return [jnp.sum(jnp.where(mine, x[None], 0), axis=tuple(axes), dtype=jnp.uint32) for x in arrays]


def _mesh_axes(part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _even(sharding: NamedSharding, shape: Sequence[int]) -> list:
    """The parts of a sharding's spec, one per axis; None where they would not divide the axis."""
    parts = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    pieces = [math.prod(sharding.mesh.shape[name] for name in _mesh_axes(part)) for part in parts]
    return [part if size % n == 0 else None for part, size, n in zip(parts, shape, pieces)]


def _lower(sharding: NamedSharding, shape: Sequence[int], line: int | None):
    """What each device does to count a leaf of this sharding, and the specs of its operands: `mine` and the leaf."""
    parts = _even(sharding, shape)
    names = tuple(name for part in parts for name in _mesh_axes(part))

    def lower(mine, *arrays):
        sums = _local(line, mine, *arrays)
        return lax.psum(sums, names) if names else sums

    return lower, PartitionSpec() if line is None else PartitionSpec(None, parts[line]), PartitionSpec(*parts)


@functools.cache
def _partitioned(ndim: int, line: int | None):
    """`_local` for three arrays of `ndim` axes, for any sharding that XLA chooses.

    XLA itself would gather the operands of a reduction of several arrays over a sharded axis; this sums on each device
    and then sums the sums.
    """

    def infer(mesh, arg_shapes, result_shape):
        return [NamedSharding(arg_shapes[-1].sharding.mesh, PartitionSpec())] * 3

    def partition(mesh, arg_shapes, result_shape):
        sharding, shape = arg_shapes[-1].sharding, arg_shapes[-1].shape
        lower, *specs = _lower(sharding, shape, line)
        part, operand = (NamedSharding(sharding.mesh, spec) for spec in specs)
        operands = (None if line is None else part, *(operand,) * 3)
        return mesh, lower, [NamedSharding(sharding.mesh, PartitionSpec())] * 3, operands

    names = [f"i{axis}" for axis in range(ndim)]
    rule = ", ".join([" ".join(names)] * 3)
    sums = custom_partitioning(functools.partial(_local, line))
    sums.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=f"{rule} -> p, p, p" if line is None else f"p {names[line]}, {rule} -> p, p, p",
    )
    batchable = jax.custom_batching.custom_vmap(sums)

    @batchable.def_vmap
    def _(size, batched, mine, *arrays):
        arrays = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(arrays, batched[1:])]
        return jax.vmap(functools.partial(_plain, line), in_axes=(None, 0, 0, 0))(mine, *arrays), [True] * 3

    return batchable


def part_of_line(slot: Slot, size: int) -> jax.Array:
    """Bool (parts, size), True where a position on the slot's axis belongs to a part."""
    part = jnp.arange(size, dtype=jnp.int32) // (size // slot.parts)
    return part[None, :] == jnp.arange(slot.parts, dtype=jnp.int32)[:, None]


def count(conditions: Sequence[jax.Array], slot: Slot) -> jax.Array:
    """uint32 counts (parts, 3) of True in each of three conditions of a leaf's shape, in one pass over the leaf."""
    ones = [c.astype(jnp.uint32) for c in conditions]
    shape, line = ones[0].shape, slot.axis
    mine = None if line is None else part_of_line(slot, shape[line])
    sharding = jax.typeof(ones[0]).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        lower, part, operand = _lower(sharding, shape, line)
        if mine is not None:
            mine = jax.sharding.reshard(mine, NamedSharding(sharding.mesh, part))
        specs = (part, *(operand,) * 3)
        sums = jax.shard_map(lower, mesh=sharding.mesh, in_specs=specs, out_specs=PartitionSpec())(mine, *ones)
    else:
        # The TPU compiler knows custom partitioning only beside a TPU, not when it compiles ahead for one.
        plain = functools.partial(_plain, line)
        sums = lax.platform_dependent(mine, *ones, tpu=plain, default=_partitioned(len(shape), line))
    return jnp.stack(sums, axis=1)
