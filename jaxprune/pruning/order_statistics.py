"""Exact order statistics of sharded scores: a threshold search over the floats' bit patterns with integer counts.

No sort, no gather, no concatenation. Each pass reads every score once and counts, per group, how many reach each of
three candidate thresholds; only these counts cross devices, so the result does not depend on the mesh. Candidates are
interpolated from the counts seen so far; plain quarterings in between bound the number of passes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.pruning.axes import explicit_sharding
from jaxprune.pruning.integers import wide, wide_eq, wide_float, wide_ge, wide_sub, wide_sum
from jaxprune.pruning.interface import Groups, Slot
from jaxprune.pruning.tallies import count, part_of_line

_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
_INFINITY = 0x7F800000  # bits and key of +inf
_CANDIDATES = 3
_FIRST = [(127 + exponent) << 23 for exponent in (-10, -6, -2)]  # weights lie about 2^-10 .. 2^-2


class Leaf(NamedTuple):
    """Scores of one leaf: `transform(values)`; where `live` is False, below every other score."""

    values: jax.Array
    live: jax.Array | None
    slot: Slot
    transform: Callable[[jax.Array], jax.Array] | None = None

    def scores(self) -> jax.Array:
        """Float32 scores, -inf for NaN and where not live."""
        return from_order_key(leaf_key(self))


class Threshold(NamedTuple):
    """Per group (G,): keep a score if its key lies above `key`, or equals it and its tie rank reaches `rank`.

    `takes`, one bool array (parts,) per leaf, says whether a leaf keeps an element of exactly that key and rank.
    """

    key: jax.Array
    rank: jax.Array
    takes: list[jax.Array]


def order_key(scores: jax.Array) -> jax.Array:
    """int32 keys in the order of the scores: NaN < -inf < ... < -0.0 = +0.0 < ... < +inf."""
    bits = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    key = bits ^ ((bits >> 31) & _HIGHEST)
    key = jnp.where(key == -1, 0, key)
    return jnp.where((bits & _HIGHEST) > _INFINITY, _LOWEST + 1, key)


def from_order_key(key: jax.Array) -> jax.Array:
    """The float32 scores of int32 keys; +inf above the key of +inf, -inf below that of -inf."""
    key = jnp.clip(key, -_INFINITY - 1, _INFINITY)
    return lax.bitcast_convert_type(key ^ ((key >> 31) & _HIGHEST), jnp.float32)


def leaf_key(leaf: Leaf, anchor: jax.Array | None = None) -> jax.Array:
    """The int32 keys of a leaf. An `anchor` that varies in a loop keeps the compiler from storing them before it."""
    values, live = leaf.values, leaf.live
    if anchor is not None:
        values, live, _ = lax.optimization_barrier((values, live, anchor))
    key = order_key(values if leaf.transform is None else leaf.transform(values))
    return key if live is None else jnp.where(live, key, _LOWEST)


def leaf_rank(leaf: Leaf, anchor: jax.Array | None = None) -> jax.Array:
    """int32 ranks that break ties: a bijective 32-bit hash (lowbias32) of each element's number in its group.

    A function of the group's name and the position alone, with no order in it. Two elements of a group share a rank
    only if the group spans more than 2^32 elements, and then only between leaves.
    """
    shape = leaf.values.shape
    x = jnp.uint32(leaf.slot.offset % 2**32) + jnp.asarray(leaf.slot.salt, jnp.uint32)
    if anchor is not None:
        x, _ = lax.optimization_barrier((x, anchor))
    x, stride = x.reshape((1,) * len(shape)), 1
    for axis in reversed(range(len(shape))):
        x, stride = x + _iota(leaf.values, axis) * jnp.uint32(stride % 2**32), stride * shape[axis]
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return lax.bitcast_convert_type(x ^ (x >> 15), jnp.int32)


def _iota(x: jax.Array, axis: int) -> jax.Array:
    """uint32 positions along one axis of x, the other axes of length 1; under Explicit mesh axes sharded like x."""
    shape = [size if a == axis else 1 for a, size in enumerate(x.shape)]
    sharding = explicit_sharding(x)
    if sharding is not None:
        spec = [part if a == axis else None for a, part in enumerate(sharding.spec)]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)


def spread(values: jax.Array, leaf: Leaf, first: int | None = None) -> jax.Array:
    """Values per group (G,), from the leaf's first group on, in a shape that broadcasts against the leaf."""
    slot, shape = leaf.slot, leaf.values.shape
    first = slot.first if first is None else first
    of_parts = lax.slice_in_dim(values, first, first + slot.parts)
    if slot.axis is None:
        return of_parts.reshape((1,) * len(shape))
    size, others = shape[slot.axis], [axis for axis in range(len(shape)) if axis != slot.axis]
    # A sum over a one-hot, not a repeat: XLA would shard the thresholds like the leaf, and gather them again. Each leaf
    # sums in its own shape: lines along rows and along columns, which may be sharded differently, must not be shared.
    part = jnp.expand_dims(part_of_line(size, slot.parts), [axis + 1 for axis in others])
    of_parts = jnp.expand_dims(of_parts, [axis + 1 for axis in range(len(shape))])
    return jnp.sum(jnp.where(part, of_parts, 0), axis=0, dtype=of_parts.dtype)


