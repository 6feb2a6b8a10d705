"""DistilBERT: against transformers (logits, losses, gradients, files) and our BERT, dropout, and what it refuses."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_parity import (
    SEGMENTS,
    assert_fine_tuning_parity,
    assert_pretraining_parity,
    assert_written_and_read_both_ways,
    batch_of,
)
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from make_bert_golden import randomize
from safetensors.numpy import load_file, save_file
from test_parity import QUICK

from jaxprune.config.commands import PretrainConfig
from jaxprune.config.load import validate
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.bert import bert
from jaxprune.models.distilbert import DISTILBERT, distilbert
from jaxprune.models.folder import read_config, read_folder, write_folder, write_masked
from jaxprune.models.layers import Layer, visible
from jaxprune.models.losses import pretraining_loss
from jaxprune.models.tensors import params_from_tensors, params_to_tensors

SHAPES = {
    "learned": {
        "vocab_size": 97,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 72,
        "max_position_embeddings": 24,
        "activation": "gelu",
    },
    "sinusoidal": {
        "vocab_size": 61,
        "dim": 24,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 40,
        "max_position_embeddings": 20,
        "activation": "gelu_new",
        "sinusoidal_pos_embds": True,
        "pad_token_id": 5,
    },
}
EXTRA = {"type_vocab_size": 2}
CASES = {
    "learned": {"config": SHAPES["learned"] | EXTRA, "batch": 4, "length": 16, "predictions": 3, "padded": False},
    "sinusoidal": {"config": SHAPES["sinusoidal"] | EXTRA, "batch": 5, "length": 18, "predictions": 4, "padded": True},
}


def config(name):
    return DISTILBERT.config_from_hf({"model_type": "distilbert", **SHAPES[name]}, "config.json")


def torch_model(name, kind, **changes):
    """A random torch DistilBERT; positions that are sinusoidal stay so."""
    pytest.importorskip("torch")
    import transformers

    shape = transformers.DistilBertConfig(**SHAPES[name], **changes, attn_implementation="eager")
    model = getattr(transformers, f"DistilBertFor{kind}")(shape).eval()
    positions = model.distilbert.embeddings.position_embeddings.weight.detach().clone()
    randomize(model, seed=3)
    if SHAPES[name].get("sinusoidal_pos_embds"):
        model.distilbert.embeddings.position_embeddings.weight.data.copy_(positions)
    return model


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_pretraining_parity(name):
    assert_pretraining_parity(DISTILBERT, config(name), torch_model(name, "MaskedLM"), batch_of(CASES[name]))


@pytest.mark.parity
@pytest.mark.parametrize("name,num_labels", [("learned", 3), ("sinusoidal", 0)])
def test_fine_tuning_parity(name, num_labels):
    model = torch_model(name, "SequenceClassification", num_labels=num_labels or 1)
    assert_fine_tuning_parity(DISTILBERT, config(name), model, batch_of(CASES[name]), num_labels)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "kind,head,num_labels", [("MaskedLM", "pretraining", 0), ("SequenceClassification", "classification", 3)]
)
def test_transformers_writes_we_read_we_write_transformers_reads(tmp_path, name, kind, head, num_labels):
    model = torch_model(name, kind, **({"num_labels": 3} if num_labels else {}))
    assert_written_and_read_both_ways(config(name), model, tmp_path, kind, head, num_labels)


@pytest.mark.parity
def test_masked_copies_stay_tied(tmp_path):
    """Where the file holds the decoder's copy, it gets the same zeros; transformers finds one matrix."""
    model = torch_model("learned", "MaskedLM")
    import transformers

    model.save_pretrained(tmp_path / "theirs")
    path, words = tmp_path / "theirs" / "model.safetensors", "distilbert.embeddings.word_embeddings.weight"
    tensors = load_file(path)
    save_file(tensors | {"vocab_projector.weight": tensors[words].copy()}, path, {"format": "pt"})
    kept = np.random.default_rng(0).random(tensors[words].shape) < 0.5
    write_masked(tmp_path / "theirs", tmp_path / "ours", {"embeddings": {"word_embeddings": {"embedding": kept}}})
    after = load_file(tmp_path / "ours" / "model.safetensors")
    np.testing.assert_array_equal(after["vocab_projector.weight"], after[words])
    again, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    table = again.distilbert.embeddings.word_embeddings.weight
    assert table.data_ptr() == again.vocab_projector.weight.data_ptr()
    np.testing.assert_array_equal(table.detach().numpy(), np.where(kept, tensors[words], 0))
    folder = read_folder(tmp_path / "ours", head="pretraining")
    np.testing.assert_array_equal(folder.masks["embeddings"]["word_embeddings"]["embedding"], kept)


# --- alone ----------------------------------------------------------------------------------------------------------


