"""AdamW against BERT's formulas written out in numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.config import OptimizerConfig, PruneConfig
from jaxprune.experiments.pruning_plan import plan_of, restarts_of
from jaxprune.training.optimizer import adamw, decays, relative_rate, with_peak_rate

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])},
    "layer_norm": {"scale": jnp.array([1.0, 1.0])},
}


def _reference(params, grads_list, *, lr, b1, b2, eps, decay, clip, correct, warmup, steps):
    flat = {
        "/".join(p.key for p in path): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    mu, nu = ({k: np.zeros_like(v) for k, v in flat.items()} for _ in range(2))
    for step, grads in enumerate(grads_list):
        grads = {
            "/".join(p.key for p in path): np.asarray(x, np.float64)
            for path, x in jax.tree_util.tree_leaves_with_path(grads)
        }
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = clip / norm if clip and norm > clip else 1.0
        rate = lr * (step / warmup if step < warmup else (steps - step) / (steps - warmup))
        for k, g in grads.items():
            mu[k] = b1 * mu[k] + (1 - b1) * g * scale
            nu[k] = b2 * nu[k] + (1 - b2) * (g * scale) ** 2
            m, v = (mu[k] / (1 - b1 ** (step + 1)), nu[k] / (1 - b2 ** (step + 1))) if correct else (mu[k], nu[k])
            update = m / (np.sqrt(v) + eps)
            if k.endswith("kernel"):
                update = update + decay * flat[k]
            flat[k] = flat[k] - rate * update
    return flat


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_matches_the_formulas(correct, clip):
    cfg = OptimizerConfig(learning_rate=0.1, warmup_steps=3, bias_correction=correct, clip_norm=clip)
    steps = 10
    tx = adamw(cfg, steps)
    rng = np.random.default_rng(0)
    grads_list = [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS) for _ in range(steps)
    ]
    params, state = PARAMS, tx.init(PARAMS)
    for grads in grads_list:
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    expected = _reference(
        PARAMS,
        grads_list,
        lr=0.1,
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        decay=0.01,
        clip=clip,
        correct=correct,
        warmup=3,
        steps=steps,
    )
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_allclose(x, expected["/".join(p.key for p in path)], rtol=2e-5)


def test_decay_spares_biases_and_layer_norm():
    assert decays(PARAMS) == {"dense": {"kernel": True, "bias": False}, "layer_norm": {"scale": False}}


def test_warmup_then_linear_to_zero():
    rate = relative_rate(OptimizerConfig(warmup_steps=4), 20)
    np.testing.assert_allclose([rate(s) for s in (0, 2, 4, 12, 20)], [0, 0.5, 1, 0.5, 0], atol=1e-6)


def test_the_published_decay_runs_from_step_0():
    """google-research/bert, optimization.py: polynomial_decay over all steps, and the warm-up in its stead at first."""
    rate = relative_rate(OptimizerConfig(warmup_steps=4, decay="published"), 20)
    expected = [step / 4 if step < 4 else 1 - step / 20 for step in range(21)]
    np.testing.assert_allclose([rate(step) for step in range(21)], expected, atol=1e-6)
    plain = relative_rate(OptimizerConfig(decay="published"), 20)
    np.testing.assert_allclose([plain(step) for step in range(21)], [1 - step / 20 for step in range(21)], atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 3])
def test_cycles_begin_anew_with_every_prune_that_takes_more(warmup):
    """The rate of the step after a prune is the peak; the last cycle goes to the last step, and recovers."""
    prune = PruneConfig(sparsity=0.9, initial=0.7, begin=6, end=14, every=4, mode="soft", refresh=True)
    plan = plan_of(prune, 24, "steps")
    assert [*plan] == [6, 10, 14, 18, 22, 24]  # the last three take no more
    for decay, restarts in (("cycles", (6, 10, 14)), ("rewound", (14,)), ("linear", ()), ("constant", ())):
        assert restarts_of(decay, plan) == restarts
        if not restarts:
            continue
        edges, expected = [warmup, *restarts, 24], [step / max(warmup, 1) for step in range(warmup)]
        for start, end in itertools.pairwise(edges):
            expected += [(end - step) / (end - start) for step in range(start, end)]
        rate = relative_rate(OptimizerConfig(decay=decay, warmup_steps=warmup), 24, restarts)
        np.testing.assert_allclose([rate(step) for step in range(25)], [*expected, 0], atol=1e-6)
        np.testing.assert_allclose(jax.jit(rate)(14), 1)
    assert restarts_of("cycles", {2: 0.0, 4: {"": 0.0, "x": 0.2, "y": None}, 6: {"": 0.0, "x": 0.2, "y": None}}) == (4,)
    assert relative_rate(OptimizerConfig(decay="cycles"), 24)(12) == 0.5


def test_peak_rate_is_data():
    tx = adamw(OptimizerConfig(learning_rate=1.0), 10)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    one, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    half, _ = tx.update(grads, with_peak_rate(tx.init(PARAMS), 0.5), PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), one, half)
