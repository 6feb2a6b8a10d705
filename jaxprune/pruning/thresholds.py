"""Thresholds: from scores and counts to masks of tiles, by one of three methods."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.errors import UserError
from jaxprune.pruning.axes import gathered
from jaxprune.pruning.integers import wide, wide_float, wide_sub
from jaxprune.pruning.interface import Amounts, Groups
from jaxprune.pruning.order_statistics import (
    Leaf,
    from_order_key,
    group_counts,
    leaf_key,
    leaf_rank,
    order_key,
    spread,
    top_threshold,
)
from jaxprune.pruning.structures import merge, split
from jaxprune.pruning.tallies import part_of_line

Method = Callable[[Sequence[Leaf], Groups, Amounts], tuple[list[jax.Array], jax.Array]]
"""(leaves, groups, amounts) -> (the mask of every leaf, the threshold (G,) float32 of every group)."""

_BINS = 256


def exact(leaves: Sequence[Leaf], groups: Groups, amounts: Amounts) -> tuple[list[jax.Array], jax.Array]:
    """Keeps exactly as many tiles of each group as `amounts` says, and of every m tiles where these are chosen among m.

    The latter have no threshold: nan.
    """
    each = jnp.array([one.each for one in groups.groups])
    searched = [leaf for leaf in leaves if not leaf.slot.tile.among]
    masks = {id(leaf): _top_of_each(leaf, amounts.kept[leaf.slot.first, 1]) for leaf in leaves if leaf.slot.tile.among}
    if not searched:
        return [masks[id(leaf)] for leaf in leaves], jnp.full(each.shape, jnp.nan, jnp.float32)
    threshold = top_threshold(searched, groups, jnp.where(each[:, None], 0, amounts.kept))
    for leaf, takes in zip(searched, threshold.takes):
        key, rank = leaf_key(leaf), leaf_rank(leaf)
        key_t, rank_t = spread(threshold.key, leaf), spread(threshold.rank, leaf)
        tie = (rank > rank_t) | ((rank == rank_t) & spread(takes, leaf, first=0))
        masks[id(leaf)] = (key > key_t) | ((key == key_t) & tie)
    return [masks[id(leaf)] for leaf in leaves], jnp.where(each, jnp.nan, from_order_key(threshold.key))


def _top_of_each(leaf: Leaf, kept: jax.Array) -> jax.Array:
    """The mask of the `kept` highest of every m consecutive scores along an axis: each is compared with all m."""
    assert leaf.slot.tile.among
    axis, m = leaf.slot.tile.among
    together = [m if a == axis else 1 for a in range(leaf.values.ndim)]

    def count_higher(i, higher):
        ranks = jnp.broadcast_to(leaf_rank(leaf, i), leaf.values.shape)
        key, rank = split(leaf_key(leaf, i), together), split(ranks, together)
        other_key, other_rank = (lax.dynamic_slice_in_dim(x, i, 1, axis=2 * axis + 1) for x in (key, rank))
        return higher + ((other_key > key) | ((other_key == key) & (other_rank > rank)))

    none = split(jnp.zeros_like(leaf.values, dtype=jnp.uint16), together)
    return merge(lax.fori_loop(0, m, count_higher, none, unroll=8) < kept, leaf.values)


def _above(leaves: Sequence[Leaf], thresholds: jax.Array) -> list[jax.Array]:
    """Scores strictly above their group's threshold; never a NaN, never one that is not live."""
    masks = []
    for leaf in leaves:
        score = leaf.values if leaf.transform is None else leaf.transform(leaf.values)
        above = score.astype(jnp.float32) > spread(thresholds, leaf)
        masks.append(above if leaf.live is None else above & leaf.live)
    return masks


