"""The model as pure functions: shapes, determinism, dropout, invariances, transforms, and the losses' arithmetic."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.bert import bert
from jaxprune.models.dropout import dropout, dropout_seeds
from jaxprune.models.losses import classification_loss, pretraining_loss, regression_loss

B, L, P, V, D, F = 8, 16, 4, 128, 64, 96
TINY = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=F,
    max_position_embeddings=24,
    initializer_range=0.2,
)
"""One layer, for quick compilation. Deeper models: `test_parity.py`."""


QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options for gradients: half the compile time, which is most of these tests' time."""


@cache
def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(L // 2, L + 1, B)
    mask = (np.arange(L)[None] < lengths[:, None]).astype(np.int32)
    weights = (np.arange(P)[None] < rng.integers(1, P + 1, B)[:, None]).astype(np.float32)
    arrays = {
        "input_ids": rng.integers(1, V, (B, L)) * mask,
        "token_type_ids": rng.integers(0, 2, (B, L)) * mask,
        "attention_mask": mask,
        "masked_positions": np.stack([rng.choice(n, P, replace=False) for n in lengths]),
        "masked_ids": rng.integers(0, V, (B, P)),
        "next_sentence_label": rng.integers(0, 2, B),
    }
    return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()} | {"masked_weights": jnp.asarray(weights)}


@cache
def params():
    return jax.jit(bert(TINY, head="pretraining").init)(jax.random.key(0))


@cache
def forward(cfg=TINY, hidden_states=False):
    return jax.jit(partial(bert(cfg, head="pretraining").apply, hidden_states=hidden_states))


def total_loss(params, batch, key=None):
    terms, _ = pretraining_loss(bert(TINY, head="pretraining").apply)(params, (), batch, key)
    return sum(total / count for total, count in terms.values())


@cache
def loss_and_grads():
    return jax.jit(jax.value_and_grad(total_loss), compiler_options=QUICK)


def without(arrays, *names):
    return {name: x for name, x in arrays.items() if name not in names}


def assert_close_trees(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol), a, b)


# --- params ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head,num_labels,count",
    [
        # BertForPreTraining of bert-base-uncased, and BertModel (109,482,240) with a classifier of 768 C + C
        ("pretraining", 0, 110_106_428),
        ("classification", 3, 109_482_240 + 769 * 3),
        ("regression", 0, 109_482_240 + 769),
    ],
)
def test_bert_base_has_the_published_size(head, num_labels, count):
    abstract = jax.eval_shape(bert(ModelConfig(), head=head, num_labels=num_labels).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype(jnp.float32)}


def test_paths_and_shapes():
    dense = {"kernel": (D, D), "bias": (D,)}
    norm = {"scale": (D,), "bias": (D,)}
    layer = {
        "attention": {**dict.fromkeys(("query", "key", "value", "output"), dense), "layer_norm": norm},
        "intermediate": {"kernel": (D, F), "bias": (F,)},
        "output": {"kernel": (F, D), "bias": (D,)},
        "layer_norm": norm,
    }
    expected = {
        "embeddings": {
            "word_embeddings": {"embedding": (V, D)},
            "position_embeddings": {"embedding": (24, D)},
            "token_type_embeddings": {"embedding": (2, D)},
            "layer_norm": norm,
        },
        "encoder": {f"layer_{i:02d}": layer for i in range(11)},
        "pooler": dense,
    }
    heads = {
        "pretraining": {
            "mlm": {"transform": dense, "layer_norm": norm, "bias": (V,)},
            "nsp": {"kernel": (D, 2), "bias": (2,)},
        },
        "classification": {"classifier": {"kernel": (D, 5), "bias": (5,)}},
        "regression": {"classifier": {"kernel": (D, 1), "bias": (1,)}},
    }
    for head, extra in heads.items():
        cfg = TINY.model_copy(update={"num_hidden_layers": 11})
        init = bert(cfg, head=head, num_labels=5 if head == "classification" else 0).init
        abstract = jax.eval_shape(init, jax.random.key(0))
        assert type(abstract) is dict
        assert jax.tree.map(lambda leaf: leaf.shape, abstract) == expected | extra


