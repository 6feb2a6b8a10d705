"""Masks: which weights are prunable, and which of them are kept."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.pruning.counting import count
from jaxprune.pruning.scopes import Slot, path_of

Masks = Any
_WHOLE = Slot(first=0, axis=None, parts=1, offset=0, salt=0)


def _is_none(x: Any) -> bool:
    return x is None


def _matches(regexes: Sequence[str] | str, paths: Sequence[str], argument: str) -> set[str]:
    """The paths that one of the regexes matches as a whole."""
    found = set()
    for regex in [regexes] if isinstance(regexes, str) else regexes:
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise ValueError(f"{argument}: {regex!r} is no regular expression: {error}") from None
        hits = {path for path in paths if pattern.fullmatch(path)}
        if not hits:
            nearest = difflib.get_close_matches(regex, paths, n=1, cutoff=0.0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            raise ValueError(f"{argument}: {regex!r} matches no parameter path as a whole{hint}")
        found |= hits
    return found


def init_masks(params: Any, include: Sequence[str], exclude: Sequence[str] = ()) -> Masks:
    """The tree of `params` with an all-True bool array, sharded alike, at every prunable leaf and None elsewhere.

    A leaf is prunable if a regex of `include` and none of `exclude` matches its whole path, which reads
    `encoder/layer_00/attention/query/kernel`. Leaves may be arrays, tracers or `jax.ShapeDtypeStruct`s, of which masks
    are `jax.ShapeDtypeStruct`s in turn.

    Raises:
      ValueError: a regex that does not compile or matches no path (the message names the nearest), or a prunable leaf
        that is not floating point.
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    prunable = _matches(include, paths, "include") - _matches(exclude, paths, "exclude")

    def mask(key_path, leaf):
        path = path_of(key_path)
        if path not in prunable:
            return None
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"include: {path} has dtype {leaf.dtype}; only floating point weights can be pruned")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bool_, sharding=leaf.sharding)
        return jnp.ones_like(leaf, dtype=jnp.bool_)

    return jax.tree_util.tree_map_with_path(mask, params)


def apply_masks(tree: Any, masks: Masks) -> Any:
    """`tree` (params, gradients, ...) with exactly +0.0 where a mask is False, whatever was there (also NaN and -0.0).

    Leaves whose mask is None pass through.
    """
    return jax.tree.map(
        lambda m, w: w if m is None else jnp.where(m, w, jnp.zeros((), w.dtype)), masks, tree, is_leaf=_is_none
    )


@jax.jit
def _kept(masks: Masks) -> Masks:
    return jax.tree.map(lambda m: count([m] * 3, _WHOLE)[0, 0], masks)


def leaf_counts(masks: Masks) -> dict[str, tuple[int, int]]:
    """{path: (kept, size)} of every prunable leaf, as Python integers; a host function. Leaves hold < 2^32 weights."""
    kept = jax.device_get(_kept(masks))
    sizes = [m.size for m in jax.tree.leaves(masks)]
    return {
        path_of(path): (int(count), size)
        for (path, count), size in zip(jax.tree_util.tree_leaves_with_path(kept), sizes, strict=True)
    }


@jax.jit
def _changed(before: Masks, after: Masks) -> Masks:
    return jax.tree.map(lambda old, new: count([new & ~old, old & ~new, new], _WHOLE)[0, :2], before, after)


def changed_counts(before: Masks, after: Masks) -> tuple[int, int]:
    """(weights that came back, weights newly pruned) between two masks of one tree; a host function.

    Hard masks bring nothing back.
    """
    pairs = jax.tree.leaves(jax.device_get(_changed(before, after)))
    return sum(int(pair[0]) for pair in pairs), sum(int(pair[1]) for pair in pairs)


def sparsity(masks: Masks) -> float:
    """The fraction in [0, 1] of the prunable weights whose mask is False, from exact counts; 0.0 without any."""
    counts = leaf_counts(masks).values()
    kept, size = sum(k for k, _ in counts), sum(n for _, n in counts)
    return (size - kept) / size if size else 0.0


@jax.jit
def _smallest(scores: Any, masks: Masks) -> Any:
    def smallest(m, s):
        return None if m is None else jnp.min(jnp.where(m, s.astype(jnp.float32), jnp.inf), initial=jnp.inf)

    return jax.tree.map(smallest, masks, scores, is_leaf=_is_none)


def smallest_kept(scores: Any, masks: Masks) -> dict[str, float]:
    """{path: lowest score among the kept weights} of every prunable leaf, inf where none is; a host function.

    This is the leaf's realised threshold: with method "exact", no pruned weight of the same group scores higher.
    """
    lowest = jax.device_get(_smallest(scores, masks))
    return {path_of(path): float(value) for path, value in jax.tree_util.tree_leaves_with_path(lowest)}
