"""RoBERTa and XLM-R: against transformers, positions behind padding, the classifier's dropout, files, a whole run."""

import json
import shutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_parity import (
    assert_fine_tuning_parity,
    assert_pretraining_parity,
    assert_written_and_read_both_ways,
    batch_of,
)
from make_bert_golden import randomize
from safetensors.numpy import load_file
from test_parity import QUICK
from workflow import SEQ_LEN

from jaxprune.cli import main
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.folder import read_config, read_folder, write_folder
from jaxprune.models.roberta import ROBERTA, roberta
from jaxprune.models.tensors import params_from_tensors, params_to_tensors
from jaxprune.models.xlm_roberta import XLM_ROBERTA
from jaxprune.pruning.masks import sparsity

SHAPES = {
    "roberta": {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "max_position_embeddings": 18,  # for 16 tokens
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "classifier_dropout": 0.3,
    },
    "xlm-roberta": {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 30,
        "type_vocab_size": 2,
        "hidden_act": "gelu_new",
        "pad_token_id": 5,
    },
}
RECORDS = {"roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA}
CASES = {
    "roberta": {
        "config": {"pad_token_id": 1} | SHAPES["roberta"],
        **{"batch": 4, "length": 16, "predictions": 3, "padded": False},
    },
    "xlm-roberta": {
        "config": SHAPES["xlm-roberta"],
        **{"batch": 5, "length": 18, "predictions": 4, "padded": True},
    },
}
BOTH = pytest.mark.parametrize("name", RECORDS)


def config(name):
    """Of a config.json that leaves RoBERTa's `pad_token_id` = 1 out."""
    return RECORDS[name].config_from_hf({"model_type": name, **SHAPES[name]}, "config.json")


def batch(name):
    """With padding also between tokens, where there is any."""
    batch = batch_of(CASES[name])
    if CASES[name]["padded"]:
        hole = next(i for i in range(1, 7) if i not in batch["masked_positions"][0])
        batch["input_ids"][0, hole], batch["attention_mask"][0, hole] = CASES[name]["config"]["pad_token_id"], 0
    return batch


def torch_model(name, kind, **changes):
    pytest.importorskip("torch")
    import transformers

    shape = transformers.AutoConfig.for_model(name, **SHAPES[name], **changes, attn_implementation="eager")
    model = getattr(transformers, f"AutoModel{kind}").from_config(shape).eval()
    randomize(model, seed=3)
    return model


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@BOTH
def test_pretraining_parity(name):
    assert_pretraining_parity(RECORDS[name], config(name), torch_model(name, "ForMaskedLM"), batch(name))


@pytest.mark.parity
@pytest.mark.parametrize("name,num_labels", [("roberta", 3), ("xlm-roberta", 0)])
def test_fine_tuning_parity(name, num_labels):
    model = torch_model(name, "ForSequenceClassification", num_labels=num_labels or 1)
    assert_fine_tuning_parity(RECORDS[name], config(name), model, batch(name), num_labels)


@pytest.mark.parity
@BOTH
@pytest.mark.parametrize(
    "kind,head,num_labels", [("MaskedLM", "pretraining", 0), ("SequenceClassification", "classification", 3)]
)
def test_transformers_writes_we_read_we_write_transformers_reads(tmp_path, name, kind, head, num_labels):
    model = torch_model(name, f"For{kind}", **({"num_labels": 3} if num_labels else {}))
    assert_written_and_read_both_ways(config(name), model, tmp_path, kind, head, num_labels)


@pytest.mark.parity
def test_a_pooler_in_a_file_is_left_there(tmp_path):
    """As in roberta-base of the hub; and names without their prefix."""
    model = torch_model("roberta", "")
    model.save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    assert "pooler.dense.weight" in tensors and "embeddings.word_embeddings.weight" in tensors
    folder = read_folder(tmp_path / "theirs", head="pretraining")
    assert {path.split("/")[0] for path in folder.fresh} == {"mlm"}
    assert "pooler" not in folder.params
    assert main(["prune", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--sparsity", "0.5"]) == 0
    after = load_file(tmp_path / "ours" / "model.safetensors")
    for name, before in tensors.items():
        pruned = "embeddings.word" in name or ("encoder" in name and before.ndim == 2)
        kept = after[name] != 0
        assert kept.sum() == (round(before.size / 2) if pruned else before.size), name
        np.testing.assert_array_equal(after[name], np.where(kept, before, 0))


# --- alone ----------------------------------------------------------------------------------------------------------


@cache
def tiny(head="pretraining", **changes):
    cfg = config("roberta").model_copy(update={"initializer_range": 0.2} | changes)
    model = roberta(cfg, head=head, num_labels=2 if head == "classification" else 0)
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0))
    return params, jax.jit(partial(model.apply, hidden_states=True), compiler_options=QUICK)


@pytest.mark.parametrize(
    "record,vocab_size,count", [(ROBERTA, 50_265, 124_697_433), (XLM_ROBERTA, 250_002, 278_295_186)]
)
def test_base_has_the_published_size(record, vocab_size, count):
    """Weights of roberta-base and xlm-roberta-base with the masked-LM head, 125 and 278 million; 512 tokens."""
    raw = {"vocab_size": vocab_size, "max_position_embeddings": 514, "type_vocab_size": 1, "num_hidden_layers": 12}
    raw |= {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "pad_token_id": 1}
    cfg = record.config_from_hf(raw, "config.json")
    abstract = jax.eval_shape(record.build(cfg, head="pretraining").init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count
    assert record.max_tokens(cfg) == 512
    assert (cfg.architecture, cfg.pad_token_id) == (record.name, 1)


def test_the_longest_sequence_fits_and_one_more_does_not():
    """The parity tests' rows of 16 tokens use the whole table; behind it there is nothing."""
    params, apply = tiny(num_hidden_layers=1)
    sample = {"input_ids": np.full((1, 17), 7, np.int32), "attention_mask": np.ones((1, 17), np.int32)}
    finite = np.isfinite(apply(params, sample)["hidden_states"][0]).all(-1)
    np.testing.assert_array_equal(finite, [[True] * 16 + [False]])
    assert ROBERTA.max_tokens(config("roberta")) == 16


def test_segment_types_change_nothing():
    params, apply = tiny(num_hidden_layers=1)
    sample = batch("roberta")
    more = sample | {"token_type_ids": np.ones_like(sample["input_ids"])}
    np.testing.assert_array_equal(apply(params, sample)["mlm_logits"], apply(params, more)["mlm_logits"])


@pytest.mark.parametrize("rate", [None, 0.75])
def test_classifier_dropout(rate):
    """On both sides of the dense layer: 32 ones go in, and through the identity and tanh come out again."""
    rates = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.5, "classifier_dropout": rate}
    params, apply = tiny("classification", num_hidden_layers=1, **rates)
    params, sample = jax.tree.map(lambda leaf: leaf, params), batch_of(CASES["roberta"] | {"batch": 64})
    last = params["encoder"]["layer_00"]["layer_norm"]
    last["scale"], last["bias"] = jnp.zeros(32), jnp.ones(32)
    params["pre_classifier"] = {"kernel": 20 * jnp.eye(32), "bias": jnp.zeros(32)}
    params["classifier"] = {"kernel": jnp.ones((32, 2)), "bias": jnp.zeros(2)}
    kept = 1 - (rate or 0.5)
    out = np.asarray(apply(params, sample, key=jax.random.key(0))["logits"][:, 0]) * kept
    np.testing.assert_allclose(out, np.round(out), atol=1e-4)
    assert out.mean() == pytest.approx(32 * kept**2, abs=5 * (32 * kept**2 * (1 - kept**2) / 64) ** 0.5)
    np.testing.assert_allclose(apply(params, sample)["logits"], 32.0, rtol=1e-6)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sublayer_relu": True}, "model.sublayer_relu = True: RoBERTa's is always False; remove it"),
        ({"pad_token_id": 17}, "model.max_position_embeddings = 18: none is left behind pad_token_id = 17; raise it"),
    ],
)
def test_a_setting_that_it_lacks_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        roberta(config("roberta").model_copy(update=changes), head="pretraining")