def _leaf_counts(conditions: Sequence[jax.Array], slot: Slot) -> jax.Array:
    return count(conditions, slot.axis, slot.parts, pooled=max(slot.tile.together, default=1) > 1)


def group_counts(conditions: Callable[[Leaf], Sequence[jax.Array]], leaves: Sequence[Leaf], groups: Groups):
    """Counts (G, C, 2), wide, of True in each group, for C = 3 conditions on a leaf."""
    counts = [_leaf_counts(conditions(leaf), leaf.slot) for leaf in leaves]
    ids = [leaf.slot.first + part for leaf in leaves for part in range(leaf.slot.parts)]
    return wide_sum(jnp.concatenate(counts), ids, len(groups.sizes))


def _candidates(before, low, high, n_low, n_above, k, first):
    """Three candidates (G,) in low + [1, high - low]: around an interpolated point, or at the quarters.

    `before` is the width of the bracket one pass ago, 0 at first. `first` are the first candidates for a bracket of
    floats' bit patterns, None for one of uniform numbers, where interpolation holds from the start.
    """
    width = lax.bitcast_convert_type(high - low, jnp.uint32)
    span = width.astype(jnp.float32)
    inside = jnp.maximum(wide_float(wide_sub(n_low, n_above)), 1.0)
    middle = wide_float(wide_sub(n_low, k)) / inside
    half = 2.0 * lax.rsqrt(inside)  # half a bracket: the noise of the counts
    quarter = (before > 0) & (width > before // 4 + _CANDIDATES)  # interpolation did not pay
    if first is not None:
        half = jnp.maximum(half, jnp.minimum(span / jnp.float32(2**22), 0.25))  # and the change of density
        quarter |= width > jnp.uint32(2**24)
    made = []
    for i in range(_CANDIDATES):
        fraction = jnp.clip(jnp.where(quarter, (i + 1) / 4, middle + (i - 1) * half), 0.0, 1.0)
        offset = jnp.minimum(fraction * span, jnp.float32(2**32 - 256)).astype(jnp.uint32)
        offset = jnp.where(width <= _CANDIDATES, jnp.uint32(i + 1), offset)
        offset = jnp.clip(offset, jnp.minimum(width, jnp.uint32(1)), width)
        t = low + lax.bitcast_convert_type(offset, jnp.int32)
        made.append(t if first is None else jnp.where(before > 0, t, jnp.int32(first[i])))
    return made


def bracket(count_at, k, low, high, n_low, *, first: Sequence[int] | None):
    """A t in [low, high] with count(>= t) == k, else the largest with more, count(>= t) and count(> t), per group.

    `count_at(candidates)`, candidates a list of (G,), gives counts (G, C, 2); n_low = count(>= low) >= k and
    count(> high) = 0 < k, or the group starts finished. Where count(>= t) == k, count(> t) is meaningless. Takes at
    most one pass per bit of high - low, mostly a third.
    """

    def finished(low, high, n_low):
        return (low >= high) | wide_eq(n_low, k)

    def step(state):
        before, low, high, n_low, n_above = state
        done = finished(low, high, n_low)
        candidates = _candidates(before, low, high, n_low, n_above, k, first)
        before = lax.bitcast_convert_type(high - low, jnp.uint32)
        counts = count_at(candidates)
        for i, t in enumerate(candidates):
            n = counts[:, i]
            enough = wide_ge(n, k)
            up, down = ~done & enough & (t > low), ~done & ~enough & (t <= high)
            low, n_low = jnp.where(up, t, low), jnp.where(up[:, None], n, n_low)
            high, n_above = jnp.where(down, t - 1, high), jnp.where(down[:, None], n, n_above)
        return before, low, high, n_low, n_above

    state = (jnp.zeros_like(low, dtype=jnp.uint32), low, high, n_low, jnp.zeros_like(n_low))
    _, low, _, n_low, n_above = lax.while_loop(lambda s: ~jnp.all(finished(*s[1:4])), step, state)
    return low, n_low, n_above


def key_threshold(leaves: Sequence[Leaf], groups: Groups, k: jax.Array):
    """`bracket` over the keys of each group's scores for k (G, 2), wide; k = 0 gives a key above all."""

    def count_at(candidates):
        def reached(leaf):
            key = leaf_key(leaf, candidates[0])
            return [key >= spread(t, leaf) for t in candidates]

        return group_counts(reached, leaves, groups)

    none = wide_eq(k, jnp.zeros_like(k))
    low = jnp.where(none, jnp.int32(_HIGHEST), jnp.int32(_LOWEST))
    high = jnp.where(none, jnp.int32(_HIGHEST), jnp.int32(_INFINITY))
    n_low = jnp.where(none[:, None], jnp.uint32(0), wide(groups.sizes))
    return bracket(count_at, k, low, high, n_low, first=_FIRST)


def top_threshold(leaves: Sequence[Leaf], groups: Groups, k: jax.Array) -> Threshold:
    """The threshold that keeps exactly k (G, 2), wide, of each group's scores."""
    key, n_key, n_above = key_threshold(leaves, groups, k)
    # Where the threshold cuts through equal scores, keep `wanted` of the `tied` ones, by rank.
    cut = ~wide_eq(n_key, k)
    tied = jnp.where(cut[:, None], wide_sub(n_key, n_above), 0)
    wanted = jnp.where(cut[:, None], wide_sub(k, n_above), 0)

    def tied_rank(leaf, anchor):
        return leaf_key(leaf, anchor) == spread(key, leaf), leaf_rank(leaf, anchor)

    def count_at(candidates):
        def reached(leaf):
            tie, rank = tied_rank(leaf, candidates[0])
            return [tie & (rank >= spread(t, leaf)) for t in candidates]

        return group_counts(reached, leaves, groups)

    low = jnp.full_like(key, _LOWEST)
    high = jnp.where(cut, jnp.int32(_HIGHEST), jnp.int32(_LOWEST))
    rank, n_rank, n_above = bracket(count_at, wanted, low, high, tied, first=None)
    takes = [jnp.ones(leaf.slot.parts, bool) for leaf in leaves]
    if groups.span <= 2**32:
        return Threshold(key, rank, takes)

    # Ranks may collide between leaves: at the threshold, leaves take their one element in turn while any is wanted.
    collide = ~wide_eq(n_rank, wanted)
    wanted = jnp.where(collide, wide_sub(wanted, n_above)[:, 1], 0)

    def settle():
        left, taken = {}, []
        for leaf in leaves:
            slot = leaf.slot
            tie, ranks = tied_rank(leaf, None)
            here = _leaf_counts([tie & (ranks == spread(rank, leaf))] * 3, slot)[:, 0]
            parts = slice(slot.first, slot.first + slot.parts)
            before = left.get(slot.first, wanted[parts])
            take = ~collide[parts] | (here <= before)
            left[slot.first] = before - jnp.where(collide[parts] & take, here, 0)
            taken.append(take)
        return taken

    return Threshold(key, rank, lax.cond(jnp.any(collide), settle, lambda: takes))