def test_init_is_bert_s_truncated_normal():
    leaves = flatten_dict(params(), sep="/")
    drawn = [np.ravel(x) for path, x in leaves.items() if path.endswith(("kernel", "embedding"))]
    for values in drawn:
        assert np.abs(values).max() <= 2 * TINY.initializer_range
    values = np.concatenate(drawn) / TINY.initializer_range
    # moments of a standard normal cut at 2: variance 0.7737, P(|x| < 1) = 0.6827 / 0.9545
    assert abs(values.mean()) < 4 * 0.88 / len(values) ** 0.5
    assert values.var() == pytest.approx(0.7737, rel=0.02)
    assert (np.abs(values) < 1).mean() == pytest.approx(0.7152, abs=0.01)
    assert len(np.unique(values)) > 0.99 * len(values), "two matrices share their draw"
    for path, x in leaves.items():
        if path.endswith("bias"):
            assert not np.any(x), path
        if path.endswith("scale"):
            assert np.all(x == 1), path


def test_init_depends_on_key_and_path_alone():
    init = jax.jit(bert(TINY, head="regression").init)
    other, another = init(jax.random.key(0)), init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params()["encoder"], other["encoder"])
    assert not np.array_equal(other["pooler"]["kernel"], another["pooler"]["kernel"])


def test_init_draws_what_it_always_drew():
    """Values of the first edition: a seed names the same start for ever."""
    cfg = TINY.model_copy(update={"num_hidden_layers": 2, "initializer_range": 0.02})
    leaves = flatten_dict(jax.jit(bert(cfg, head="pretraining").init)(jax.random.key(7)), sep="/")
    for path, first in {
        "encoder/layer_01/output/kernel": [-0.012146701, -0.00082154828, -0.0061890339],
        "embeddings/word_embeddings/embedding": [-0.0067035654, -0.02098803, -0.0018183893],
        "nsp/kernel": [-0.004447381, 0.012052112, 0.00083985791],
    }.items():
        np.testing.assert_allclose(leaves[path].ravel()[:3], first, rtol=1e-6)


@pytest.mark.parametrize("head,num_labels", [("classification", 0), ("classification", 1), ("pretraining", 2)])
def test_num_labels_must_suit_the_head(head, num_labels):
    with pytest.raises(UserError, match=f"num_labels = {num_labels} does not suit head = '{head}'"):
        bert(TINY, head=head, num_labels=num_labels)


def test_unknown_head():
    with pytest.raises(UserError, match="head = 'ranking' is none of pretraining"):
        bert(TINY, head="ranking")


# --- forward --------------------------------------------------------------------------------------------------------


def test_outputs():
    out = forward(hidden_states=True)(params(), batch())
    assert {name: x.shape for name, x in without(out, "hidden_states").items()} == {
        "mlm_logits": (B, P, V),
        "nsp_logits": (B, 2),
    }
    assert [state.shape for state in out["hidden_states"]] == [(B, L, D)] * 2
    model = bert(TINY, head="regression")
    regression = jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0)), batch())
    assert {name: x.shape for name, x in regression.items()} == {"logits": (B,)}


