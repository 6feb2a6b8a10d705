"""The whole state of a training run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.pruning.interface import Pruner
from jaxprune.pruning.masks import apply_masks

Params = Any
Masks = Any


class TrainState(NamedTuple):
    """step () int32: optimizer steps taken. masks: like params, bool (True = kept) or None where not prunable.
    pruner: what the pruner's criterion remembers."""

    step: jax.Array
    params: Params
    masks: Masks
    opt_state: optax.OptState
    pruner: Any


def create(params: Params, masks: Masks, tx: optax.GradientTransformation, pruner: Pruner) -> TrainState:
    """The state before the first step; with hard masks, pruned weights are +0.0 from the very start."""
    if pruner.mode == "hard":
        params = apply_masks(params, masks)
    return TrainState(jnp.zeros((), jnp.int32), params, masks, tx.init(params), pruner.init(params, masks))
