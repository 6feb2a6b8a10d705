"""The pruner: its report, amounts per path, and parts of the caller's own."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_thresholds import FAST, head, nasty, wanted

from jaxprune.errors import UserError
from jaxprune.pruning import CRITERIA, init_masks, keep_top, pruner, select, sparsity
from jaxprune.pruning.amounts import share_out
from jaxprune.pruning.single_prune import prune_once


def params(seed=0):
    attention = {name: {"kernel": nasty(seed + i, (16, 24))} for i, name in enumerate(("query", "key", "value"))}
    tree = {"layer_00": {"attention": attention}, "word": nasty(seed + 9, (30, 16)), "bias": jnp.ones(3)}
    return jax.tree.map(lambda x: jnp.nan_to_num(x, posinf=2.0, neginf=-2.0), tree)


def masks_of(tree):
    return init_masks(tree, [".*kernel", "word"])


def count(mask):
    return int(np.asarray(mask).sum())


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_report_counts_what_changed(mode):
    tree, rng = params(), np.random.default_rng(3)
    old = jax.tree.map(lambda m: jnp.asarray(rng.random(m.shape) < 0.6), masks_of(tree))
    pruned, new, state, report = pruner(mode=mode).update((), tree, old, 0.5)
    assert state == () and jax.tree.structure(new) == jax.tree.structure(old)
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    counts = [(count(b), count(b & ~a), count(a & ~b), a.size) for a, b in pairs]
    for field, part in zip(report[:4], zip(*counts), strict=True):
        assert jax.tree.structure(field) == jax.tree.structure(old) and field["bias"] is None
        assert all(x.dtype == jnp.uint32 for x in jax.tree.leaves(field))
        assert tuple(int(x) for x in jax.tree.leaves(field)) == part
    assert any(regrown for _, regrown, _, _ in counts) == (mode == "soft")
    for name in ("word",):
        w, kept = np.abs(tree[name]), np.asarray(new[name])
        limit = float(report.threshold[name])
        assert report.threshold[name].dtype == jnp.float32
        assert w[kept].min() >= limit >= w[~kept & (np.asarray(old[name]) if mode == "hard" else True)].max()
        after = np.asarray(pruned[name])
        np.testing.assert_array_equal(after, np.where(kept, tree[name], 0) if mode == "hard" else tree[name])
        assert not np.signbit(after[~kept]).any() or mode == "soft"


def test_thresholds_are_those_of_the_search():
    tree = params()
    scores = {"word": jnp.abs(tree["word"])}
    for scope, shape in (("global", ()), (lambda path, shape: ("halves", 1, 2), (2,))):
        masks, threshold = select(scores, 0.6, scope=scope)
        report = pruner(scope=scope).update((), {"word": tree["word"]}, init_masks(scores, "word"), 0.6)[3]
        np.testing.assert_array_equal(report.threshold["word"], threshold["word"])
        assert threshold["word"].shape == shape and int(report.kept["word"]) == count(masks["word"])
    report = pruner().update((), tree, masks_of(tree), 1.0)[3]
    assert float(report.threshold["word"]) == np.inf and int(report.kept["word"]) == 0


def test_amounts_by_path():
    """Each amount is counted apart; under the scope `global`, of each regex's leaves together; None is left alone."""
    tree = params()
    masks = masks_of(tree)
    target = {r".*/(query|key)/kernel": 0.9, ".*value.*": None, "": 0.35}
    for scope in ("global", "matrix"):
        prune = pruner(scope=scope)
        got, new, _, report = prune.update((), tree, masks, target)
        attention = new["layer_00"]["attention"]
        own = [count(attention[name]["kernel"]) for name in ("query", "key")]
        assert own == [wanted(384, 0.9)] * 2 if scope == "matrix" else sum(own) == wanted(768, 0.9)
        assert attention["value"]["kernel"].all() and count(new["word"]) == wanted(480, 0.35)
        value = report.threshold["layer_00"]["attention"]["value"]["kernel"]
        assert np.isnan(value) and int(report.kept["layer_00"]["attention"]["value"]["kernel"]) == 384
        np.testing.assert_array_equal(
            got["layer_00"]["attention"]["value"]["kernel"], tree["layer_00"]["attention"]["value"]["kernel"]
        )
        shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), masks)
        amounts = prune.amounts(shapes, target)
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(amounts))
        update = jax.jit(prune.update, compiler_options=FAST)
        traced = jax.jit(lambda s: prune.update((), tree, masks, target | {"": s})[1], compiler_options=FAST)  # noqa: B023
        for masks_again in (update((), tree, masks, amounts)[1], traced(jnp.float32(0.35))):
            jax.tree.map(np.testing.assert_array_equal, masks_again, new)
        assert update._cache_size() == 1
        update((), tree, masks, prune.amounts(shapes, target | {"": 0.5}))
        assert update._cache_size() == 1  # amounts are data
    alone = keep_top({"a": jnp.arange(4.0), "b": jnp.arange(4.0)}, {"a": None, "b": 0.5})
    assert alone["a"].tolist() == [True] * 4 and alone["b"].tolist() == [False, False, True, True]
    nothing = pruner().update((), tree, masks, {"": None})
    jax.tree.map(np.testing.assert_array_equal, nothing[:2], (tree, masks))