def test_masked_positions_select_from_all_logits():
    whole = forward()(params(), without(batch(), "masked_positions"))["mlm_logits"]
    assert whole.shape == (B, L, V)
    some = forward()(params(), batch())["mlm_logits"]
    expected = np.stack([np.asarray(whole)[b, batch()["masked_positions"][b]] for b in range(B)])
    np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing():
    """Longer rows, and any token under the padding, leave the real outputs as they are."""
    reference = forward(hidden_states=True)(params(), batch())
    extra = 7
    longer = dict(batch())
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        longer[name] = jnp.pad(batch()[name], ((0, 0), (0, extra)))
    real = longer["attention_mask"] == 1
    longer["input_ids"] = jnp.where(real, longer["input_ids"], 1 + jnp.arange(B, dtype=jnp.int32)[:, None])
    out = forward(hidden_states=True)(params(), longer)
    for name in ("mlm_logits", "nsp_logits"):
        np.testing.assert_allclose(out[name], reference[name], rtol=1e-5, atol=1e-5)
    mask = np.asarray(batch()["attention_mask"], bool)
    last, expected = np.asarray(out["hidden_states"][-1])[:, :L], np.asarray(reference["hidden_states"][-1])
    np.testing.assert_allclose(last[mask], expected[mask], rtol=1e-5, atol=1e-5)
    unmasked = forward(hidden_states=True)(params(), longer | {"attention_mask": jnp.ones_like(longer["input_ids"])})
    assert not np.allclose(unmasked["nsp_logits"], reference["nsp_logits"], atol=1e-3), "the mask does nothing"


def test_bfloat16_compute_is_close_and_params_stay_float32():
    cfg = TINY.model_copy(update={"dtype": "bfloat16"})
    out, reference = forward(cfg, True)(params(), batch()), forward(hidden_states=True)(params(), batch())
    assert {state.dtype for state in out["hidden_states"]} == {jnp.dtype(jnp.bfloat16)}
    assert out["mlm_logits"].dtype == out["nsp_logits"].dtype == jnp.float32
    for ours, theirs in zip(out["hidden_states"], reference["hidden_states"], strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float32) - theirs) / np.linalg.norm(theirs)
        assert 1e-4 < error < 3e-2  # bfloat16 has 8 bits: above nothing, below a few units in the last place
    for name in ("mlm_logits", "nsp_logits"):
        assert np.linalg.norm(out[name] - reference[name]) < 5e-2 * np.linalg.norm(reference[name])


@pytest.mark.parametrize("bad", [V, -1])
def test_an_id_outside_the_vocabulary_is_nan_in_its_row_alone(bad):
    ids = batch()["input_ids"].at[2, 0].set(bad)
    out = forward()(params(), batch() | {"input_ids": ids})["nsp_logits"]
    assert np.isnan(out[2]).all()
    assert np.isfinite(np.delete(out, 2, axis=0)).all()


# --- dropout --------------------------------------------------------------------------------------------------------


def test_dropout_rate_scale_and_gradient():
    shape, rate = (32, 8, 64, 64), 0.1
    seeds = dropout_seeds(jax.random.key(0), 3)
    x = jnp.full(shape, 2.0)
    y, pullback = jax.vjp(lambda x: dropout(x, rate, seeds[0]), x)
    y = np.asarray(y)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 2.0 / 0.9, rtol=1e-6)
    np.testing.assert_array_equal(pullback(jnp.ones(shape))[0] != 0, kept)
    n = kept.size
    assert abs(kept.mean() - 0.9) < 4 * (0.09 / n) ** 0.5
    # every example, head, row and column is binomial: variance of the slice sums as theory says
    for axis in range(4):
        sums = kept.sum(axis=tuple(i for i in range(4) if i != axis))
        each = n / shape[axis]
        chi2 = ((sums - 0.9 * each) ** 2).sum() / (0.09 * each)
        assert abs(chi2 - shape[axis]) < 5 * (2 * shape[axis]) ** 0.5
    # neighbours, examples, seeds and sites are uncorrelated
    others = [np.asarray(dropout(x, rate, s)) != 0 for s in (seeds[1], dropout_seeds(jax.random.key(1), 3)[0])]
    pairs = [(kept, other) for other in others]
    pairs += [(np.roll(kept, shift, axis), kept) for axis in range(4) for shift in (1, 2, 5)]
    for a, b in pairs:
        correlation = ((a - 0.9) * (b - 0.9)).mean() / 0.09
        assert abs(correlation) < 5 / n**0.5


