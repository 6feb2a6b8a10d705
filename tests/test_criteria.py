"""Criteria; the contract tests cover every entry of CRITERIA."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.errors import UserError
from jaxprune.pruning import CRITERIA, Criterion, init_masks, keep_top, pruner
from jaxprune.pruning.criteria import BY_INPUTS, elementwise, summed

FAST = {"xla_backend_optimization_level": 0}
ALL = CRITERIA | BY_INPUTS
criteria = pytest.mark.parametrize("name", sorted(ALL))


@pytest.fixture(scope="module")
def params():
    def draw(i, *shape):
        return jax.random.normal(jax.random.key(i), shape)

    attention = {n: {"kernel": draw(i, 192, 16)} for i, n in enumerate(("query", "key"))}
    return {"encoder": {"layer_00": {"attention": attention}}, "word": draw(9, 200, 16).round(1), "bias": draw(8, 16)}


@pytest.fixture(scope="module")
def masks(params):
    return init_masks(params, [".*kernel", "word"])


def gradients(params, seed):
    return jax.tree.map(lambda w: jnp.cos(w * 7 + seed), params)


def seen(criterion, params, seed):
    """What a criterion observes in a step: gradients, or products of inputs."""
    values = gradients(params, seed)
    if getattr(criterion, "watches", "gradients") == "gradients":
        return values
    return jax.tree.map(lambda w: w @ w.T if w.ndim == 2 else w, values)


def observed(criterion, params, masks, steps=3):
    """The state after a few steps."""
    state = criterion.init(params, masks)
    for seed in range(steps):
        state = criterion.observe(state, params, masks, seen(criterion, params, seed)) if criterion.observe else state
    return state


@criteria
def test_contract(name, params, masks):
    criterion, key = ALL[name], jax.random.key(3)
    state = observed(criterion, params, masks)
    assert jax.tree.structure(state) == jax.tree.structure(criterion.init(params, masks))
    for mask, leaf in zip(
        jax.tree.leaves(masks) if jax.tree.leaves(state) else (), jax.tree.leaves(state), strict=True
    ):
        rows = mask.shape[-2]
        assert leaf.shape == (rows, rows) if criterion.watches == "inputs" else leaf.shape[: mask.ndim] == mask.shape
    scores = criterion.score(state, params, masks, key)
    assert jax.tree.structure(scores) == jax.tree.structure(masks)
    for score, mask in zip(jax.tree.leaves(scores), jax.tree.leaves(masks), strict=True):
        assert score.shape == mask.shape and jnp.issubdtype(score.dtype, jnp.floating)
        assert bool(jnp.isfinite(score).all())
    program = jax.jit(criterion.score).lower(state, params, masks, key).compile()
    assert "lapack" not in program.as_text()  # see pruning/inverses.py
    again = program(state, params, masks, key)
    if criterion.compensate:
        assert "lapack" not in jax.jit(criterion.compensate).lower(state, params, masks, masks).compile().as_text()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), scores, again))
    if criterion.elementwise:
        assert not jax.tree.leaves(state) and criterion.observe is None
        jax.tree.map(np.testing.assert_array_equal, scores["word"], criterion.elementwise(params["word"]))


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_prunes_are_the_same_on_a_mesh(name, params, masks):
    criterion = CRITERIA[name]
    mode, kind = [("hard", AxisType.Auto), ("soft", AxisType.Explicit)][sorted(CRITERIA).index(name) % 2]
    mode = "hard" if criterion.compensate else mode
    prune = pruner(name, mode=mode)

    def step(params, masks):
        state = observed(criterion, params, masks)
        return prune.update(state, params, masks, 0.7, jax.random.key(1))

    step = jax.jit(step, compiler_options=FAST)
    want = step(params, masks)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):

        def put(x):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b") if x.ndim == 2 else PartitionSpec()))

        arguments = jax.tree.map(put, params), jax.tree.map(put, masks)
        compiled = step.lower(*arguments).compile()
        got = compiled(*arguments)
    assert "lapack" not in compiled.as_text()  # it would sometimes never end: see pruning/inverses.py
    assert "all-gather" not in compiled.as_text()
    got, want = jax.device_get(got), jax.device_get(want)
    if criterion.compensate:  # sums of products, whose order is a shard's
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got[0], want[0])
        got, want = got[1:], want[1:]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_magnitude(params, masks):
    scores = CRITERIA["magnitude"].score((), params, masks, None)
    assert scores["bias"] is None
    np.testing.assert_array_equal(scores["word"], np.abs(params["word"]))


def test_random_depends_on_key_and_path_alone(params, masks):
    random = partial(CRITERIA["random"].score, ())
    scores = random(params, masks, jax.random.key(0))
    attention = scores["encoder"]["layer_00"]["attention"]
    assert not np.array_equal(attention["query"]["kernel"], attention["key"]["kernel"])
    assert not np.array_equal(scores["word"], random(params, masks, jax.random.key(1))["word"])
    alone = random({"word": params["word"]}, {"word": masks["word"]}, jax.random.key(0))
    np.testing.assert_array_equal(scores["word"], alone["word"])
    with pytest.raises(UserError, match="key"):
        random(params, masks, None)
    with pytest.raises(UserError, match="key"):
        pruner("random").update((), params, masks, 0.5)


def test_random_pruning_is_uniform():
    w = {"w": jnp.zeros((300, 400))}
    masks = pruner("random").update((), w, init_masks(w, ["w"]), 0.6, jax.random.key(5))[1]["w"]
    assert int(masks.sum()) == 48_000
    rows, columns = np.asarray(masks.sum(1)), np.asarray(masks.sum(0))
    assert abs(rows - 160).max() < 5 * (400 * 0.24) ** 0.5
    assert abs(columns - 120).max() < 5 * (300 * 0.24) ** 0.5


SUMS = {"movement": lambda w, g: -w * g, "taylor": lambda w, g: np.abs(w * g), "fisher": lambda w, g: w**2 * g**2}


@pytest.mark.parametrize(("name", "term"), SUMS.items())
def test_sums_over_gradients(name, term, params, masks):
    scores = CRITERIA[name].score(observed(CRITERIA[name], params, masks), params, masks, None)
    assert scores["bias"] is None and scores["word"].dtype == jnp.float32
    want = sum(term(*(np.asarray(x["word"], np.float64) for x in (params, gradients(params, s)))) for s in range(3))
    np.testing.assert_allclose(scores["word"], want, rtol=1e-5, atol=1e-6)


def test_fisher_is_the_rise_of_a_quadratic_loss():
    """Of a Gaussian's -log likelihood, of curvature h: h w^2 / 2, with the weight at the prune and gradients before."""
    h, w = np.array([4.0, 1.0, 0.25, 9.0], np.float32), np.array([0.5, -1.5, 2.0, 0.1], np.float32)
    rng, fisher = np.random.default_rng(0), CRITERIA["fisher"]
    tree, kept = {"w": jnp.asarray(w)}, {"w": jnp.ones(4, bool)}
    state = fisher.init(tree, kept)
    for noise in rng.normal(size=(400, 4)):  # its gradients are sqrt(h) times a standard normal
        state = fisher.observe(state, tree, kept, {"w": jnp.asarray(np.sqrt(h) * noise, jnp.float32)})
    rise = np.asarray(fisher.score(state, tree, kept, None)["w"]) / 400 / 2
    np.testing.assert_allclose(rise, h * w**2 / 2, rtol=0.25)
    twice = fisher.score(state, {"w": 2 * tree["w"]}, kept, None)["w"]
    np.testing.assert_allclose(twice, 8 * 400 * rise, rtol=1e-5)


