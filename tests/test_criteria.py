"""Criteria; the contract tests cover every entry of CRITERIA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.pruning import CRITERIA, init_masks, keep_top, magnitude, prune, random

criteria = pytest.mark.parametrize("name", sorted(CRITERIA))


@pytest.fixture(scope="module")
def params():
    def draw(i, *shape):
        return jax.random.normal(jax.random.key(i), shape)

    attention = {n: {"kernel": draw(i, 16, 16)} for i, n in enumerate(("query", "key"))}
    return {"encoder": {"layer_00": {"attention": attention}}, "word": draw(9, 40, 16).round(1), "bias": draw(8, 16)}


@pytest.fixture(scope="module")
def masks(params):
    return init_masks(params, [".*kernel", "word"])


@criteria
def test_contract(name, params, masks):
    key = jax.random.key(3)
    grads = jax.tree.map(jnp.ones_like, params)
    scores = CRITERIA[name](params, masks, grads=grads, key=key)
    assert jax.tree.structure(scores) == jax.tree.structure(masks)
    for score, mask in zip(jax.tree.leaves(scores), jax.tree.leaves(masks), strict=True):
        assert score.shape == mask.shape and jnp.issubdtype(score.dtype, jnp.floating)
        assert bool(jnp.isfinite(score).all())
    again = jax.jit(CRITERIA[name])(params, masks, grads=grads, key=key)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), scores, again))


@criteria
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_masks_are_the_same_on_a_mesh(name, kind, params, masks):
    def step(params, masks):
        return prune(params, masks, 0.7, criterion=CRITERIA[name], key=jax.random.key(1), grads=params)

    want = jax.jit(step)(params, masks)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):

        def put(x):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b") if x.ndim == 2 else PartitionSpec()))

        compiled = jax.jit(step).lower(jax.tree.map(put, params), jax.tree.map(put, masks)).compile()
        got = compiled(jax.tree.map(put, params), jax.tree.map(put, masks))
    assert "all-gather" not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def test_magnitude(params, masks):
    scores = magnitude(params, masks)
    assert scores["bias"] is None
    np.testing.assert_array_equal(scores["word"], np.abs(params["word"]))


def test_random_depends_on_key_and_path_alone(params, masks):
    scores = random(params, masks, key=jax.random.key(0))
    attention = scores["encoder"]["layer_00"]["attention"]
    assert not np.array_equal(attention["query"]["kernel"], attention["key"]["kernel"])
    assert not np.array_equal(scores["word"], random(params, masks, key=jax.random.key(1))["word"])
    alone = random({"word": params["word"]}, {"word": masks["word"]}, key=jax.random.key(0))
    np.testing.assert_array_equal(scores["word"], alone["word"])
    with pytest.raises(ValueError, match="key"):
        random(params, masks)


def test_random_pruning_is_uniform():
    w = {"w": jnp.zeros((300, 400))}
    masks = prune(w, init_masks(w, ["w"]), 0.6, criterion=random, key=jax.random.key(5))["w"]
    assert int(masks.sum()) == 48_000
    rows, columns = np.asarray(masks.sum(1)), np.asarray(masks.sum(0))
    assert abs(rows - 160).max() < 5 * (400 * 0.24) ** 0.5
    assert abs(columns - 120).max() < 5 * (300 * 0.24) ** 0.5


def test_prune_is_keep_top_of_the_scores(params, masks):
    soft = prune(params, masks, 0.5, criterion=magnitude, scope="matrix", monotone=False)
    want = keep_top(magnitude(params, masks), 0.5, scope="matrix")
    jax.tree.map(np.testing.assert_array_equal, soft, want)
