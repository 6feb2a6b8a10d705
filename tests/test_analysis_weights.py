"""Masks, ranks, heads, sums, heatmaps, memory and churn, against loops that follow the definitions."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from jaxprune.analysis.features import similarity
from jaxprune.analysis.heads import head_sparsity
from jaxprune.analysis.magnitude_pruning import magnitude_masks, removed_magnitude
from jaxprune.analysis.mask_distance import mask_distance
from jaxprune.analysis.paths import common_paths, flat, kinds, layer_of
from jaxprune.analysis.rank_movement import RANDOM, by_rank, movement, ranks
from jaxprune.analysis.weights import heatmap, memory, moments, token_group, token_rows
from jaxprune.errors import UserError

QUERY, OUT, FFN = (f"encoder/layer_00/{name}/kernel" for name in ("attention/query", "attention/output", "output"))
# The paper's parts of BERT.
PARTS = (
    ("word embeddings", r"embeddings/word_embeddings/embedding"),
    ("attention", r"encoder/layer_\d+/attention/.+"),
    ("feed-forward", r"encoder/layer_\d+/(intermediate|output|layer_norm)/.+"),
    ("heads", r"(mlm|nsp|classifier)/.+"),
)


def masks(rng, sparsity, shapes=((6, 6), (4, 9))):
    return {f"m{i}": rng.random(shape) >= sparsity for i, shape in enumerate(shapes)}


def test_flat_reads_nested_and_flat_trees():
    tree = {"encoder": {"layer_00": {"query": {"kernel": np.eye(2), "bias": None}}}, "x": np.ones(1)}
    assert list(flat(tree)) == ["encoder/layer_00/query/kernel", "x"] and list(flat(flat(tree))) == list(flat(tree))
    assert layer_of("encoder/layer_11/output/kernel") == 11 and layer_of("pooler/kernel") is None
    named = ("embeddings/word_embeddings/embedding", QUERY, OUT, FFN, "pooler/kernel")
    assert [kinds(named)[p] for p in named] == ["word embeddings", "query", "attention output", "output", "pooler"]
    with pytest.raises(UserError, match="x: only in a;"):
        common_paths({"x": np.ones(1)}, {})
    with pytest.raises(UserError, match="x: only in b;"):
        common_paths({}, {"x": np.ones(1)})
    with pytest.raises(UserError, match=r"x: \(1,\) in a, \(2,\) in b"):
        common_paths({"x": np.ones(1)}, {"x": np.ones(2)})


def test_layers_and_kinds_are_read_from_anybody_s_paths():
    flax = {"layers/3/attn/q_proj/kernel": "q proj", "layers/3/mlp/kernel": "mlp", "layers/11/mlp/kernel": "mlp"}
    assert kinds([*flax, "embed/table"]) == flax | {"embed/table": "embed"} and kinds(["w"]) == {"w": "w"}
    paths = ("layers/11/mlp/kernel", "h_2/w", "Block7/Dense_0/kernel", "encoder/layer_02", "word2vec/table", "w")
    assert [layer_of(path) for path in paths] == [11, 2, 7, 2, None, None]


@pytest.mark.parametrize("seed", range(4))
def test_distance_counts_entries(seed):
    rng = np.random.default_rng(seed)
    a, b = masks(rng, 0.6), masks(rng, 0.4)
    rows = {row["path"]: row for row in mask_distance(a, b)}
    every_a, every_b, chances = [], [], 0.0
    for path in a:
        x, y = a[path].ravel().tolist(), b[path].ravel().tolist()
        s, t = x.count(False) / len(x), y.count(False) / len(y)
        assert rows[path]["hamming"] == pytest.approx(sum(i != j for i, j in zip(x, y)) / len(x))
        assert rows[path]["iou"] == pytest.approx(
            sum(i and j for i, j in zip(x, y)) / sum(i or j for i, j in zip(x, y))
        )
        assert rows[path]["chance"] == pytest.approx(s * (1 - t) + t * (1 - s))
        assert rows[path]["ratio"] == pytest.approx(rows[path]["hamming"] / rows[path]["chance"])
        every_a, every_b, chances = every_a + x, every_b + y, chances + rows[path]["chance"] * len(x)
    assert rows["all"]["hamming"] == pytest.approx(np.mean(np.not_equal(every_a, every_b)))
    assert rows["all"]["chance"] == pytest.approx(chances / len(every_a))


def test_distance_of_random_masks_is_chance_and_of_six_percent_is_the_dossier_s():
    rng = np.random.default_rng(0)
    for s, chance in ((0.1, 0.18), (0.5, 0.5), (0.9, 0.18)):
        row = mask_distance(masks(rng, s, ((500, 400),)), masks(rng, s, ((500, 400),)))[-1]
        assert row["chance"] == pytest.approx(chance, abs=0.005) and row["ratio"] == pytest.approx(1, abs=0.02)
    for s, iou in ((0.6, 0.860), (0.9, 0.538)):  # a Hamming distance of 6 % in masks of the same sparsity
        a = np.arange(1000) < round(1000 * (1 - s))
        b = np.roll(a, 30)
        row = mask_distance({"x": a}, {"x": b})[-1]
        assert row["hamming"] == pytest.approx(0.06) and row["iou"] == pytest.approx(iou, abs=6e-4)
    same = mask_distance({"x": a}, {"x": a})[-1]
    assert same["hamming"] == 0 and same["iou"] == 1 and same["ratio"] == 0
    dense = mask_distance({"x": np.ones(4, bool)}, {"x": np.ones(4, bool)})[-1]
    assert dense["iou"] == 1 and math.isnan(dense["ratio"])


def test_movement_by_hand():
    before = {"x": np.array([[0.1, -0.2], [0.3, -0.4]])}
    after = {"x": np.array([[-0.5, 0.2], [0.3, 0.4]])}  # the smallest became the largest: 3, 1, 1, 1 places
    assert ranks(before["x"]).tolist() == [0, 1, 2, 3] and ranks(after["x"]).tolist() == [3, 0, 1, 2]
    row, pooled = movement(before, after)
    assert row.mean == pytest.approx(6 / 4 / 4) and row.std == pytest.approx(np.std([3, 1, 1, 1]) / 4)
    assert pooled[2:] == pytest.approx(row[2:])
    np.testing.assert_allclose(by_rank(before, after, bins=4), [3 / 6, 1 / 6, 1 / 6, 1 / 6])
    np.testing.assert_allclose(by_rank(before, after, bins=4, by="after"), [1 / 6, 1 / 6, 1 / 6, 3 / 6])


@pytest.mark.parametrize("seed", range(3))
def test_movement_follows_its_definition(seed):
    rng = np.random.default_rng(seed)
    before = {"a": rng.normal(size=(7, 9)), "b": rng.normal(size=(5, 4))}
    after = {path: w + 0.2 * rng.normal(size=w.shape) for path, w in before.items()}
    every, share = [], np.zeros(5)
    for path, row in zip(before, movement(before, after)):
        old, new = (sorted(np.abs(tree[path]).ravel()) for tree in (before, after))
        size = len(old)
        moved = [
            abs(new.index(abs(y)) - old.index(abs(x))) / size for x, y in zip(before[path].ravel(), after[path].ravel())
        ]
        for x, distance_ in zip(before[path].ravel(), moved):
            share[old.index(abs(x)) * 5 // size] += distance_
        assert (row.size, row.mean, row.std) == (size, pytest.approx(np.mean(moved)), pytest.approx(np.std(moved)))
        every += moved
    pooled = movement(before, after)[-1]
    assert (pooled.mean, pooled.std) == pytest.approx((np.mean(every), np.std(every)))
    np.testing.assert_allclose(by_rank(before, after, bins=5), share / share.sum())


def test_random_orders_move_a_third_and_equal_weights_not_at_all():
    rng = np.random.default_rng(1)
    a, b = ({"x": rng.normal(size=(300, 300))} for _ in range(2))
    assert movement(a, b)[-1].mean == pytest.approx(RANDOM, abs=0.003)
    ties = {"x": np.zeros((5, 5))}
    assert movement(ties, ties)[-1].mean == 0 and by_rank(ties, ties).sum() == 0


def heads(count):
    """The split of BERT's attention: columns of query, key and value, rows of the output."""

    def split(path, shape):
        match = re.fullmatch(r"(.*layer_\d+)/attention/(query|key|value|output)/kernel", path)
        return match and (match[1], 0 if match[2] == "output" else 1, count)

    return split