@pytest.mark.parametrize(
    "name,classes",
    [
        ("roberta", ["RobertaForMaskedLM"]),
        ("roberta", ["RobertaModel"]),
        ("xlm-roberta", ["XLMRobertaForMaskedLM"]),
        ("xlm-roberta", ["XLMRobertaForSequenceClassification"]),
    ],
)
def test_old_files_name_a_class_alone(tmp_path, name, classes):
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name] | {"architectures": classes}))
    assert read_config(tmp_path) == config(name)


def test_config_keys(tmp_path):
    raw = {"model_type": "roberta", **SHAPES["roberta"], "hidden_dropout_prob": 0.2, "bos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    cfg = read_config(tmp_path)
    assert cfg == ModelConfig(architecture="roberta", **SHAPES["roberta"], hidden_dropout_prob=0.2, pad_token_id=1)
    write_folder(tmp_path / "out", cfg, tiny()[0], head="pretraining", extra_config=raw)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw.items() <= written.items() and written["architectures"] == ["RobertaForMaskedLM"]
    assert not {"sublayer_relu", "architecture"} & written.keys()
    assert read_folder(tmp_path / "out", head="pretraining").model == cfg


def test_tensors_of_another_model_are_refused():
    cfg, params = config("roberta"), tiny()[0]
    tensors = params_to_tensors(ROBERTA, jax.device_get(params))
    words = "roberta.embeddings.word_embeddings.weight"
    for changes, message in (
        ({"roberta.other.weight": tensors[words]}, "roberta.other.weight: not a tensor of roberta"),
        ({"lm_head.decoder.weight": tensors[words] + 1}, f"lm_head.decoder.weight: differs from {words}"),
        ({"lm_head.decoder.bias": tensors["lm_head.bias"] + 1}, "lm_head.decoder.bias: differs from lm_head.bias"),
    ):
        with pytest.raises(UserError, match=message):
            params_from_tensors(ROBERTA, tensors | changes, cfg, head="pretraining")
    copies = {"lm_head.decoder.weight": tensors[words], "lm_head.decoder.bias": tensors["lm_head.bias"]}
    again, fresh = params_from_tensors(ROBERTA, tensors | copies, cfg, head="pretraining")
    assert fresh == ()
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(params))


