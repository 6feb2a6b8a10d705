"""Thresholds: exact counts, order, ties, methods, monotone prunes, small temporaries."""

import re
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow import AS_SHIPPED

from jaxprune.errors import UserError
from jaxprune.pruning import (
    SCOPES,
    amounts,
    keep_top,
    leaf_counts,
    order_statistics,
    pruner,
    select,
)
from jaxprune.pruning.groups import group
from jaxprune.pruning.integers import kept_counts, wide, wide_add, wide_ge, wide_mul, wide_sub, wide_sum
from jaxprune.pruning.names import path_of
from jaxprune.pruning.structures import weights

FIXTURES = Path(__file__).parent / "fixtures"
HEADS = 4
SPARSITIES = (0.0, 0.1, 0.3, 0.45, 0.5, 0.7, 0.9, 0.95, 0.999, 1.0)
FAST = {"xla_backend_optimization_level": 0}  # this file compiles about a hundred programs
top = jax.jit(keep_top, static_argnames=("scope", "method"), compiler_options=FAST)


def layer(path: str, shape: tuple[int, ...]):
    """Leaves under one `layer_NN` form a group."""
    match = re.match(r"(.*/)?layer_\d+", path)
    return (match[0], None, 1) if match else None


def head(path: str, shape: tuple[int, ...]):
    """Columns of query, key and value kernels and rows of the output kernel of one attention head form a group.

    Kernels may have an axis of heads, as in Flax Linen: (in, heads, size), and (heads, size, out) of the output.
    """
    match = re.fullmatch(r"(.*/)?attention/(query|key|value|output)/kernel", path)
    return ((match[1] or "") + "attention", 0 if match[2] == "output" else 1, HEADS) if match else None


ALL_SCOPES = {**SCOPES, "layer": layer, "head": head}


def wanted(size: int, s: float) -> int:
    """round((1 - s) * size) of the decimal s, in rationals, halves to even."""
    return round((1 - Fraction(Decimal(repr(s)))) * size)


def order(x) -> np.ndarray:
    """Ranks of scores: NaN < -inf < ... < -0.0 = +0.0 < ... < inf."""
    x = np.asarray(x).astype(np.float64)
    return np.where(np.isnan(x), -np.inf, np.where(np.isneginf(x), -1e300, x))