def test_dropout_bits_do_not_depend_on_the_mesh():
    x = jnp.ones((16, 24, 32))
    seed = dropout_seeds(jax.random.key(5), 1)[0]
    expected = np.asarray(dropout(x, 0.3, seed))
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    for spec in (PartitionSpec("data"), PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp", None, "data")):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(jax.jit(lambda x: dropout(x, 0.3, seed))(sharded), expected)


def test_dropout_in_the_model():
    run = forward()
    key = jax.random.key(1)
    silent = [np.asarray(run(params(), batch())["nsp_logits"]) for _ in range(2)]
    np.testing.assert_array_equal(*silent)
    noisy = np.asarray(run(params(), batch(), key=key)["nsp_logits"])
    np.testing.assert_array_equal(noisy, run(params(), batch(), key=key)["nsp_logits"])
    assert not np.allclose(noisy, silent[0])
    assert not np.allclose(noisy, run(params(), batch(), key=jax.random.key(2))["nsp_logits"])


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_rate_acts_alone(field):
    none = TINY.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    states = [
        forward(cfg, True)(params(), batch(), key=key)["hidden_states"]
        for cfg, key in ((TINY, None), (none.model_copy(update={field: 0.5}), jax.random.key(0)))
    ]
    dropped = np.asarray(states[1][0] == 0).mean()
    assert dropped == pytest.approx(0.5 if field == "hidden_dropout_prob" else 0, abs=0.05)
    assert not np.allclose(states[0][1], states[1][1], atol=1e-2)


# --- transforms and meshes ------------------------------------------------------------------------------------------


def test_vmap_over_examples():
    singles = jax.tree.map(lambda x: x[:, None], batch())
    out = jax.jit(jax.vmap(bert(TINY, head="pretraining").apply, in_axes=(None, 0)))(params(), singles)
    whole = forward()(params(), batch())
    assert_close_trees(jax.tree.map(lambda x: x[:, 0], out), whole, atol=1e-5)


def test_rematerialisation_changes_nothing():
    key = jax.random.key(3)
    ours = jax.jit(jax.value_and_grad(jax.checkpoint(total_loss)), compiler_options=QUICK)(params(), batch(), key)
    assert_close_trees(ours, loss_and_grads()(params(), batch(), key), atol=1e-5)


@pytest.mark.parametrize("axis_type,split_params", [(AxisType.Auto, True), (AxisType.Explicit, False)])
def test_any_mesh_gives_the_same_loss_and_gradients(axis_type, split_params):
    key = jax.random.key(3)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(axis_type,) * 2)
    replicated = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("fsdp")) if split_params else replicated
    placed = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 2 else replicated), params())
    split = jax.device_put(batch(), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        ours = loss_and_grads()(placed, split, key)
    assert_close_trees(ours, loss_and_grads()(params(), batch(), key), atol=1e-5)


def test_pmap():
    shards = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch())
    out = jax.pmap(bert(TINY, head="pretraining").apply, in_axes=(None, 0))(params(), shards)
    assert_close_trees(jax.tree.map(lambda x: x[:, 0], out), forward()(params(), batch()), atol=1e-5)


# --- losses ---------------------------------------------------------------------------------------------------------


def given(**outputs):
    """A model that returns `outputs`, whatever its input: the losses' arithmetic alone."""
    return lambda params, batch, key=None: {name: jnp.asarray(x) for name, x in outputs.items()}


def nats(logits, labels):
    """Cross-entropy in float64 numpy."""
    logits = np.asarray(logits, np.float64)
    picked = np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - picked


