"""Criteria: scores of weights, higher = keep."""

import zlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from jaxprune.pruning.scopes import path_of

Scores = Any


class Criterion(Protocol):
    """(params, masks, *, grads, key) -> scores: the tree of masks with a float array at every prunable leaf.

    `grads` (the tree of params) and `key` (a `jax.random` key) may be None for a criterion that needs neither.
    """

    def __call__(self, params: Any, masks: Any, *, grads: Any = None, key: jax.Array | None = None) -> Scores: ...


def _on_prunable(f, params: Any, masks: Any) -> Scores:
    """f(path, param) at prunable leaves, None elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, m, w: None if m is None else f(path_of(path), w), masks, params, is_leaf=lambda x: x is None
    )


def magnitude(params: Any, masks: Any, *, grads: Any = None, key: jax.Array | None = None) -> Scores:
    """Absolute values |w|, in the params' dtype (Han et al. 2015; the paper's criterion)."""
    return _on_prunable(lambda _, w: jnp.abs(w), params, masks)


def random(params: Any, masks: Any, *, grads: Any = None, key: jax.Array | None = None) -> Scores:
    """Uniform float32 scores in [0, 1), a function of `key` and the leaf's path alone, the same on any mesh.

    Raises:
      ValueError: no key.
    """
    if key is None:
        raise ValueError("criterion = 'random' needs key, a jax.random key")

    def draw(path, w):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        sharding = jax.typeof(w).sharding
        explicit = AxisType.Explicit in sharding.mesh.axis_types
        return jax.random.uniform(leaf_key, w.shape, jnp.float32, out_sharding=sharding if explicit else None)

    return _on_prunable(draw, params, masks)


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random}
