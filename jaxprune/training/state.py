"""The whole state of a training run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.pruning import apply_masks

Params = Any
Masks = Any


class TrainState(NamedTuple):
    """step () int32: optimizer steps taken. masks: like params, bool (True = kept) or None where not prunable."""

    step: jax.Array
    params: Params
    masks: Masks
    opt_state: optax.OptState


def create(params: Params, masks: Masks, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, masks, tx.init(params))


def mask_moments(tx: optax.GradientTransformation, opt_state: optax.OptState, masks: Masks, params: Params):
    """`opt_state` with 0 where a pruned weight has moments, so no norm or trust ratio in `tx` sees it again.

    Arrays of the optimizer that are not shaped like their parameter (Adafactor's factored moments) stay as they are.
    """
    everywhere = jax.tree.map(lambda p, m: jnp.ones((), bool) if m is None else m, params, masks)

    def mask(moment, kept):
        return apply_masks(moment, kept) if getattr(moment, "shape", None) == kept.shape != () else moment

    return optax.tree_utils.tree_map_params(tx, mask, opt_state, everywhere)