def test_pretraining_loss_sums_and_counts():
    rng = np.random.default_rng(1)
    mlm, nsp = rng.standard_normal((B, P, V)).astype(np.float32), rng.standard_normal((B, 2)).astype(np.float32)
    mlm[0, 0, batch()["masked_ids"][0, 0]] = 9.0  # a sure hit
    examples = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    full = batch() | {"example_weights": jnp.asarray(examples)}
    terms, metrics = jax.jit(pretraining_loss(given(mlm_logits=mlm, nsp_logits=nsp)))(None, (), full, None)
    weights = np.asarray(batch()["masked_weights"]) * examples[:, None]
    expected = {
        "mlm": ((weights * nats(mlm, batch()["masked_ids"])).sum(), weights.sum()),
        "nsp": ((examples * nats(nsp, batch()["next_sentence_label"])).sum(), 6),
    }
    hits = {
        "mlm_accuracy": ((weights * (mlm.argmax(-1) == batch()["masked_ids"])).sum(), weights.sum()),
        "nsp_accuracy": ((examples * (nsp.argmax(-1) == batch()["next_sentence_label"])).sum(), 6),
    }
    assert hits["mlm_accuracy"][0] >= 1
    for ours, theirs in ((terms, expected), (metrics, hits)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    parts = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], full) for i in range(2)]
    outputs = [given(mlm_logits=mlm[4 * i : 4 * i + 4], nsp_logits=nsp[4 * i : 4 * i + 4]) for i in range(2)]
    halves = [
        jax.jit(pretraining_loss(apply))(None, (), part, None) for apply, part in zip(outputs, parts, strict=True)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), jax.tree.map(jnp.add, *halves), (terms, metrics))


def test_without_next_sentences_the_nsp_head_is_left_alone():
    alone = without(batch(), "next_sentence_label")
    terms, metrics = jax.eval_shape(pretraining_loss(bert(TINY, head="pretraining").apply), params(), (), alone)
    assert (set(terms), set(metrics)) == ({"mlm"}, {"mlm_accuracy"})
    grads = loss_and_grads()(params(), alone, None)[1]
    assert not any(np.any(g) for g in jax.tree.leaves((grads["nsp"], grads["pooler"])))
    assert np.any(grads["mlm"]["bias"])


def test_fine_tuning_losses_ignore_padding_rows():
    rng = np.random.default_rng(2)
    weights = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    full = batch() | {"example_weights": jnp.asarray(weights)}
    logits, labels = rng.standard_normal((B, 3)).astype(np.float32), rng.integers(0, 3, B)
    ours = classification_loss(given(logits=logits))(None, (), full | {"labels": jnp.asarray(labels, jnp.int32)}, None)
    terms, metrics = ours
    np.testing.assert_allclose(terms["classification"], (nats(logits, labels)[:5].sum(), 5), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], ((logits.argmax(-1) == labels)[:5].sum(), 5))
    scores, targets = rng.standard_normal((2, B)).astype(np.float32)
    terms, metrics = regression_loss(given(logits=scores))(None, (), full | {"labels": jnp.asarray(targets)}, None)
    np.testing.assert_allclose(terms["regression"], (((scores - targets)[:5] ** 2).sum(), 5), rtol=1e-5)
    np.testing.assert_allclose(metrics["absolute_error"], (np.abs(scores - targets)[:5].sum(), 5), rtol=1e-5)


def test_cross_entropy_derivative_against_finite_differences():
    labels = jnp.asarray([0, 3, 2], jnp.int32)
    rows = {"input_ids": jnp.zeros((3, 1), jnp.int32), "labels": labels}
    loss_fn = classification_loss(lambda logits, batch, key=None: {"logits": logits})
    logits = jnp.asarray(np.random.default_rng(3).standard_normal((3, 5)), jnp.float32)
    check_grads(lambda x: loss_fn(x, (), rows, None)[0]["classification"][0], (logits,), order=1, atol=2e-2, rtol=2e-2)


def test_cross_entropy_at_the_edges():
    rows = {"input_ids": jnp.zeros((3, 1), jnp.int32)}
    loss_fn = classification_loss(lambda logits, batch, key=None: {"logits": logits})
    huge = jnp.asarray([[1e4, -1e4], [-3e38, 3e38], [0.0, 0.0]])

    def total(*labels):
        return loss_fn(huge, (), rows | {"labels": jnp.asarray(labels, jnp.int32)}, None)[0]["classification"][0]

    assert float(total(0, 1, 0)) == pytest.approx(np.log(2), rel=1e-6)
    for label in (-1, 2):
        assert np.isnan(total(0, 1, label)), "a label outside the classes must not pass silently"