def nasty(seed: int, shape, dtype=np.float32) -> jax.Array:
    """Scores with many ties, zeros of both signs, NaN and infinities."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).round(1)
    x[rng.random(shape) < 0.2] = 0.0
    x[rng.random(shape) < 0.1] *= -0.0
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(shape) < 0.02] = value
    return jnp.asarray(x, dtype)


def bert_tree(seed: int = 0, dtype=np.float32):
    layers = {}
    for i in range(2):
        attention = {
            n: {"kernel": nasty(seed + 10 * i + j, (32, 32), dtype)} for j, n in enumerate(("query", "output"))
        }
        layers[f"layer_{i:02}"] = {
            "attention": attention,
            "output": {"kernel": nasty(seed + 10 * i + 5, (48, 32), dtype)},
        }
    return {"encoder": layers, "word": nasty(seed + 30, (70, 32), dtype), "bias": None, "vector": nasty(seed + 31, 96)}


def group_members(tree, scope):
    """Flat (scores, mask) views of every group, from paths alone."""
    members: dict[str, list] = {}
    for key_path, x in jax.tree_util.tree_leaves_with_path(tree):
        path, x = path_of(key_path), np.asarray(x)
        attention = re.fullmatch(r"(encoder/layer_\d+/attention)/(\w+)/kernel", path)
        if scope == "head" and attention:
            axis = 0 if attention[2] == "output" else 1
            for head, piece in enumerate(np.split(x, HEADS, axis)):
                members.setdefault(f"{attention[1]}/{head}", []).append(piece.ravel())
            continue
        if scope == "output" and x.ndim > 1:
            members |= {f"{path}/{k}": [x[..., k].ravel()] for k in range(x.shape[-1])}
            continue
        layer = re.match(r"encoder/layer_\d+", path)
        name = "all" if scope == "global" else layer[0] if scope == "layer" and layer else path
        members.setdefault(name, []).append(x.ravel())
    return {name: np.concatenate(pieces) for name, pieces in members.items()}


def test_scopes_under_test_are_all():
    assert set(SCOPES) == {"global", "matrix", "output"}
    sizes = {scope: len(group_members(bert_tree(), scope)) for scope in ALL_SCOPES}
    outputs = sum(x.shape[-1] if x.ndim > 1 else 1 for x in jax.tree.leaves(bert_tree()))
    assert sizes == {"global": 1, "matrix": 8, "layer": 4, "head": 2 * HEADS + 4, "output": outputs}


@pytest.mark.parametrize(
    ("scope", "dtype"),
    [*((scope, np.float32) for scope in sorted(ALL_SCOPES)), ("global", jnp.bfloat16), ("head", np.float16)],
)
def test_exact_count_and_order_in_every_group(scope, dtype):
    tree = bert_tree(3, dtype)
    scores = group_members(tree, scope)
    for s in SPARSITIES:
        masks = top(tree, s, scope=ALL_SCOPES[scope])
        assert jax.tree.structure(masks) == jax.tree.structure(tree) and masks["bias"] is None
        for name, mask in group_members(masks, scope).items():
            assert mask.sum() == wanted(mask.size, s), (name, s)
            if 0 < mask.sum() < mask.size:
                rank = order(scores[name])
                assert rank[mask].min() >= rank[~mask].max()


@pytest.mark.parametrize("scope", ["global", "head"])
def test_python_and_traced_sparsity_agree(scope):
    tree = bert_tree(5)
    for s in (0.7, 1 / 3):
        traced = top(tree, jnp.float32(s), scope=ALL_SCOPES[scope])
        jax.tree.map(np.testing.assert_array_equal, keep_top(tree, s, scope=ALL_SCOPES[scope]), traced)


SIZES = (0, 1, 5, 108_965_376, 2**33, *np.random.default_rng(0).integers(0, 2**33, 60).tolist())
count = jax.jit(partial(kept_counts, SIZES))


def _counts(s):
    return [int(high) << 32 | int(low) for high, low in np.asarray(count(np.float32(s)))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_counts_are_exact_for_decimals(millionths):
    s = millionths / 10**6
    assert _counts(s) == [wanted(n, s) for n in SIZES]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(0, 1, width=32))
def test_counts_are_near_for_any_float(s):
    for n, kept in zip(SIZES, _counts(s), strict=True):
        assert abs(kept - (1 - Fraction(s)) * n) <= Fraction(1, 2) + Fraction(5 * n, 4 * 2**24)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.sampled_from([1, 7, 1000, 2**24 + 1, 23_440_896]))
def test_python_numbers_are_counted_as_they_print(s, size):
    tree = {"w": jax.ShapeDtypeStruct((size,), jnp.float32)}
    groups, shares = amounts.share_out(tree, s, SCOPES["global"], weights)
    assert groups.sizes == [size] and shares.sparsity == np.float32(s)
    assert np.asarray(shares.kept).tolist() == [[0, wanted(size, s)]]


def test_wide_integers():
    def ints(limbs):
        return [int(high) << 32 | int(low) for high, low in np.asarray(limbs)]

    rng = np.random.default_rng(1)
    a = [0, 1, 2**32 - 1, 2**32, 2**33, *rng.integers(0, 2**34, 50).tolist()]
    b = [0, 2**32 - 1, 1, 2**32 - 1, 2**33 - 1, *rng.integers(0, 2**34, 50).tolist()]
    assert ints(wide_add(wide(a), wide(b))) == [x + y for x, y in zip(a, b)]
    high, low = [max(x, y) for x, y in zip(a, b)], [min(x, y) for x, y in zip(a, b)]
    assert ints(wide_sub(wide(high), wide(low))) == [x - y for x, y in zip(high, low)]
    assert np.asarray(wide_ge(wide(a), wide(b))).tolist() == [x >= y for x, y in zip(a, b)]
    x, y = rng.integers(0, 2**32, (2, 50), dtype=np.uint32)
    assert ints(wide_mul(jnp.asarray(x), jnp.asarray(y))) == [int(p) * int(q) for p, q in zip(x, y)]
    counts = rng.integers(2**31, 2**32, (40, 3), dtype=np.uint32)
    total = np.asarray(wide_sum(jnp.asarray(counts), [0] * 30 + [1] * 10, 2))
    for i, rows in enumerate((counts[:30], counts[30:])):
        assert ints(total[i]) == rows.astype(object).sum(0).tolist()


def test_round_half_to_even_of_the_typed_decimal():
    for size, s, kept in [(10, 0.7, 3), (10, 0.25, 8), (10, 0.35, 6), (10, 0.45, 6), (10, 0.95, 0), (5, 0.5, 2)]:
        assert int(keep_top(jnp.arange(float(size)), s).sum()) == kept == wanted(size, s)
    for s in range(1001):
        assert _counts(s / 1000) == [wanted(n, s / 1000) for n in SIZES]


def test_key_order():
    values = [np.nan, -np.inf, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1e-38, 1.0, 3e38, np.inf]
    keys = np.asarray(order_statistics.order_key(jnp.array(values, jnp.float32)))
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    signs = order_statistics.order_key(jnp.array([-0.0, 0.0, -np.nan, np.nan], jnp.float32))
    assert signs[0] == signs[1] and signs[2] == signs[3]
    back = np.asarray(order_statistics.from_order_key(jnp.asarray(keys)))
    np.testing.assert_array_equal(back[1:], np.array(values[1:], np.float32))


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_nan_goes_first_and_inf_last(scope):
    x = jnp.array([jnp.nan, 1.0, -jnp.inf, jnp.inf, -jnp.nan, 0.0])
    for s, kept in [(2 / 6, {1, 2, 3, 5}), (3 / 6, {1, 3, 5}), (4 / 6, {1, 3}), (5 / 6, {3})]:
        assert set(np.flatnonzero(top({"x": x}, s, scope=scope)["x"])) == kept
    assert int(top({"x": jnp.full(8, jnp.nan)}, 0.5, scope=scope)["x"].sum()) == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 4 * 61), st.integers(-30, 30))
def test_the_k_largest_stay_at_any_scale(seed, k, exponent):
    x = np.asarray(np.random.default_rng(seed).standard_cauchy((4, 61)) * 2.0**exponent, np.float32)
    masks, thresholds = select({"x": x}, 1 - k / x.size)
    np.testing.assert_array_equal(masks["x"], x >= np.sort(x, axis=None)[-k])
    np.testing.assert_array_equal(masks["x"], x >= thresholds["x"])


def test_the_k_largest_of_a_tree_stay():
    tree = bert_tree(7)
    scores = group_members(tree, "global")["all"]
    for k in (1, 2, 500, 3000, scores.size):
        kept = group_members(top(tree, 1 - k / scores.size, scope="global"), "global")["all"]
        assert kept.sum() == k and order(scores[kept]).min() == np.sort(order(scores))[-k]


def test_ties_have_no_position():
    ones = {"a": jnp.ones((256, 512)), "b": jnp.ones((256, 512))}
    masks = {scope: jax.device_get(top(ones, 0.5, scope=scope)) for scope in ("global", "matrix")}
    for mask in [*masks["global"].values(), *masks["matrix"].values()]:
        assert abs(mask.sum(0) - 128).max() < 5 * 256**0.5 / 2 + 1
        assert abs(mask.sum(1) - 256).max() < 5 * 512**0.5 / 2 + 1
        assert (
            abs(np.mean(mask[1:] == mask[:-1]) - 0.5) < 0.02 and abs(np.mean(mask[:, 1:] == mask[:, :-1]) - 0.5) < 0.02
        )
    assert abs(np.mean(masks["matrix"]["a"] == masks["matrix"]["b"]) - 0.5) < 0.02
    assert masks["global"]["a"].sum() + masks["global"]["b"].sum() == 256 * 512
    grown = jax.device_get(top(ones, 0.3, scope="matrix"))
    assert not (masks["matrix"]["a"] & ~grown["a"]).any()


def test_ranks_are_unique_in_a_group():
    shapes = {"a": (64, 96), "b": (7, 5, 30), "c": (999,)}
    groups = group(list(shapes), list(shapes.values()), [""] * 3, SCOPES["global"], weights)
    leaves = [order_statistics.Leaf(jnp.zeros(shape), None, slot) for shape, slot in zip(shapes.values(), groups.slots)]
    ranks = np.concatenate([np.asarray(order_statistics.leaf_rank(leaf)).ravel() for leaf in leaves])
    assert np.unique(ranks).size == ranks.size == groups.span


@pytest.mark.parametrize("scope", ["global", "head"])
def test_colliding_ranks_still_give_exact_counts(scope, monkeypatch):
    def colliding(*arguments):
        groups = group(*arguments)
        return groups._replace(slots=tuple(s._replace(offset=0, salt=0) for s in groups.slots), span=2**33)

    monkeypatch.setattr(amounts, "group", colliding)
    attention = {n: {"kernel": jnp.zeros((16, 16))} for n in ("query", "key", "value")}
    tree = {"attention": attention | {"output": {"kernel": jnp.ones((16, 16))}}}
    for s in (0.11, 0.5, 0.501, 0.777):
        masks = keep_top(tree, s, scope=ALL_SCOPES[scope])
        per_head = sum(np.asarray(attention["kernel"]).reshape(16, HEADS, 4).sum((0, 2)) for attention in
                       [masks["attention"][n] for n in ("query", "key", "value")])  # fmt: skip
        per_head = per_head + np.asarray(masks["attention"]["output"]["kernel"]).reshape(HEADS, 4, 16).sum((1, 2))
        assert per_head.sum() == wanted(1024, s) if scope == "global" else (per_head == wanted(256, s)).all()


def test_shapes_of_every_kind():
    tree = {
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.array(2.0),
        "cube": nasty(1, (3, 40, 50)),
        "thin": nasty(2, (900, 2)),
    }
    for scope in ("global", "matrix"):
        masks = top(tree, 0.5, scope=scope)
        counts = leaf_counts(masks)
        if scope == "matrix":
            assert counts == {"cube": (3000, 6000), "empty": (0, 0), "scalar": (0, 1), "thin": (900, 1800)}
        else:
            assert sum(kept for kept, _ in counts.values()) == wanted(7801, 0.5)
    assert keep_top({"a": None}, 0.5) == {"a": None}


def _golden(version):
    data = np.load(FIXTURES / f"golden_{version}.npz")
    for entry in data.files:
        if entry.endswith("/mask"):
            name, target, _ = entry.split("/")
            w = data[f"weights/{name}"]
            mask = np.unpackbits(data[entry])[: w.size].reshape(w.shape).astype(bool)
            yield name, w, float(target[1:]), mask, data[f"{name}/{target}/threshold"]


def test_hist256_is_tensorflow_1_13():
    cases = list(_golden("tf113"))
    assert len(cases) == 40
    run = jax.jit(partial(select, method="hist256", scope="matrix"))
    for name, w, s, mask, threshold in cases:
        masks, got = run({name: jnp.abs(w)}, s)
        np.testing.assert_array_equal(masks[name], mask, err_msg=f"{name} {s}")
        assert got[name] == threshold, (name, s)


@pytest.mark.parametrize("size", [10, 50, 110, 12_340, 1_000_020, 1_000_060])
def test_hist256_where_the_cumulative_fraction_is_the_sparsity(size):
    """A tenth of the scores in each of ten bins: TensorFlow divides and compares in float32, as numpy does."""
    rng = np.random.default_rng(size)
    bins = [*np.sort(rng.choice(255, 9, replace=False)).tolist(), 255]
    x = np.repeat((np.array(bins, np.float32) + np.float32(0.5)) / np.float32(256), size // 10)
    x[-1] = 1.0
    rng.shuffle(x)
    indices = np.clip(np.floor(np.float32(256) * (x / x.max())), 0, 255).astype(int)
    cdf = np.cumsum(np.bincount(indices, minlength=256)).astype(np.float32) / np.float32(size)
    run = jax.jit(partial(select, method="hist256", scope="matrix"))
    for tenth in range(11):
        s = tenth / 10
        threshold = np.float32((cdf < np.float32(s)).sum()) / np.float32(256) * x.max()
        if tenth:
            assert cdf[bins[tenth - 1]] == np.float32(s) and threshold * 256 == bins[tenth - 1]
        for masks, got in (run({"x": x}, s), select({"x": x}, s, method="hist256")):
            assert got["x"] == threshold, (size, s)
            np.testing.assert_array_equal(masks["x"], x > threshold)


def test_exact_is_tensorflow_1_15_up_to_its_ties():
    tied = 0
    for name, w, s, mask, threshold in _golden("tf115"):
        kept = np.asarray(top({name: jnp.abs(w)}, s)[name])
        assert kept.sum() == wanted(w.size, s)
        if mask.sum() == kept.sum():
            np.testing.assert_array_equal(kept, mask, err_msg=f"{name} {s}")
        else:  # the original op keeps every weight that ties with the threshold
            tied += 1
            assert not (kept & ~mask).any() and (np.abs(w)[mask & ~kept] == threshold).all()
            assert select({name: jnp.abs(w)}, s)[1][name] == threshold  # the k-th largest, which the threshold cuts
    assert 0 < tied < 12


@pytest.mark.parametrize("scope", ["layer", "head"])
def test_quantile_and_hist256_per_group(scope):
    tree = jax.tree.map(lambda x: jnp.abs(jnp.nan_to_num(x, posinf=3.0, neginf=-2.0)) + 0.01, bert_tree(2))
    scores = group_members(tree, scope)
    for method in ("quantile", "hist256"):
        for s in (0.0, 0.4, 0.9):
            masks = group_members(top(tree, s, scope=ALL_SCOPES[scope], method=method), scope)
            for name, x in scores.items():
                if method == "quantile":
                    t = np.asarray(jnp.quantile(jnp.asarray(x), jnp.float32(s)))
                else:
                    bins = np.clip(np.floor(np.float32(256) * (x / x.max())), 0, 255).astype(int)
                    cdf = np.cumsum(np.bincount(bins, minlength=256)).astype(np.float32) / np.float32(x.size)
                    t = np.float32((cdf < np.float32(s)).sum()) / np.float32(256) * x.max()
                np.testing.assert_array_equal(masks[name], x > t, err_msg=f"{method} {name} {s}")


@pytest.mark.parametrize("method", ["quantile", "hist256"])
def test_nan_is_never_kept_silently(method):
    x = jnp.array([jnp.nan, 1.0, 2.0, 3.0, jnp.nan, 4.0])
    kept = np.asarray(keep_top({"x": x}, 0.4, method=method)["x"])
    assert kept.any() and not kept[[0, 4]].any()


def test_select_thresholds_separate():
    tree = bert_tree(11)
    masks, limits = select(tree, 0.6, scope=head)
    assert limits["encoder"]["layer_00"]["attention"]["query"]["kernel"].shape == (HEADS,)
    word, mask, limit = order(tree["word"]), np.asarray(masks["word"]), float(limits["word"])
    assert word[mask].min() >= limit >= word[~mask].max()


def test_soft_masks_may_return():
    masks = {"w": jnp.array([False, True, True, True])}
    params = {"w": jnp.array([9.0, 1.0, 2.0, 3.0])}
    _, new, _, report = pruner("magnitude", mode="soft").update((), params, masks, 0.5)
    assert (int(report.regrown["w"]), int(report.removed["w"])) == (1, 2)
    np.testing.assert_array_equal(new["w"], [True, False, False, True])


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_temporary_memory_is_small(scope):
    tree = {name: jax.ShapeDtypeStruct((2048, 768), jnp.float32) for name in "abc"}
    masks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bool), tree)
    step = jax.jit(partial(pruner("magnitude", scope=scope).update, ()))
    whole = jax.jit(partial(keep_top, scope=scope))
    for lowered in (whole.lower(tree, 0.7), step.lower(tree, masks, 0.7)):
        compiled = lowered.compile(AS_SHIPPED)
        assert compiled.memory_analysis().temp_size_in_bytes < 0.02 * 3 * 2048 * 768 * 4


@pytest.mark.parametrize(
    ("scores", "arguments", "words"),
    [
        (jnp.ones(3), {"sparsity": 1.5}, "sparsity = 1.5"),
        (jnp.ones(3), {"sparsity": float("nan")}, "sparsity = nan"),
        (jnp.ones(3), {"sparsity": 0.5, "scope": "row"}, "scope = 'row' is unknown; use one of global, matrix"),
        (
            jnp.ones(3),
            {"sparsity": 0.5, "method": "exat"},
            "method = 'exat' is unknown; use one of exact, quantile",
        ),
        ({"w": jnp.ones(3, jnp.int32)}, {"sparsity": 0.5}, "scores of w have dtype int32"),
        (
            {"word": jnp.ones((6, 6)), "b": jnp.ones(3)},
            {"sparsity": 0.5, "scope": head},
            "scope = head names none of 2 prunable leaves (b, word, ...)",
        ),
        (
            {"attention": {"key": {"kernel": jnp.ones((6, 6))}}},
            {"sparsity": 0.5, "scope": head},
            "4 parts do not divide axis 1 of attention/key/kernel",
        ),
    ],
)
def test_refuses(scores, arguments, words):
    with pytest.raises(UserError, match=re.escape(words)):
        keep_top(scores, **arguments)
