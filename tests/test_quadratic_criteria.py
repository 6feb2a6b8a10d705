"""Criteria that take the loss for a quadratic form, beside numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.pruning import CRITERIA, pruner
from jaxprune.pruning.criteria import BY_INPUTS
from jaxprune.pruning.fisher_blocks import BLOCK, DAMPING, block_of
from jaxprune.pruning.layer_inputs import DAMPING as INPUT_DAMPING


def least(matrix, w, kept):
    """The values of the kept for which (v - w)^T matrix (v - w) is least, the others 0."""
    kept = np.flatnonzero(kept)
    values = np.zeros_like(w)
    values[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], (matrix @ w)[kept])
    return values


def rises(matrix, w, live):
    """(v - w)^T matrix (v - w) / 2 of the best v in which one more of the live is 0, for each of them."""
    rises = np.zeros_like(w)
    for i in np.flatnonzero(live):
        change = least(matrix, w, live & (np.arange(len(w)) != i)) - w
        rises[i] = change @ matrix @ change / 2
    return rises


def damped(matrix, mean, share):
    return matrix + (share * mean + 1e-12) * np.eye(len(matrix))


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [((768, 3072), 0, 48), ((3072, 768), 0, 48), ((30522, 384), 1, 48), ((16, 2), 0, 16), ((7, 100), 1, 50)],
)
def test_blocks_divide_an_axis(shape, axis, size):
    assert block_of(shape) == (axis, size) and size <= BLOCK


@pytest.mark.parametrize("shape", [(6, 4), (3, 64)])  # blocks of inputs, and of outputs
def test_obert_scores_and_compensates_in_blocks(shape):
    """Weight by weight and block by block; those that were pruned before stay where they are."""
    rng = np.random.default_rng(0)
    w, grads = rng.normal(size=shape), rng.normal(size=(40, *shape)) * rng.uniform(0.1, 2, shape)
    grads += grads.mean(tuple(range(1, 3)), keepdims=True)  # so that blocks are not diagonal
    before = rng.random(shape) < 0.9
    w = np.where(before, w, 0)
    params, masks = {"w": jnp.asarray(w, jnp.float32)}, {"w": jnp.asarray(before)}
    prune = pruner("obert")
    state = prune.init(params, masks)
    for g in grads:
        state = prune.observe(state, params, masks, {"w": jnp.asarray(g, jnp.float32)})
    pruned, after, fresh, _ = prune.update(state, params, masks, 0.5)
    axis, size = block_of(shape)
    lines = lambda x: np.moveaxis(x, axis, -1).reshape(-1, size)  # noqa: E731
    fishers = np.einsum("gbi,gbj->bij", *[np.stack([lines(g) for g in grads])] * 2)
    mean = np.float32(jnp.bfloat16(np.einsum("bii->bi", fishers).mean()))
    scores, values = [], []
    for matrix, own, live, kept in zip(fishers, *map(lines, (w, before, np.asarray(after["w"]))), strict=True):
        matrix = damped(matrix, mean, DAMPING)
        scores.append(rises(matrix, own, live))
        values.append(least(matrix, own, kept))
    got = CRITERIA["obert"].score(state, params, masks, None)["w"]
    np.testing.assert_allclose(lines(np.asarray(got)), scores, rtol=1e-3)
    np.testing.assert_allclose(lines(np.asarray(pruned["w"])), values, rtol=1e-3, atol=1e-4)
    assert int(after["w"].sum()) == w.size // 2 and not bool((after["w"] & ~masks["w"]).any())
    assert not np.asarray(fresh["w"]).any()  # gradients of the next weights say something else


def test_obert_that_has_seen_nothing_is_magnitude():
    params = {"w": jax.random.normal(jax.random.key(0), (48, 8))}
    masks = {"w": jnp.ones((48, 8), bool)}
    prune = pruner("obert")
    pruned, after, _, _ = prune.update(prune.init(params, masks), params, masks, 0.5)
    want, kept, _, _ = pruner("magnitude").update((), params, masks, 0.5)
    np.testing.assert_array_equal(after["w"], kept["w"])
    np.testing.assert_array_equal(pruned["w"], want["w"])


def inputs(seed=0, tokens=50, n=12):
    """Inputs (tokens, n) whose columns depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, n)) @ rng.normal(size=(n, n)) * rng.uniform(0.2, 3, n)


def test_wanda_is_weight_times_norm_of_input():
    x, w = inputs(), np.random.default_rng(1).normal(size=(12, 5))
    params, masks = {"w": jnp.asarray(w, jnp.float32)}, {"w": jnp.ones((12, 5), bool)}
    wanda = BY_INPUTS["wanda"]
    state = wanda.init(params, masks)
    for part in np.split(x, 5):
        state = wanda.observe(state, params, masks, {"w": jnp.asarray(part.T @ part, jnp.float32)})
    want = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
    np.testing.assert_allclose(wanda.score(state, params, masks, None)["w"], want, rtol=1e-4)


def test_obs_is_the_least_squares_of_each_output():
    """What is kept gives the outputs as well as it can: beside numpy's solution, and better than what it was."""
    x, w = inputs(), np.random.default_rng(1).normal(size=(12, 5))
    params, masks = {"w": jnp.asarray(w, jnp.float32)}, {"w": jnp.ones((12, 5), bool)}
    products = x.T @ x
    prune = pruner("obs")
    state = prune.observe(prune.init(params, masks), params, masks, {"w": jnp.asarray(products, jnp.float32)})
    pruned, after, _, _ = prune.update(state, params, masks, 0.5)
    matrix = damped(products, np.diag(products).mean(), INPUT_DAMPING)
    for live in (np.ones(w.shape, bool), np.random.default_rng(2).random(w.shape) < 0.6):  # all, and after a prune
        want = np.stack([rises(matrix, *columns) for columns in zip(np.where(live, w, 0).T, live.T, strict=True)], 1)
        values, held = {"w": jnp.where(live, params["w"], 0)}, {"w": jnp.asarray(live)}
        np.testing.assert_allclose(BY_INPUTS["obs"].score(state, values, held, None)["w"], want, rtol=1e-3)
    kept, got = np.asarray(after["w"]), np.asarray(pruned["w"])
    best = np.stack([least(matrix, column, mask) for column, mask in zip(w.T, kept.T, strict=True)], 1)
    np.testing.assert_allclose(got, best, rtol=5e-3, atol=5e-3 * np.abs(w).max())
    error = [np.square(x @ (v - w)).sum() for v in (best, got, np.where(kept, w, 0))]
    assert error[1] < 1.001 * error[0] + 1e-6 < error[2] * 0.8
    assert (got[~kept] == 0).all() and kept.sum() == 30