# --- a whole run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_prepare_pretrain_and_finetune(tiny, tmp_path, capsys):
    """Masked-LM alone while pruning, 32 tokens with 33 positions; then pairs of texts in rows of several examples."""
    data, run = tmp_path / "data", tmp_path / "run"
    path = tiny.prepare_yaml(tmp_path / "p.yaml", architecture="roberta", next_sentence=False)
    assert main(["prepare", str(path), "--workdir", str(data)]) == 0
    special = ROBERTA.special_tokens
    assert (data / "tokenizer" / "vocab.txt").read_text().splitlines()[:5] == [*special]

    shape = {"architecture": "roberta", "max_position_embeddings": SEQ_LEN + 1, "type_vocab_size": 1}
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", data={"path": str(data)}, model=shape)
    argv = ["pretrain", str(path), "--workdir", str(run)]
    for wrong, message in (
        ({"max_position_embeddings": SEQ_LEN}, f"= {SEQ_LEN} is enough for 31 tokens, not for the sequence length 32"),
        (
            {"pad_token_id": 1, "max_position_embeddings": 34},
            f"data.path = {data}: its padding has id 0, that of the model is 1; set model.pad_token_id = 0",
        ),
    ):
        assert main([*argv, *(word for key, value in wrong.items() for word in (f"--model.{key}", str(value)))]) == 2
        error, key = capsys.readouterr().err, next(iter(wrong))
        assert f"model.{key} = " in error and message in error and error.count("\n") == 1
    assert (done := tiny.run(*argv)).code == 0, done.err
    folder = read_folder(run / "hf", head=None)
    assert {*folder.params} == {"embeddings", "encoder", "mlm"}
    assert sparsity(folder.masks) == pytest.approx(0.7, abs=1e-3)
    assert json.loads((run / "result.json").read_text())["dev"].keys() >= {"mlm", "loss"}

    path = tiny.finetune_yaml(tmp_path / "f.yaml", tasks=["STS-B"], init_from=str(run))
    argv = ["finetune", str(path), "--workdir", str(tmp_path / "tuned")]
    assert main([*argv, "--max-len", str(SEQ_LEN + 1)]) == 2
    assert f"max_len = {SEQ_LEN + 1} is above the {SEQ_LEN} positions" in capsys.readouterr().err
    assert (done := tiny.run(*argv)).code == 0, done.err
    settings = json.loads((run / "hf" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == SEQ_LEN  # positions behind the padding's
    tuned, model = tmp_path / "tuned", tmp_path / "padded"  # another padding than the positions begin behind
    shutil.copytree(tuned / "best" / "hf", model)
    pieces = (model / "vocab.txt").read_text().splitlines()
    (model / "vocab.txt").write_text("".join(f"{piece}\n" for piece in [pieces[1], pieces[0], *pieces[2:]]))
    (model / "tokenizer.json").unlink()
    words = f"its padding has id 1, that of {model} is 0; use the tokenizer it was trained with"
    for argv in (
        ["finetune", path, "--init-from", model, "--workdir", tmp_path / "none"],
        ["predict", model, tiny.glue / "STS-B" / "dev.tsv", "--text", "sentence1", "sentence2"],
    ):
        assert main([*map(str, argv)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert not (tmp_path / "none").exists()
    (result,) = (tmp_path / "tuned").glob("STS-B/*/result.json")
    assert json.loads(result.read_text())["sparsity"] == pytest.approx(0.7, abs=1e-3)