@pytest.mark.parametrize("seed", range(2))
def test_heads_own_columns_of_qkv_and_rows_of_the_output(seed):
    rng = np.random.default_rng(seed)
    D, H = 12, 3
    tree = {
        f"encoder/layer_0{i}/{part}/kernel": rng.random((D, D)) < 0.4
        for i in range(2)
        for part in ("attention/query", "attention/key", "attention/value", "attention/output", "intermediate")
    }
    found = head_sparsity(tree, heads(H))
    for i in range(2):
        for h in range(H):
            own = range(h * D // H, (h + 1) * D // H)
            pruned = 0
            for part in ("query", "key", "value"):
                mask = tree[f"encoder/layer_0{i}/attention/{part}/kernel"]
                pruned += sum(not mask[row, column] for row in range(D) for column in own)
            mask = tree[f"encoder/layer_0{i}/attention/output/kernel"]
            pruned += sum(not mask[row, column] for row in own for column in range(D))
            assert found[f"encoder/layer_0{i}"][h] == pytest.approx(pruned / (4 * D * D / H))
    with pytest.raises(UserError, match="5 heads do not divide 12"):
        head_sparsity(tree, heads(5))
    assert list(head_sparsity({QUERY: tree[QUERY], FFN: tree[QUERY]}, heads(H))) == ["encoder/layer_00"]
    whole = head_sparsity({QUERY: tree[QUERY]}, lambda path, shape: (path, None, 1))
    assert whole == {}  # a group that is not split has no heads


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_heads_of_an_architecture_are_its_scope(name):
    from jaxprune.config.sections import ModelConfig
    from jaxprune.models import architecture_named

    cfg = ModelConfig(architecture=name, hidden_size=12, num_attention_heads=3, num_hidden_layers=2)
    split = architecture_named(name).scopes(cfg)["head"]
    mask = np.ones((12, 12), bool)
    mask[:, :4] = False  # columns of head 0
    found = head_sparsity({QUERY: mask, OUT: mask, FFN: mask}, split)
    ((group, values),) = found.items()
    assert layer_of(group) == 0
    np.testing.assert_allclose(values, [(48 + 16) / 96, 16 / 96, 16 / 96])


@pytest.mark.parametrize("seed", range(2))
def test_removed_sums(seed):
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(5, 7)), "b": rng.normal(0.1, 2, size=(4, 4))}
    grid = [0.0, 0.3, 0.5, 1.0]
    for s, row in zip(grid, removed_magnitude(params, grid), strict=True):
        gone = [w for p in params.values() for w in sorted(p.ravel(), key=abs)[: p.size - round((1 - s) * p.size)]]
        assert row["abs_sum"] == pytest.approx(sum(map(abs, gone))) and row["signed_sum"] == pytest.approx(sum(gone))
    assert row["abs_share"] == pytest.approx(1) and removed_magnitude(params, [0.0])[0]["abs_share"] == 0
    for s in grid:
        kept = magnitude_masks(params, s)
        gone = sum(float(np.abs(w[~kept[path]]).sum()) for path, w in params.items())
        assert removed_magnitude(params, [s])[0]["abs_sum"] == pytest.approx(gone)
        assert [mask.sum() for mask in kept.values()] == [round((1 - s) * w.size) for w in params.values()]
    ties = magnitude_masks({"x": np.array([[1.0, -1.0], [1.0, 1.0]])}, 0.5)
    assert ties["x"].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (1, 1), (7, 5), (99, 99)])
