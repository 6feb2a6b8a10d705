"""Masks: which weights are prunable, and which of them are kept."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.errors import UserError
from jaxprune.pruning.names import matching, path_of
from jaxprune.pruning.tallies import count

Masks = Any
"""A tree like params: bool at a prunable leaf, True = kept; None elsewhere."""


def init_masks(params: Any, include: Sequence[str] | str, exclude: Sequence[str] | str = ()) -> Masks:
    """The tree of `params` with an all-True bool array, sharded alike, at every prunable leaf and None elsewhere.

    A leaf is prunable if a regex of `include` and none of `exclude` matches its whole path, which reads
    `encoder/layer_00/attention/query/kernel`. Leaves may be arrays, tracers or `jax.ShapeDtypeStruct`s, of which masks
    are `jax.ShapeDtypeStruct`s in turn.

    Raises:
      UserError: a regex that does not compile or matches no path (the message names the nearest), or a prunable leaf
        that is not floating point.
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def matched(regexes: Sequence[str] | str, argument: str) -> set[str]:
        regexes = [regexes] if isinstance(regexes, str) else regexes
        return set().union(*(matching(regex, paths, argument) for regex in regexes))

    prunable = matched(include, "include") - matched(exclude, "exclude")

    def mask(key_path, leaf):
        path = path_of(key_path)
        if path not in prunable:
            return None
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"include: {path} has dtype {leaf.dtype}; only floating point weights can be pruned")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bool_, sharding=leaf.sharding)
        return jnp.ones_like(leaf, dtype=jnp.bool_)

    return jax.tree_util.tree_map_with_path(mask, params)


def on_prunable(f: Callable[..., jax.Array], masks: Masks, *trees: Any) -> Any:
    """f(leaf of each tree, ...) at prunable leaves, None elsewhere."""
    return jax.tree.map(
        lambda m, *leaves: None if m is None else f(*leaves), masks, *trees, is_leaf=lambda x: x is None
    )


def apply_masks(tree: Any, masks: Masks) -> Any:
    """`tree` (params, gradients, ...) with exactly +0.0 where a mask is False, whatever was there (also NaN and -0.0).

    Leaves whose mask is None pass through.
    """

    def masked(m, w):
        return w if m is None else jnp.where(m, w, jnp.zeros((), w.dtype))

    return jax.tree.map(masked, masks, tree, is_leaf=lambda x: x is None)


@jax.jit
def _kept(masks: Masks) -> Masks:
    return jax.tree.map(lambda m: count([m] * 3)[0, 0], masks)


def leaf_counts(masks: Masks) -> dict[str, tuple[int, int]]:
    """{path: (kept, size)} of every prunable leaf, as Python integers; a host function. Leaves hold < 2^32 weights."""
    kept = jax.tree_util.tree_leaves_with_path(jax.device_get(_kept(masks)))
    return {path_of(path): (int(n), m.size) for (path, n), m in zip(kept, jax.tree.leaves(masks), strict=True)}


def sparsity(masks: Masks) -> float:
    """The fraction in [0, 1] of the prunable weights whose mask is False, from exact counts; 0.0 without any."""
    counts = leaf_counts(masks).values()
    kept, size = sum(k for k, _ in counts), sum(n for _, n in counts)
    return pruned_share(kept, size)


def pruned_share(kept: int, size: int) -> float:
    """The fraction of `size` weights that is not kept, 0.0 of none; rounded once, so that all say the same."""
    return (size - kept) / size if size else 0.0