def test_what_is_left_alone_need_not_fit_the_structure():
    tree = {"odd": jnp.ones((7, 8)), "even": jnp.ones((8, 8))}
    masks = pruner(structure="2:4").update((), tree, init_masks(tree, ".*"), {"odd": None, "": 0.5})[1]
    assert masks["odd"].all() and (masks["even"].reshape(2, 4, 8).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"wrd": 0.5, "": 0.1}, ["amounts: 'wrd' matches no parameter path", "the nearest is 'word'"]),
        ({"word": 0.5, "w.*": 0.1, "": 0.1}, ["amounts: ", "'word'", "'w.*'", "match word", "one amount"]),
        ({"word": 0.5}, ["amounts: no regex matches layer_00/attention/key/kernel", "''"]),
        ({"(": 0.5, "": 0.1}, ["amounts: '(' is no regular expression"]),
        ({"word": 1.5, "": 0.1}, ["amounts: 'word' = 1.5 is no sparsity", "[0, 1]"]),
        ({"word": 0.5, "": 1.5}, ["sparsity = 1.5 is no sparsity"]),
    ],
)
def test_amounts_that_do_not_fit(target, words):
    tree = params()
    for call in (pruner().amounts, lambda masks, target: pruner().update((), tree, masks, target)):
        with pytest.raises(UserError) as error:
            call(masks_of(tree), target)
        assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(("structure", "shape"), [("2:4", (30, 16)), ("block(4, 4)", (8, 6)), ("block(4, 4)", (6, 8))])
def test_a_structure_that_does_not_fit_names_what_helps(structure, shape):
    """And that helps: to exclude the leaf, or to leave it alone by its amount."""
    tree = {"kernel": nasty(1, (16, 16)), "word": nasty(0, shape)}
    prune, masks = pruner(structure=structure), init_masks(tree, ".*")
    with pytest.raises(UserError, match=r"structure: .* word, .*exclude it, or leave it .* amounts: {word: null}"):
        prune.amounts(masks, 0.5)
    for good, target in ((init_masks(tree, ".*", "word"), 0.5), (masks, {"": 0.5, "word": None})):
        assert count(prune.update((), tree, good, target)[1]["kernel"]) == 128


def test_amounts_of_other_masks_are_refused():
    tree = params()
    amounts = pruner().amounts(masks_of(tree), 0.5)
    with pytest.raises(UserError, match="of other masks"):
        pruner(scope="global").update((), tree, masks_of(tree), amounts)


def test_numbers_keep_their_decimals_on_the_host():
    """A float32 cannot say 0.1234567; a Python number can, also inside a compiled update."""
    w = {"w": jax.ShapeDtypeStruct((10_000_000,), jnp.float32)}
    program = jax.jit(lambda w, m: pruner().update((), w, m, 0.1234567)).lower(w, init_masks(w, "w")).as_text()
    assert wanted(10_000_000, 0.1234567) == 8_765_433 and "[[0, 8765433]]" in program
    groups, amounts = share_out(w, 0.1234567, *_plain())
    assert groups.sizes == [10_000_000] and np.asarray(amounts.kept).tolist() == [[0, 8_765_433]]


