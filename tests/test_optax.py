"""`masked(tx)`: the masking contract in anybody's loop, for every public optax optimizer that takes gradients alone."""

import functools
import inspect
from types import FunctionType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxprune.optax import mask_moments, masked
from jaxprune.pruning import init_masks, pruner

LEFT_OUT = {
    "lbfgs": "needs the value and a function of it",
    "polyak_sgd": "needs the value",
    "momo": "needs the value",
    "momo_adam": "needs the value",
    "dpsgd": "takes the gradients of single examples",
    "sophia": "needs a function of the loss",
    "scale_by_learning_rate": "is no optimizer, but the last part of one",
    "scale_by_madgrad": "is madgrad's",
    "schedule_free": "takes another optimizer; schedule_free_adamw and schedule_free_sgd are there",
    "optimistic_adam": "the former name of optimistic_adam_v2, which warns",
}
"""Optimizers that do not take gradients alone, and why."""
NEEDS = {
    "noisy_sgd": {"key": 0},
    "adafactor": {"min_dim_size_to_factor": 4},
    "galore": {"rank": 2},
    "dadapt_adamw": {"estim_lr0": 0.1},
}
"""Arguments beside a learning rate."""


def _optimizers():
    """Every function of optax and optax.contrib that makes a gradient transformation from a learning rate."""
    for name, function in sorted({**vars(optax.contrib), **vars(optax)}.items()):
        if name in LEFT_OUT or name.startswith("_") or not isinstance(function, FunctionType | functools.partial):
            continue
        if "learning_rate" in inspect.signature(function).parameters or name in ("dog", "dowg"):
            rate = {} if name in ("dog", "dowg") else {"learning_rate": 1.0 if name == "prodigy" else 1e-2}
            yield name, functools.partial(function, **rate, **NEEDS.get(name, {}))


def _labels(params):
    return {"a": "slow", "b": "fast"}


SPECIAL = {
    "chain with clipping and decay": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.01)
    ),
    "multi_transform": lambda: optax.multi_transform({"slow": optax.sgd(1e-3), "fast": optax.lamb(1e-2)}, _labels),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
    "optax.masked inside": lambda: optax.masked(optax.adamw(1e-2), {"a": True, "b": {"kernel": True, "bias": False}}),
    "MultiSteps": lambda: optax.MultiSteps(optax.adamw(1e-2), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(1e-2)),
}
OPTIMIZERS = {**dict(_optimizers()), **SPECIAL}


def _params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 12)), "bias": jnp.ones(12)},
        "b": {"kernel": jax.random.normal(keys[1], (12, 4)), "bias": jnp.ones(4)},
    }


def test_the_list_is_optax_own():
    names = (
        "adam adamw nadam nadamw lamb lion adafactor sgd rmsprop yogi adagrad sm3 muon prodigy schedule_free_sgd dog"
    )
    assert {*names.split()} <= {*OPTIMIZERS} and len(OPTIMIZERS) >= 50
    everything = {*vars(optax), *vars(optax.contrib)}
    assert {*LEFT_OUT, *NEEDS} <= everything and not {*LEFT_OUT} & {*OPTIMIZERS}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_and_nothing_remembers_them(name):
    tx, using = masked(OPTIMIZERS[name]()), pruner()
    params = start = _params()
    masks = init_masks(params, ".*/kernel")
    state, opt_state = using.init(params, masks), tx.init(params)
    step = jax.jit(lambda p, s, m, g: tx.update(g, s, p, masks=m))
    for i in range(7):
        if i in (2, 5):
            params, masks, state, _ = using.update(state, params, masks, 0.3 * (1 + (i > 2)))
        grads = jax.tree.map(lambda w: 0.1 * w + jnp.sin(w * (i + 1)), params)  # noqa: B023 (used at once)
        updates, opt_state = step(params, opt_state, masks, grads)
        params = optax.apply_updates(params, updates)
        for part in ("a", "b"):
            pruned = ~np.asarray(masks[part]["kernel"])
            weights = np.asarray(params[part]["kernel"])
            assert (weights[pruned].view(np.uint32) == 0).all()  # +0.0, not -0.0
            assert np.isfinite(weights).all()
            for moment in jax.tree.leaves(opt_state):
                if np.shape(moment) == pruned.shape and jnp.issubdtype(moment.dtype, jnp.floating):
                    # Some add their epsilon to a moment; nothing else may be there, which the next update sees as 0.
                    assert (np.abs(np.asarray(moment)[pruned]) <= 1e-7).all()
    for part in ("a", "b"):
        live = np.asarray(masks[part]["kernel"])
        assert 0.55 < 1 - live.mean() < 0.65
        assert (
            np.mean(np.asarray(params[part]["kernel"])[live] != np.asarray(start[part]["kernel"])[live]) > 0.6
        )  # rprop waits where signs change


def test_a_pruned_network_trains_like_the_small_one_that_it_holds():
    """Norms, trust ratios and moments see live weights only: rows that are pruned might as well not be there."""
    params = _params()
    rows = jnp.arange(8) < 3
    masks = {
        "a": {"kernel": jnp.broadcast_to(rows[:, None], (8, 12)), "bias": None},
        "b": {"kernel": None, "bias": None},
    }
    small = {**params, "a": {**params["a"], "kernel": params["a"]["kernel"][:3]}}
    big_tx, small_tx = masked(optax.lamb(1e-2)), optax.lamb(1e-2)
    big_state, small_state = big_tx.init(params), small_tx.init(small)
    for i in range(4):
        grads = jax.tree.map(lambda w: jnp.cos(w + i), params)  # noqa: B023
        small_grads = {**grads, "a": {**grads["a"], "kernel": grads["a"]["kernel"][:3]}}
        updates, big_state = big_tx.update(grads, big_state, params, masks=masks)
        params = optax.apply_updates(params, updates)
        updates, small_state = small_tx.update(small_grads, small_state, small)
        small = optax.apply_updates(small, updates)
    np.testing.assert_allclose(params["a"]["kernel"][:3], small["a"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(params["b"]["kernel"], small["b"]["kernel"], rtol=1e-5)


def test_moments_are_found_by_path_and_shape():
    params = _params()
    masks = jax.tree.map(lambda m: m.at[0].set(False), init_masks(params, ".*/kernel"))
    state = optax.adam(1e-2).init(params)
    ones = jax.tree.map(jnp.ones_like, state)
    got = mask_moments(ones, masks)
    assert (np.asarray(got[0].mu["a"]["kernel"])[0] == 0).all() and (
        np.asarray(got[0].nu["b"]["kernel"])[1:] == 1
    ).all()
    assert (np.asarray(got[0].mu["a"]["bias"]) == 1).all() and int(got[0].count) == 1


def test_params_are_needed():
    tx = masked(optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs params"):
        tx.update(_params(), tx.init(_params()), masks=init_masks(_params(), ".*"))
