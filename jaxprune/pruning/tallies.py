"""Counts of conditions over leaves: one fused pass over a leaf on each device, then a sum of counts across devices."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.pruning.axes import axis_names, even_parts, explicit_sharding


def _sums(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """uint32 sums of equally shaped arrays over `axes` as one reduction, into which XLA fuses what makes the arrays.

    One reduction per array instead would read (on CPU: even store) the operands once for each.
    """
    zeros = [jnp.uint32(0)] * len(arrays)
    return list(lax.reduce(list(arrays), zeros, lambda a, b: [p + q for p, q in zip(a, b)], tuple(axes)))


def _local(line: int | None, part_lines: jax.Array | None, *arrays: jax.Array) -> list[jax.Array]:
    """Sums (parts,) of uint32 arrays on one device; `part_lines` (parts, size): which of `line` are whose."""
    shape = arrays[0].shape
    axes = range(len(shape))
    if part_lines is not None:
        lines = _sums(arrays, [axis for axis in axes if axis != line])
        return [jnp.sum(jnp.where(part_lines, x[None], 0), axis=1, dtype=jnp.uint32) for x in lines]
    if len(shape) < 2:
        return [x[None] for x in _sums(arrays, axes)]
    # First one sum per row (or column): all cores have work, and the rows are few beside the elements.
    first = 0 if shape[0] * 64 <= math.prod(shape) else len(shape) - 1
    rows = _sums(arrays, [axis for axis in axes if axis != first])
    rows = lax.optimization_barrier(rows)  # without it XLA merges the two into one serial loop
    return [x[None] for x in _sums(rows, [0])]


def _plain(line: int | None, part_lines: jax.Array | None, *arrays: jax.Array) -> list[jax.Array]:
    """The sums of `_local` from reductions of one operand, which XLA partitions, and on TPU fuses, by itself."""
    if part_lines is None:
        return [jnp.sum(x, dtype=jnp.uint32)[None] for x in arrays]
    axes = range(1, arrays[0].ndim + 1)
    part_lines = jnp.expand_dims(part_lines, [axis for axis in axes if axis - 1 != line])
    return [jnp.sum(jnp.where(part_lines, x[None], 0), axis=tuple(axes), dtype=jnp.uint32) for x in arrays]


def _lower(sharding: NamedSharding, shape: Sequence[int], line: int | None):
    """What each device does to count a leaf of this sharding, and the specs of `part_lines` and the leaf."""
    parts = even_parts(sharding, shape)
    names = tuple(name for part in parts for name in axis_names(part))

    def lower(part_lines, *arrays):
        sums = _local(line, part_lines, *arrays)
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
    def _(size, batched, part_lines, *arrays):
        arrays = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(arrays, batched[1:])]
        return jax.vmap(functools.partial(_plain, line), in_axes=(None, 0, 0, 0))(part_lines, *arrays), [True] * 3

    return batchable


def part_of_line(size: int, parts: int) -> jax.Array:
    """Bool (parts, size), True where a position on an axis that is split into `parts` belongs to a part."""
    part = jnp.arange(size, dtype=jnp.int32) // (size // parts)
    return part[None, :] == jnp.arange(parts, dtype=jnp.int32)[:, None]


def count(
    conditions: Sequence[jax.Array], line: int | None = None, parts: int = 1, *, pooled: bool = False
) -> jax.Array:
    """uint32 counts (parts, 3) of True in each of three conditions of a leaf's shape, in one pass over the leaf.

    The axis `line`, if any, is split into `parts` that are counted apart. `pooled`: the conditions are of tiles, which
    XLA may split over a part of a mesh axis; as no PartitionSpec says that, it counts them itself, a pass for each.
    """
    ones = [c.astype(jnp.uint32) for c in conditions]
    shape = ones[0].shape
    part_lines = None if line is None else part_of_line(shape[line], parts)
    sharding = explicit_sharding(ones[0])
    if sharding is not None:
        lower, part, operand = _lower(sharding, shape, line)
        if part_lines is not None:
            part_lines = jax.sharding.reshard(part_lines, NamedSharding(sharding.mesh, part))
        specs = (part, *(operand,) * 3)
        sums = jax.shard_map(lower, mesh=sharding.mesh, in_specs=specs, out_specs=PartitionSpec())(part_lines, *ones)
    elif pooled:
        sums = _plain(line, part_lines, *ones)
    else:
        # The TPU compiler knows custom partitioning only beside a TPU, not when it compiles ahead for one.
        plain = functools.partial(_plain, line)
        sums = lax.platform_dependent(part_lines, *ones, tpu=plain, default=_partitioned(len(shape), line))
    return jnp.stack(sums, axis=1)
