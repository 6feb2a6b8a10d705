"""Masks in optax: any gradient transformation that keeps pruned weights at exactly +0.0 and out of its moments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.errors import UserError
from jaxprune.pruning.masks import Masks, apply_masks


def masked(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` for hard masks: its `update(grads, state, params, *, masks, **extra)` gives updates that make pruned weights
    +0.0, also those that were not yet.

    `tx` sees masked gradients and params, and 0 where a weight is pruned in those arrays of its state that are shaped
    like a parameter (`mask_moments`). Its other arguments pass through. `masks` is a tree like params, None where not
    prunable; it may shrink between calls.

    Raises:
      UserError: an update without params.
    """
    tx = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, *, masks: Masks, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise UserError("masked(tx).update needs params: update(grads, state, params, masks=masks)")
        # Not masked once more on the way out: XLA would compute new moments twice and copy the old ones.
        state = mask_moments(state, masks)
        updates, state = tx.update(apply_masks(updates, masks), state, apply_masks(params, masks), **extra)
        return _to_zero(updates, params, masks), state

    return optax.GradientTransformationExtraArgs(tx.init, update)  # pyright: ignore[reportArgumentType]: masks


def _to_zero(updates: Any, params: Any, masks: Masks) -> Any:
    """`updates` that are -w where a weight w is pruned: w + -w is +0.0 for every finite w."""

    def to_zero(m, u, w):
        if m is None:
            return u
        dtype = jnp.promote_types(u.dtype, w.dtype)
        return jnp.where(m, u.astype(dtype), -w.astype(dtype))

    return jax.tree.map(to_zero, masks, updates, params, is_leaf=lambda x: x is None)


def mask_moments(opt_state: Any, masks: Masks) -> Any:
    """`opt_state` with 0 where a pruned weight has moments, so that no norm or trust ratio sees it again.

    An array is a parameter's if its key path and its shape end like the parameter's (L-BFGS keeps several in one).
    Arrays that are not shaped so (Adafactor's factored moments, the one vector of `optax.flatten`) stay as they are:
    they see masked gradients alone, and what they held of a weight before it was pruned decays.
    """
    kept = dict(jax.tree_util.tree_leaves_with_path(masks, is_leaf=lambda x: x is None))

    def mask_array(path, x):
        mask = next((kept[path[i:]] for i in range(len(path) + 1) if path[i:] in kept), None)
        if mask is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        lead = x.ndim - mask.ndim
        return apply_masks(x, jnp.expand_dims(mask, tuple(range(lead)))) if x.shape[max(lead, 0) :] == mask.shape else x

    return jax.tree_util.tree_map_with_path(mask_array, opt_state)
