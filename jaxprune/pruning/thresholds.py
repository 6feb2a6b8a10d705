"""Thresholds: from scores and a sparsity to masks, by one of three methods."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.pruning.counting import part_of_line
from jaxprune.pruning.counts import kept_counts, wide, wide_float, wide_sub
from jaxprune.pruning.criteria import Criterion, Scores, magnitude
from jaxprune.pruning.masks import Masks
from jaxprune.pruning.scopes import Groups, group, path_of
from jaxprune.pruning.search import (
    Leaf,
    from_order_key,
    group_counts,
    key_threshold,
    leaf_key,
    leaf_rank,
    order_key,
    spread,
    top_threshold,
)

Sparsity = float | jax.Array
# (leaves, groups, sparsity) -> (the mask of every leaf, the threshold (G,) float32 of every group).
Method = Callable[[Sequence[Leaf], Groups, Sparsity], tuple[list[jax.Array], jax.Array]]

_BINS = 256


def _exact(leaves, groups, sparsity):
    """Keeps exactly round((1 - sparsity) N) of each group (see `keep_top`)."""
    threshold = top_threshold(leaves, groups, kept_counts(groups.sizes, sparsity))
    masks = []
    for leaf, takes in zip(leaves, threshold.takes):
        key, rank = leaf_key(leaf), leaf_rank(leaf)
        key_t, rank_t = spread(threshold.key, leaf), spread(threshold.rank, leaf)
        tie = (rank > rank_t) | ((rank == rank_t) & spread(takes, leaf, first=0))
        masks.append((key > key_t) | ((key == key_t) & tie))
    return masks, from_order_key(threshold.key)


def _above(leaves, thresholds):
    """Scores strictly above their group's threshold; never a NaN, never one that is not live."""
    masks = []
    for leaf in leaves:
        score = leaf.values if leaf.transform is None else leaf.transform(leaf.values)
        above = score.astype(jnp.float32) > spread(thresholds, leaf)
        masks.append(above if leaf.live is None else above & leaf.live)
    return masks


def _quantile(leaves, groups, sparsity):
    """Keeps scores above `jnp.quantile(scores, sparsity)` of their group, by a sort: inexact where scores tie."""
    members: list[list[jax.Array]] = [[] for _ in groups.sizes]
    for leaf in leaves:
        slot = leaf.slot
        score = from_order_key(jnp.maximum(leaf_key(leaf), order_key(jnp.float32(jnp.finfo(jnp.float32).min))))
        pieces = [score] if slot.axis is None else jnp.split(score, slot.parts, slot.axis)
        for part, piece in enumerate(pieces):
            members[slot.first + part].append(piece.reshape(-1))
    q = jnp.asarray(sparsity, jnp.float32)
    thresholds = jnp.stack([jnp.quantile(jnp.concatenate(m), q) for m in members])
    return _above(leaves, thresholds), thresholds


def _hist256(leaves, groups, sparsity):
    """Keeps scores above the sparsity's place in a histogram of 256 equal bins over [0, largest score] of their group.

    The threshold is (number of bins whose cumulative fraction is below the sparsity) / 256 times the largest score, as
    in TensorFlow <= 1.13's model pruning (contrib/model_pruning/python/pruning_utils.py); it under-prunes. Scores must
    be >= 0; negative ones fall into the first bin.
    """
    tops: dict[int, jax.Array] = {}
    for leaf in leaves:
        slot = leaf.slot
        score = from_order_key(leaf_key(leaf))
        others = [a for a in range(score.ndim) if a != slot.axis]
        top = jnp.max(score, axis=others, initial=0.0)
        if slot.axis is not None:
            top = jnp.max(jnp.where(part_of_line(slot, top.size), top[None, :], 0.0), axis=1)
        top = top.reshape(slot.parts)
        tops[slot.first] = jnp.maximum(tops[slot.first], top) if slot.first in tops else top
    top = jnp.concatenate([tops[first] for first in sorted(tops)])
    sizes = wide(groups.sizes)
    total = wide_float(sizes)

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
            low = jnp.where(cdf < jnp.asarray(sparsity, jnp.float32), jnp.maximum(low, c), low)
        return low, width // 4

    low, _ = lax.fori_loop(0, 4, step, (jnp.zeros(len(groups.sizes), jnp.int32), jnp.int32(_BINS)))
    thresholds = low.astype(jnp.float32) / _BINS * top
    return _above(leaves, thresholds), thresholds


def _flatten(scores: Scores):
    leaves, tree = jax.tree_util.tree_flatten_with_path(scores)
    paths, arrays = [path_of(path) for path, _ in leaves], [jnp.asarray(leaf) for _, leaf in leaves]
    for path, x in zip(paths, arrays):
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize > 4:
            raise ValueError(f"scores of {path} have dtype {x.dtype}; use float32, bfloat16 or float16")
        if x.size >= 2**32:
            raise ValueError(f"scores of {path} hold {x.size} elements; split leaves of 2^32 elements or more")
    return paths, arrays, tree


@partial(jax.jit, static_argnums=(3, 4, 5))
def _run(arrays, lives, sparsity, groups, method, transform):
    """Masks and thresholds of leaves by a method, compiled also where the caller is not."""
    leaves = [Leaf(x, m, slot, transform) for x, m, slot in zip(arrays, lives, groups.slots, strict=True)]
    masks, thresholds = method(leaves, groups, sparsity)
    return masks, [
        thresholds[s.first] if s.axis is None else lax.slice_in_dim(thresholds, s.first, s.first + s.parts)
        for s in groups.slots
    ]