def test_heatmap_is_the_mean_of_blocks(rows, columns):
    w = np.random.default_rng(0).normal(size=(7, 5))
    found = heatmap(w, rows, columns)
    rows, columns = min(rows, 7), min(columns, 5)
    assert found.shape == (rows, columns)
    places = [(i * 7 // rows, (i + 1) * 7 // rows) for i in range(rows)]
    for i, (top, end) in enumerate(places):
        for j in range(columns):
            block = w[top:end, j * 5 // columns : (j + 1) * 5 // columns]
            assert found[i, j] == pytest.approx(np.abs(block).mean())


def test_moments_and_tokens():
    w, mask = np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([[True, True], [True, False]])
    (row,) = moments({"x": w}, {"x": mask})
    assert row["mean"] == 0.5 and row["std"] == pytest.approx(w.std()) and row["abs_mean"] == 1.5
    assert row["kept_std"] == pytest.approx(np.std([1, -2, 3]))
    pieces = ["[PAD]", "[unused7]", "a", "##b", "##ing", "the", "walks", "consider", "["]
    groups = ["special", "[unused]", "1 character", "1 character", "2-3", "2-3", "4-6", "7 or more", "1 character"]
    assert [token_group(t, special=("[PAD]", "[CLS]")) for t in pieces] == groups
    assert token_group("[PAD]") == "4-6"
    rows = {
        r["group"]: r for r in token_rows(np.arange(8.0).reshape(4, 2), ["[unused0]", "a", "##b"], np.eye(4, 2) > 0)
    }
    assert rows["[unused]"] == {"group": "[unused]", "rows": 1, "abs_mean": 0.5, "sparsity": 0.5}
    assert rows["1 character"]["rows"] == 2 and rows["1 character"]["abs_mean"] == np.mean([2, 3, 4, 5])
    assert rows["padding"]["rows"] == 1 and rows["padding"]["sparsity"] == 1


def bert_base():
    """The shapes of BERT-Base uncased with its pre-training heads, as Hugging Face stores them."""
    D, F_, layer = 768, 3072, {}
    for name in ("query", "key", "value", "output"):
        layer |= {f"attention/{name}/kernel": (D, D), f"attention/{name}/bias": (D,)}
    layer |= {"intermediate/kernel": (D, F_), "intermediate/bias": (F_,), "output/kernel": (F_, D), "output/bias": (D,)}
    layer |= {f"{p}layer_norm/{q}": (D,) for p in ("attention/", "") for q in ("scale", "bias")}
    shapes = {f"encoder/layer_{i:02d}/{k}": v for i in range(12) for k, v in layer.items()}
    shapes |= {f"embeddings/{k}_embeddings/embedding": (n, D) for k, n in (("word", 30522), ("position", 512))}
    shapes |= {"embeddings/token_type_embeddings/embedding": (2, D), "pooler/kernel": (D, D), "pooler/bias": (D,)}
    shapes |= {f"embeddings/layer_norm/{q}": (D,) for q in ("scale", "bias")}
    shapes |= {"mlm/transform/kernel": (D, D), "mlm/transform/bias": (D,), "mlm/bias": (30522,)}
    shapes |= {"mlm/layer_norm/scale": (D,), "mlm/layer_norm/bias": (D,), "nsp/kernel": (D, 2), "nsp/bias": (2,)}
    return shapes


def test_memory_of_bert_base_is_the_published_one():
    rows = memory({path: SimpleNamespace(shape=shape) for path, shape in bert_base().items()}, PARTS)
    assert [row["weights"] for row in rows] == [23_440_896, 28_366_848, 56_687_616, 624_188, 986_880]
    assert [round(100 * row["share"], 2) for row in rows] == [21.29, 25.76, 51.48, 0.57, 0.90]
    assert sum(row["weights"] for row in rows) == 110_106_428


def test_shapes_of_bert_base_are_this_models():
    import jax

    from jaxprune.config.sections import ModelConfig
    from jaxprune.models import architecture_named
    from jaxprune.pruning.names import path_of

    bert = architecture_named("bert")
    params = jax.eval_shape(bert.build(ModelConfig(), head="pretraining").init, jax.random.key(0))
    leaves = {path_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert {path: leaf.shape for path, leaf in leaves.items()} == bert_base()
    assert memory(leaves, bert.parts) == memory(leaves, PARTS)


def test_memory_counts_kept_weights():
    path = "embeddings/word_embeddings/embedding"
    rows = memory({path: np.ones((2, 3)), "pooler/bias": np.ones(3)}, PARTS, {path: np.eye(2, 3) > 0})
    kept = {row["part"]: row["kept"] for row in rows}
    assert kept == {"word embeddings": 2, "attention": 0, "feed-forward": 0, "heads": 0, "other": 3}


def test_churn_is_part_of_the_distance():
    steps = [np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool), np.array([1, 0, 0, 0], bool)]
    trees = [{"x": mask, "y": np.ones(2, bool)} for mask in steps]
    for (a, b), kept, regrown, newly_pruned in ((trees[:2], 4, 1, 1), (trees[1:], 3, 0, 1)):
        x, y, every = mask_distance(a, b)
        assert (every["size"], every["regrown"], every["newly_pruned"]) == (6, regrown, newly_pruned)
        assert every["sparsity_b"] == pytest.approx(1 - kept / 6)
        assert (x["regrown"], x["newly_pruned"]) == (regrown, newly_pruned) and y["regrown"] == y["newly_pruned"] == 0


def hidden(rng, batches, layers=3, width=5):
    out = []
    for length in batches:
        ours = [rng.normal(size=(2, length, width)) for _ in range(layers)]
        dense = [x @ rng.normal(size=(width, width)) * 0.3 + x for x in ours]
        out.append((ours, dense, rng.random((2, length)) < 0.7))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_similarity_in_one_pass_is_that_of_everything_at_once(seed):
    batches = hidden(np.random.default_rng(seed), (4, 7, 5))
    found = similarity(batches)
    for layer in range(3):
        x, y = (np.concatenate([b[side][layer][b[2]] for b in batches]) for side in (0, 1))
        cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y)]
        assert found.cosine[layer] == pytest.approx(np.mean(cosines)) and found.tokens == len(x)
        # Linear CKA as HSIC of centred Gram matrices over examples (Kornblith et al. 2019, eq. 3).
        centre = np.eye(len(x)) - 1 / len(x)
        k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
        assert found.cka[layer] == pytest.approx(np.sum(k * m) / math.sqrt(np.sum(k * k) * np.sum(m * m)))


def test_similarity_of_rotated_and_scaled_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 50, 6))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    full = np.ones((4, 50))
    same = similarity([([x], [3 * x], full)])
    assert same.cosine[0] == pytest.approx(1) and same.cka[0] == pytest.approx(1)
    turned = similarity([([x], [x @ turn + 5], full)])
    assert turned.cka[0] == pytest.approx(1) and turned.cosine[0] < 0.7
    with pytest.raises(UserError, match="hold no token"):
        similarity([([x], [x], 0 * full)])