def _plain():
    return lambda path, shape: ("", None, 1), lambda path, shape: (1,) * len(shape)


def test_heads_of_flax_linen_kernels():
    """Kernels (in, heads, size) and (heads, size, out): a group is one head's slices of all four."""
    attention = {name: {"kernel": nasty(i, (12, 4, 3))} for i, name in enumerate(("query", "key", "value"))}
    attention["output"] = {"kernel": nasty(5, (4, 3, 12))}
    masks = keep_top({"attention": attention}, 0.7, scope=head)["attention"]
    per_head = masks["output"]["kernel"].sum((1, 2)) + sum(masks[n]["kernel"].sum((0, 2)) for n in ("query", "key"))
    per_head = per_head + masks["value"]["kernel"].sum((0, 2))
    assert per_head.tolist() == [wanted(144, 0.7)] * 4


def test_a_method_of_ones_own():
    """Above the mean of each matrix, whatever the sparsity."""

    def above_mean(leaves, groups, amounts):
        scores = [leaf.scores() for leaf in leaves]
        means = jnp.stack([x.mean() for x in scores])
        return [x > mean for x, mean in zip(scores, means)], means

    tree = params()
    masks, limits = pruner(method=above_mean, mode="soft").update((), tree, masks_of(tree), 0.5)[1::2]
    w = np.abs(np.asarray(tree["word"]))
    np.testing.assert_array_equal(masks["word"], w > np.asarray(limits.threshold["word"]))
    np.testing.assert_allclose(limits.threshold["word"], w.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"criterion": "random_"}, "criterion = 'random_' is unknown; use one of"),
        ({"scope": "matrx"}, "the nearest is 'matrix'"),
        ({"method": "exat"}, "the nearest is 'exact'"),
        ({"structure": "block"}, "structure = 'block' is unknown"),
        ({"mode": "firm"}, "mode = 'firm'"),
        ({"scope": "head"}, "scope = 'head' is unknown; use one of global, matrix"),
    ],
)
def test_unknown_names(arguments, words):
    with pytest.raises(UserError, match=re.escape(words)):
        pruner(**arguments)
    assert pruner(scope="head", scopes={"head": head}).mode == "hard"


@pytest.mark.parametrize(
    "parts",
    [{"method": "quantile"}, {"distribution": "erk"}, {"scope": "output", "method": "hist256"}],
)
def test_leaves_without_weights_count_as_nothing(parts):
    some = {"w": jnp.arange(32.0).reshape(8, 4) + 1, "wide": jnp.arange(64.0).reshape(4, 16) + 1}
    none = {"none": jnp.zeros((0, 4)), "outputs": jnp.zeros((4, 0)), "vector": jnp.zeros(0)}
    tree, prune = some | none, pruner(**parts).update
    _, masks, _, report = prune((), tree, init_masks(tree, ".*"), 0.5)
    _, expected, _, wanted_report = prune((), some, init_masks(some, ".*"), 0.5)
    once, thresholds = prune_once(tree, init_masks(tree, ".*"), 0.5, **parts)
    for name in some:
        np.testing.assert_array_equal(masks[name], expected[name])
        np.testing.assert_array_equal(once[name], expected[name])
        for given in (report.threshold[name], thresholds[name]):
            np.testing.assert_array_equal(given, wanted_report.threshold[name])
    assert all(masks[name].shape == x.shape and int(report.kept[name]) == 0 for name, x in none.items())
    assert sparsity(masks) == sparsity(expected) and sum(x.size for x in jax.tree.leaves(masks)) == 96


def test_jit_and_eager_agree_in_everything():
    tree = params(20)
    for name in CRITERIA:
        prune = pruner(name, scope="global")
        state = prune.observe(prune.init(tree, masks_of(tree)), tree, masks_of(tree), tree)
        arguments = (state, tree, masks_of(tree), 0.55, jax.random.key(0))
        jitted = jax.jit(partial(prune.update, sparsity=0.55, key=jax.random.key(0)))(*arguments[:3])
        jax.tree.map(np.testing.assert_array_equal, prune.update(*arguments), jitted)
        assert sparsity(jitted[1]) == 1 - wanted(3 * 384 + 480, 0.55) / (3 * 384 + 480)