def quantile(leaves: Sequence[Leaf], groups: Groups, amounts: Amounts) -> tuple[list[jax.Array], jax.Array]:
    """Keeps scores above `jnp.quantile(scores, sparsity)` of their group, by a sort: inexact where scores tie."""
    members: list[list[jax.Array]] = [[] for _ in groups.groups]
    for leaf in leaves:
        slot = leaf.slot
        lowest = order_key(jnp.float32(jnp.finfo(jnp.float32).min))
        score = gathered(from_order_key(jnp.maximum(leaf_key(leaf), lowest)))
        pieces = [score] if slot.axis is None else jnp.split(score, slot.parts, slot.axis)
        for part, piece in enumerate(pieces):
            members[slot.first + part].append(piece.reshape(-1))
    scores = map(jnp.concatenate, members)
    cuts = [jnp.quantile(x, q) if x.size else jnp.float32(jnp.inf) for x, q in zip(scores, amounts.sparsity)]
    thresholds = jnp.stack(cuts)
    return _above(leaves, thresholds), thresholds


def hist256(leaves: Sequence[Leaf], groups: Groups, amounts: Amounts) -> tuple[list[jax.Array], jax.Array]:
    """Keeps scores above the sparsity's place in a histogram of 256 equal bins over [0, largest score] of their group.

    The threshold is (number of bins whose cumulative fraction, a float32, is below the sparsity) / 256 times the
    largest score, as in TensorFlow <= 1.13's model pruning (contrib/model_pruning/python/pruning_utils.py); it
    under-prunes. Scores must be >= 0; negative ones fall into the first bin.
    """
    tops: dict[int, jax.Array] = {}
    for leaf in leaves:
        slot = leaf.slot
        score = leaf.scores()
        others = [a for a in range(score.ndim) if a != slot.axis]
        top = jnp.max(score, axis=others, initial=0.0)
        if slot.axis is not None:
            top = jnp.max(jnp.where(part_of_line(top.size, slot.parts), top[None, :], 0.0), axis=1, initial=0.0)
        top = top.reshape(slot.parts)
        tops[slot.first] = jnp.maximum(tops[slot.first], top) if slot.first in tops else top
    top = jnp.concatenate([tops[first] for first in sorted(tops)])
    sizes = wide(groups.sizes)
    # As a constant, XLA would multiply by its reciprocal, which rounds otherwise than the division.
    total = lax.optimization_barrier(wide_float(sizes))

    def step(_, state):
        low, width = state  # bins below `low` lie below the sparsity; the count of such bins is < low + width
        candidates = [low + width // 4 * (i + 1) for i in range(3)]

        def beyond(leaf):
            score = from_order_key(leaf_key(leaf, low))
            bins = jnp.floor(jnp.float32(_BINS) * (score / spread(top, leaf)))
            bins = jnp.clip(bins, 0.0, _BINS - 1.0)
            return [bins >= spread(c, leaf).astype(jnp.float32) for c in candidates]

        counts = group_counts(beyond, leaves, groups)
        for i, c in enumerate(candidates):
            cdf = wide_float(wide_sub(sizes, counts[:, i])) / total  # of bins 0 .. c - 1
            low = jnp.where(cdf < amounts.sparsity, jnp.maximum(low, c), low)
        return low, width // 4

    low, _ = lax.fori_loop(0, 4, step, (jnp.zeros(len(groups.groups), jnp.int32), jnp.int32(_BINS)))
    thresholds = low.astype(jnp.float32) / _BINS * top
    return _above(leaves, thresholds), thresholds


METHODS: dict[str, Method] = {"exact": exact, "quantile": quantile, "hist256": hist256}


def check_scores(path: str, scores: jax.Array) -> None:
    """A UserError that names the path unless scores have a dtype and a size that methods can take."""
    if not jnp.issubdtype(scores.dtype, jnp.floating) or scores.dtype.itemsize > 4:
        raise UserError(f"scores of {path} have dtype {scores.dtype}; use float32, bfloat16 or float16")
    if scores.size >= 2**32:
        raise UserError(f"scores of {path} hold {scores.size} elements; split leaves of 2^32 elements or more")
