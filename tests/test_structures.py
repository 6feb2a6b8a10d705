"""Structures: which weights live or die together, as groupings of the one threshold code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.pruning import CRITERIA, METHODS, SCOPES, STRUCTURES, Tile, init_masks, keep_top, pruner, sparsity

FAST = {"xla_backend_optimization_level": 0}
NAMES = {"weights": "weights", "n:m": "2:4", "block(rows, columns)": "block(4, 2)"}
"""A name of every kind of structure."""
TOGETHER = {"weights": (1, 1), "2:4": (1, 1), "block(4, 2)": (4, 2)}


def test_every_structure_is_under_test():
    assert {*NAMES} == {*STRUCTURES}


def draw(seed, *shape):
    """Values with many ties."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).round(1), jnp.float32)


def tree(seed=0):
    return {"a": {"kernel": draw(seed, 16, 24)}, "b": {"kernel": draw(seed + 1, 32, 8)}, "bias": jnp.ones(5)}


def tiles_of(mask, together):
    """The mask of tiles, after a check that all weights of a tile agree."""
    rows, columns = together
    view = np.asarray(mask).reshape(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns)
    assert (view.all((1, 3)) == view.any((1, 3))).all()
    return view.all((1, 3))


@pytest.mark.parametrize("seed", range(5))
def test_n_of_m_keeps_the_largest_of_every_m_along_the_contraction_axis(seed):
    w = {"kernel": jnp.asarray(np.random.default_rng(seed).normal(size=(24, 10)), jnp.float32)}
    for n, m in ((2, 4), (1, 4), (4, 8)):
        kept = np.asarray(keep_top(jax.tree.map(jnp.abs, w), 1 - n / m, structure=f"{n}:{m}")["kernel"])
        for group, mask in zip(np.asarray(w["kernel"]).reshape(-1, m, 10), kept.reshape(-1, m, 10), strict=True):
            assert (mask.sum(0) == n).all()
            best = np.argsort(-np.abs(group), axis=0)[:n]
            assert np.take_along_axis(mask, best, 0).all()


def test_n_of_m_comes_in_steps_and_never_keeps_fewer_than_n():
    w = {"kernel": draw(3, 16, 6)}
    using, masks = pruner(structure="2:4"), init_masks(w, "kernel")
    for target, left in ((0.1, 4), (0.3, 3), (0.5, 2)):
        w, masks, _, report = using.update((), w, masks, target)
        assert (np.asarray(masks["kernel"]).reshape(4, 4, 6).sum(1) == left).all()
        assert int(report.kept["kernel"]) == 96 * left // 4
    with pytest.raises(ValueError, match="2 of 4 stay"):
        using.update((), w, masks, 0.7)
    traced = jax.jit(lambda s: using.update((), w, masks, s)[1])(jnp.float32(0.9))
    assert (np.asarray(traced["kernel"]).reshape(4, 4, 6).sum(1) == 2).all()


def test_blocks_are_ranked_by_their_mean():
    w = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    kept = tiles_of(keep_top({"kernel": jnp.abs(jnp.asarray(w))}, 0.75, structure="block(3, 2)")["kernel"], (3, 2))
    means = np.abs(w).reshape(4, 3, 4, 2).mean((1, 3))
    np.testing.assert_array_equal(kept, means >= np.sort(means.reshape(-1))[-4])