@cache
def tiny():
    cfg = config("learned").model_copy(update={"initializer_range": 0.2})
    init = distilbert(cfg, head="pretraining").init
    return cfg, jax.jit(init, compiler_options=QUICK)(jax.random.key(0))


@cache
def forward(**changes):
    cfg = tiny()[0].model_copy(update=changes)
    apply = partial(distilbert(cfg, head="pretraining").apply, hidden_states=True)
    return jax.jit(apply, compiler_options=QUICK)


def test_distilbert_base_has_the_published_size():
    """66,362,880 of distilbert-base-uncased (Sanh et al. 2019: 66 million), and its heads."""
    cfg = ModelConfig(architecture="distilbert", num_hidden_layers=6)
    heads = {"pretraining": 768 * 769 + 2 * 768 + 30522, "regression": 768 * 769 + 769}
    for head, more in heads.items():
        abstract = jax.eval_shape(distilbert(cfg, head=head).init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 66_362_880 + more


def test_it_is_bert_without_segment_types():
    """With a table of zeros for the types, BERT of the same weights computes the same, at the same paths."""
    cfg, params = tiny()
    shared = cfg.model_copy(update={"architecture": "bert"})
    model = bert(shared, head="pretraining")
    leaves = flatten_dict(jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0)), sep="/")
    ours = flatten_dict(params, sep="/")
    assert leaves.keys() - ours.keys() == {
        "embeddings/token_type_embeddings/embedding",
        *("pooler/kernel", "pooler/bias", "nsp/kernel", "nsp/bias"),
    }
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaves[path], leaf)  # also drawn alike
    leaves["embeddings/token_type_embeddings/embedding"] *= 0
    batch = batch_of(CASES["learned"])
    theirs = jax.jit(partial(model.apply, hidden_states=True), compiler_options=QUICK)(
        unflatten_dict(leaves, sep="/"), batch | {SEGMENTS: np.zeros_like(batch["input_ids"])}
    )
    result = forward()(params, batch)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves({key: theirs[key] for key in result}), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_segment_types_and_next_sentences_in_a_batch_change_nothing():
    params, batch = tiny()[1], batch_of(CASES["learned"])
    more = batch | {SEGMENTS: np.ones_like(batch["input_ids"]), "next_sentence_label": np.zeros(4, np.int32)}
    np.testing.assert_array_equal(forward()(params, batch)["mlm_logits"], forward()(params, more)["mlm_logits"])
    loss_fn = pretraining_loss(distilbert(tiny()[0], head="pretraining").apply)
    terms, metrics = jax.eval_shape(loss_fn, params, (), more, jax.random.key(0))
    assert (set(terms), set(metrics)) == ({"mlm"}, {"mlm_accuracy"})


def test_dropout():
    """The same key gives the same bits; each rate acts where transformers has it; without a key there is none."""
    params, batch = tiny()[1], batch_of(CASES["learned"])
    silent, key = forward()(params, batch)["mlm_logits"], jax.random.key(1)
    noisy = forward()(params, batch, key=key)["mlm_logits"]
    np.testing.assert_array_equal(noisy, forward()(params, batch, key=key)["mlm_logits"])
    assert not np.allclose(noisy, silent)
    assert not np.allclose(noisy, forward()(params, batch, key=jax.random.key(2))["mlm_logits"])
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    np.testing.assert_array_equal(forward(**none)(params, batch, key=key)["mlm_logits"], silent)
    for name, dropped in (("hidden_dropout_prob", 0.5), ("attention_probs_dropout_prob", 0.0)):
        states = forward(**none | {name: 0.5})(params, batch, key=key)["hidden_states"]
        assert np.asarray(states[0] == 0).mean() == pytest.approx(dropped, abs=0.05)
        assert not np.allclose(states[1], forward()(params, batch)["hidden_states"][1], atol=1e-2)