def _select(scores, sparsity, scope, method, num_heads, live=None, transform=None):
    if method not in METHODS:
        raise ValueError(f"method = {method!r} is unknown; use one of {', '.join(METHODS)}")
    if isinstance(sparsity, int | float) and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity = {sparsity} is no sparsity; use a fraction in [0, 1]")
    paths, arrays, tree = _flatten(scores)
    groups = group(paths, [x.shape for x in arrays], scope, num_heads)
    if not arrays:
        return scores, scores
    lives = [None] * len(arrays) if live is None else jax.tree.leaves(live)
    masks, thresholds = _run(arrays, lives, jnp.asarray(sparsity, jnp.float32), groups, METHODS[method], transform)
    return jax.tree.unflatten(tree, masks), jax.tree.unflatten(tree, thresholds)


def select(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: str = "global",
    method: str = "exact",
    num_heads: int | None = None,
) -> tuple[Masks, Any]:
    """`keep_top`'s masks and the tree of thresholds: float32, a scalar per leaf, (num_heads,) where heads split it.

    With method "exact" every kept score is >= its threshold, every pruned one <= it; inf where nothing is kept. With
    the other methods kept scores are > the threshold.
    """
    return _select(scores, sparsity, scope, method, num_heads)


def keep_top(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: str = "global",
    method: str = "exact",
    num_heads: int | None = None,
) -> Masks:
    """Bool masks that are True at the highest scores of each group of `scope`.

    Args:
      scores: tree of float32, bfloat16 or float16 arrays, None where not prunable; higher = keep. Leaves may be sharded
        in any way under `jit`; each holds fewer than 2^32 elements, a group at most 2^39.
      sparsity: fraction in [0, 1] to prune, a float or a (traced) scalar, which is clipped.
      scope: "global" (one group), "matrix" (each leaf), "layer" (leaves under one `layer_NN`), "head" (columns of
        query, key and value kernels and rows of the output kernel of one head). Leaves that the last two do not name
        are groups of their own.
      method: "exact", "quantile" (`jnp.quantile`, keep above it) or "hist256" (TensorFlow <= 1.13).
      num_heads: attention heads per layer, for scope "head".

    Method "exact" keeps exactly round((1 - sparsity) N) of a group of N scores: the nearest integer, halves to the even
    one, computed in integers. The sparsity is read as float32 and stands for the decimal of at most six places that it
    represents, if any (0.7 is seven tenths, traced or not; see `counts.kept_counts`). Scores rank NaN < -inf < ... <
    -0.0 = +0.0 < ... < +inf. Ties at the threshold are broken by a hash of the element's number in its group, so masks
    favour no position and are the same on any mesh.

    Raises:
      ValueError: an unknown scope or method, a Python sparsity outside [0, 1], a wrong dtype, or a num_heads that is
        missing or does not divide a kernel.
    """
    return _select(scores, sparsity, scope, method, num_heads)[0]


def kth_largest(scores: Scores, k: int | jax.Array) -> jax.Array:
    """The k-th largest of all scores of an array or tree, a float32 scalar; exact and the same on any mesh.

    k counts from 1 and may be a traced integer (below 2^32). NaN ranks below -inf and is returned as -inf.

    Raises:
      ValueError: a Python k outside [1, number of scores], or a wrong dtype.
    """
    paths, arrays, _ = _flatten(scores)
    groups = group(paths, [x.shape for x in arrays], "global")
    if isinstance(k, int):
        size = sum(groups.sizes)
        if not 1 <= k <= size:
            raise ValueError(f"k = {k} is outside [1, {size}], the number of scores")
        limbs = wide([k])
    else:
        limbs = jnp.stack([jnp.zeros((), jnp.uint32), k.astype(jnp.uint32)])[None]
    return _kth(arrays, limbs, groups)


@partial(jax.jit, static_argnums=2)
def _kth(arrays, k, groups):
    leaves = [Leaf(x, None, slot) for x, slot in zip(arrays, groups.slots)]
    return from_order_key(key_threshold(leaves, groups, k, until_found=False)[0][0])


def prune(
    params: Any,
    masks: Masks,
    sparsity: Sparsity,
    *,
    criterion: Criterion,
    scope: str = "global",
    method: str = "exact",
    num_heads: int | None = None,
    key: jax.Array | None = None,
    grads: Any = None,
    monotone: bool = True,
) -> Masks:
    """The masks after one prune: `keep_top` of the criterion's scores, N counting pruned and live weights alike.

    With `monotone` (hard masks) a pruned weight never returns: it ranks below every live one, even one of score 0, and
    a group already beyond `sparsity` stays as it is. Without (soft masks), masks are made from scores alone. Arguments
    and errors otherwise as in `keep_top` and the criterion.
    """
    live = masks if monotone else None
    if criterion is magnitude:  # |w| is computed as weights are read, never stored
        scores = jax.tree.map(lambda m, w: None if m is None else w, masks, params, is_leaf=lambda x: x is None)
        new, _ = _select(scores, sparsity, scope, method, num_heads, live, jnp.abs)
    else:
        scores = criterion(params, masks, grads=grads, key=key)
        new, _ = _select(scores, sparsity, scope, method, num_heads, live)
    return jax.tree.map(jnp.logical_and, new, masks) if monotone else new


METHODS: dict[str, Method] = {"exact": _exact, "quantile": _quantile, "hist256": _hist256}