@pytest.mark.parametrize("structure", NAMES.values())
@pytest.mark.parametrize("scope", sorted(SCOPES))
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_exact_counts_and_no_return(criterion, method, scope, structure):
    """Hard masks are monotone for every criterion, method, scope and structure; exact ones keep round((1 - s) N)."""
    if structure == "2:4" and method != "exact":
        with pytest.raises(ValueError, match="exact"):
            pruner(structure=structure, method=method).update((), tree(), init_masks(tree(), ".*kernel"), 0.5)
        return
    using = pruner(criterion, structure=structure, scope=scope, method=method)
    params, together = tree(), TOGETHER[structure]
    masks = init_masks(params, ".*/kernel")

    @partial(jax.jit, compiler_options=FAST)
    def step(state, params, masks, amounts, key):
        state = using.observe(state, params, masks, jax.tree.map(lambda w: jnp.sin(3 * w), params))
        return using.update(state, params, masks, amounts, key)

    state, reached = using.init(params, masks), 0.0
    for i, s in enumerate((0.2, 0.5, 0.4, 0.5) if structure == "2:4" else (0.2, 0.5, 0.4, 0.8, 0.3, 1.0)):
        before = masks
        params, masks, state, report = step(state, params, masks, using.amounts(masks, s), jax.random.key(i))
        # Live weights may be exactly 0, and values under the mask anything: neither may bring a weight back.
        params = jax.tree.map(
            lambda m, w: w if m is None else jnp.where(m, w * (jnp.abs(w) > 0.2), 9.0), masks, params, is_leaf=_none
        )
        reached = max(reached, s)
        kept = {}
        for name in ("a", "b"):
            new, old = np.asarray(masks[name]["kernel"]), np.asarray(before[name]["kernel"])
            assert not (new & ~old).any()
            kept[name] = tiles_of(new, together)
            counts = (new.sum(), (new & ~old).sum(), (old & ~new).sum())
            said = (report.kept, report.regrown, report.removed)
            assert counts == tuple(int(part[name]["kernel"]) for part in said)
        if method == "exact" and structure != "2:4":
            groups = [np.concatenate([k.reshape(-1) for k in kept.values()])] if scope == "global" else kept.values()
            assert [int(group.sum()) for group in groups] == [round((1 - reached) * group.size) for group in groups]


def _none(x):
    return x is None


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("structure", NAMES.values())
def test_the_same_bits_on_a_mesh_and_nothing_moves(structure, kind):
    using, params = pruner(structure=structure, scope="global"), tree(7)
    masks = init_masks(params, ".*/kernel")
    update = jax.jit(partial(using.update, ()), compiler_options=FAST)
    want = jax.device_get(update(params, masks, using.amounts(masks, 0.5))[:2])
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):

        def put(x):
            return jax.device_put(x, NamedSharding(mesh, P("a", "b") if x.ndim == 2 else P()))

        there = jax.tree.map(put, (params, masks))
        compiled = update.lower(*there, using.amounts(masks, 0.5)).compile()
        got = compiled(*there, using.amounts(masks, 0.5))[:2]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), want)
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in compiled.as_text()


def test_a_structure_of_ones_own():
    w = {"kernel": draw(5, 8, 12)}
    columns = pruner(structure=lambda path, shape: (shape[0], 1))  # neurons
    mask = columns.update((), w, init_masks(w, "kernel"), 0.5)[1]["kernel"]
    assert sorted(np.asarray(mask).sum(0).tolist()) == [0] * 6 + [8] * 6
    rows = pruner(structure=lambda path, shape: Tile((1, 2), (0, 4)))  # half of every four pairs
    mask = tiles_of(rows.update((), w, init_masks(w, "kernel"), 0.5)[1]["kernel"], (1, 2))
    assert (mask.reshape(2, 4, 6).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        ("3:2", ["3:2"]),
        ("block(5, 5)", ["a/kernel"]),
        ("2:5", ["a/kernel"]),
        ("rows", ["structure = 'rows'", "weights"]),
    ],
)
def test_what_does_not_fit_is_refused(structure, words):
    with pytest.raises(ValueError) as error:
        keep_top(tree(), 0.4, structure=structure)
    assert all(word in str(error.value) for word in words), error.value


def test_sparsity_is_that_of_weights():
    w = {"kernel": draw(5, 8, 12)}
    masks = pruner(structure="block(2, 3)").update((), w, init_masks(w, "kernel"), 0.75)[1]
    assert sparsity(masks) == 0.75