def test_attention_s_output_has_no_dropout():
    """A layer whose feed-forward is silent, with only hidden dropout: nothing but the embeddings changes."""
    cfg, params = tiny()
    cfg = cfg.model_copy(update={"num_hidden_layers": 1, "attention_probs_dropout_prob": 0.0})
    layer = params["encoder"]["layer_00"]
    silent = {"output": jax.tree.map(jnp.zeros_like, layer["output"])}
    params = params | {"encoder": {"layer_00": layer | silent}}
    apply = distilbert(cfg, head="pretraining").apply
    batch = batch_of(CASES["learned"])
    noisy = apply(params, batch, key=jax.random.key(0), hidden_states=True)["hidden_states"]
    again = apply(params, batch, key=jax.random.key(0), hidden_states=True)["hidden_states"]
    np.testing.assert_array_equal(noisy[1], again[1])
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Layer(cfg, nnx.Rngs(0))))
    alone = nnx.merge(graphdef, params["encoder"]["layer_00"])(noisy[0], visible(batch), [None] * 3)
    np.testing.assert_allclose(noisy[1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [None, 0.75])
def test_classifier_dropout(rate):
    """Of 32 ones each is kept times 1 / (1 - rate); where none is given, the rate is `hidden_dropout_prob`."""
    cfg, _ = tiny()
    rates = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.5, "classifier_dropout": rate}
    model = distilbert(cfg.model_copy(update=rates), head="classification", num_labels=2)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    params, batch = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0)), batch_of(CASES["learned"])
    params["pre_classifier"] |= {"kernel": jnp.zeros((32, 32)), "bias": jnp.ones(32)}
    params["classifier"] = {"kernel": jnp.ones((32, 2)), "bias": jnp.zeros(2)}
    kept = np.asarray(apply(params, batch, key=jax.random.key(0))["logits"]) * (1 - (rate or 0.5))
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-5)
    assert len(np.unique(kept[:, 0])) > 1 and (np.abs(kept - 32 * (1 - (rate or 0.5))) < 12).all()
    np.testing.assert_allclose(apply(params, batch)["logits"], 32.0)


@pytest.mark.parametrize("changes", [{"type_vocab_size": 3}, {"layer_norm_eps": 1e-6}, {"sublayer_relu": True}])
def test_a_setting_that_it_lacks_is_refused(changes):
    (name,) = changes
    with pytest.raises(UserError, match=rf"model\.{name} = .* DistilBERT's is always .*; remove it"):
        distilbert(tiny()[0].model_copy(update=changes), head="pretraining")


def test_sinusoids_cannot_be_asked_for_from_scratch():
    """Positions are drawn at random or read from a folder, so no config can promise sinusoids and not get them."""
    with pytest.raises(UserError, match="sinusoidal_pos_embds"):
        validate(PretrainConfig, {"model": {"architecture": "distilbert", "sinusoidal_pos_embds": True}}, "c.yaml")


def test_config_keys(tmp_path):
    raw = {"model_type": "distilbert", **SHAPES["sinusoidal"], "dropout": 0.2, "attention_dropout": 0.3}
    raw |= {"qa_dropout": 0.4, "seq_classif_dropout": 0.5, "tie_weights_": True, "initializer_range": 0.01}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    cfg = read_config(tmp_path)
    assert cfg == ModelConfig(
        architecture="distilbert",
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=20,
        hidden_act="gelu_new",
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        classifier_dropout=0.5,
        initializer_range=0.01,
        pad_token_id=5,
    )
    params = jax.device_get(jax.jit(distilbert(cfg, head="pretraining").init)(jax.random.key(0)))
    write_folder(tmp_path / "out", cfg, params, head="pretraining", extra_config=raw)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw.items() <= written.items() and written["architectures"] == ["DistilBertForMaskedLM"]
    assert not {"hidden_size", "type_vocab_size", "layer_norm_eps", "architecture"} & written.keys()
    assert read_folder(tmp_path / "out", head="pretraining").model == cfg
    for change, message in (
        ({"dim": "wide"}, "dim = 'wide'"),
        ({"n_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 24"),
        ({"activation": "relu"}, "activation = 'relu'; supported are gelu"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False; only distilbert with"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(UserError, match=message):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", "dim": 8}))
    with pytest.raises(UserError, match="has no vocab_size, n_layers, n_heads, hidden_dim; a distilbert config.json"):
        read_config(tmp_path)


def test_tensors_of_another_model_are_refused():
    cfg, params = tiny()
    tensors = params_to_tensors(DISTILBERT, params)
    words = "distilbert.embeddings.word_embeddings.weight"
    for changes, message in (
        ({"distilbert.pooler.weight": tensors[words]}, "distilbert.pooler.weight: not a tensor of distilbert"),
        ({"distilbert.transformer.layer.2.ffn.lin1.bias": tensors[words]}, "layer 2, but num_hidden_layers = 2"),
        ({"vocab_projector.weight": tensors[words] + 1}, f"vocab_projector.weight: differs from {words}"),
    ):
        with pytest.raises(UserError, match=message):
            params_from_tensors(DISTILBERT, tensors | changes, cfg, head="pretraining")
    without_prefix = {name.removeprefix("distilbert."): array for name, array in tensors.items()}
    again, fresh = params_from_tensors(DISTILBERT, without_prefix, cfg, head="pretraining")
    assert fresh == ()
    jax.tree.map(np.testing.assert_array_equal, again, params)
    only, fresh = params_from_tensors(DISTILBERT, tensors, cfg, head="classification", num_labels=2)
    assert set(fresh) == {f"{name}/{leaf}" for name in ("pre_classifier", "classifier") for leaf in ("kernel", "bias")}
    assert set(only) == {"embeddings", "encoder", "pre_classifier", "classifier"}