def test_movement_of_masked_weights_goes_on_when_soft_and_ends_when_hard():
    params = {"w": jnp.array([1.0, 2.0, -3.0, 4.0])}
    first, second = {"w": jnp.array([1.0, -1.0, 1.0, -1.0])}, {"w": jnp.array([-9.0, 0.0, 0.0, 0.0])}
    for mode, score in (("soft", 8.0), ("hard", -1.0)):
        prune = pruner("movement", mode=mode)
        masks = init_masks(params, ["w"])
        state = prune.observe(prune.init(params, masks), params, masks, first)
        pruned, masks, state, _ = prune.update(state, params, masks, 0.25)
        np.testing.assert_array_equal(masks["w"], [False, True, True, True])
        state = prune.observe(state, pruned, masks, second)
        assert state["w"][0] == score
        pruned, masks, state, report = prune.update(state, pruned, masks, 0.25 if mode == "soft" else 0.5)
        expected = [True, False, True, True] if mode == "soft" else [False, False, True, True]
        np.testing.assert_array_equal(masks["w"], expected)
        assert (int(report.regrown["w"]), int(report.removed["w"])) == ((1, 1) if mode == "soft" else (0, 1))
        np.testing.assert_array_equal(
            pruned["w"], params["w"] if mode == "soft" else np.where(expected, params["w"], 0)
        )


def test_prune_is_keep_top_of_the_scores(params, masks):
    soft = pruner("magnitude", scope="matrix", mode="soft").update((), params, masks, 0.5)[1]
    want = keep_top(CRITERIA["magnitude"].score((), params, masks, None), 0.5, scope="matrix")
    jax.tree.map(np.testing.assert_array_equal, soft, want)


def test_criteria_of_ones_own(params, masks):
    """A function of params, with scores also where nothing is pruned; of weights; with state; a whole Criterion."""
    want = pruner("magnitude").update((), params, masks, 0.5)[:2]
    squares = pruner(lambda params, masks, key: jax.tree.map(jnp.square, params))
    for own in (squares, pruner(elementwise(jnp.abs)), pruner(CRITERIA["magnitude"])):
        jax.tree.map(np.testing.assert_array_equal, own.update((), params, masks, 0.5)[:2], want)
    prune = pruner(summed(lambda w, g: g * g))
    state = prune.observe(prune.init(params, masks), params, masks, params)
    jax.tree.map(np.testing.assert_array_equal, prune.update(state, params, masks, 0.5)[:2], want)
    wrong = Criterion(CRITERIA["random"].init, None, lambda *_: {**params, "word": None})
    with pytest.raises(UserError, match=re.escape("scores of word are no array of shape (200, 16)")):
        pruner(wrong).update((), params, masks, 0.5)
    with pytest.raises(UserError, match="criterion = 'magnitud' is unknown.*the nearest is 'magnitude'"):
        pruner("magnitud")
