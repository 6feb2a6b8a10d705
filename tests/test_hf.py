"""Hugging Face directories: bit-equal round trips, old and partial checkpoints, and every refusal."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from make_bert_golden import CASES, FIXTURES
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxprune.config.sections import ModelConfig
from jaxprune.models.hf import TOKENIZER_FILES, load_hf, read_hf_config, save_hf
from jaxprune.models.hf_tensors import params_from_hf, params_to_hf

CONFIG = CASES["gelu"]["config"]
CFG = ModelConfig(**CONFIG)
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def tensors():
    """A whole pre-training checkpoint as transformers names it, with zeros among its values."""
    tensors = load_file(FIXTURES / "bert_golden_gelu.safetensors")
    tensors[QUERY][::2] = 0.0
    return tensors


@pytest.fixture
def params(tensors):
    return params_from_hf(tensors, CFG, head="pretraining")[0]


@pytest.fixture
def make(tmp_path, tensors):
    """make(config={...}, **tensors) -> a directory with that config.json and model.safetensors."""

    def make(changes=(), **config):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG} | config))
        changed = tensors | dict(changes)
        save_file(
            {k: np.ascontiguousarray(v) for k, v in changed.items() if v is not None}, tmp_path / "model.safetensors"
        )
        return tmp_path

    return make


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def flat(params):
    return flatten_dict(params, sep="/")


# --- round trips ----------------------------------------------------------------------------------------------------


def test_mapping_is_bit_for_bit(tensors):
    odd = np.array([-0.0, 1e-45, 3e38], np.float32)  # a negative zero, a subnormal, nearly the largest
    tensors[QUERY][1, :3] = odd
    params, fresh = params_from_hf(tensors, CFG, head="pretraining")
    assert fresh == []
    assert params["encoder"]["layer_01"]["attention"]["query"]["kernel"][:3, 1].tobytes() == odd.tobytes()
    assert_bit_equal(params_to_hf(params), tensors)


def test_directory_round_trip_keeps_values_zeros_config_and_tokenizer(tmp_path, tensors, params):
    (tmp_path / "tokenizer").mkdir()
    for name in TOKENIZER_FILES[:2]:
        (tmp_path / "tokenizer" / name).write_text(name)
    save_hf(
        tmp_path / "out",
        CFG,
        jax.tree.map(jax.numpy.asarray, params),
        head="pretraining",
        tokenizer=tmp_path / "tokenizer",
        extra_config={"note": "kept", "hidden_size": 7},
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["config.json", "model.safetensors", *TOKENIZER_FILES[:2]]
    )
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert_bit_equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    cfg, again = load_hf(tmp_path / "out", head="pretraining")
    assert cfg == CFG
    assert_bit_equal(flat(again), flat(params))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["note"], written["hidden_size"], written["model_type"]) == ("kept", CFG.hidden_size, "bert")


@pytest.mark.parity
@pytest.mark.parametrize(
    "auto,head",
    [("PreTraining", "pretraining"), ("MaskedLM", "pretraining"), ("SequenceClassification", "classification")],
)
def test_transformers_loads_what_we_write(tmp_path, tensors, auto, head):
    pytest.importorskip("torch")
    import transformers

    num_labels = 3 if head == "classification" else 0
    params, _ = params_from_hf(tensors, CFG, head=head, num_labels=num_labels)
    save_hf(tmp_path, CFG, params, head=head)
    cls = getattr(transformers, f"AutoModelFor{auto}")
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    kept = {name: array for name, array in params_to_hf(params).items() if name in state}
    assert len(kept) >= len(tensors) - 6
    assert_bit_equal({name: state[name] for name in kept}, kept)
    assert np.count_nonzero(state[QUERY] == 0) == CFG.hidden_size**2 // 2
    if head == "classification":
        assert model.config.num_labels == num_labels
    else:
        np.testing.assert_array_equal(
            state["cls.predictions.decoder.weight"], tensors["bert.embeddings.word_embeddings.weight"]
        )


# --- what other checkpoints look like -------------------------------------------------------------------------------


def test_old_names_no_prefix_tied_copies_and_position_ids(make, tensors, params):
    old = dict.fromkeys(tensors)
    for name, array in tensors.items():
        renamed = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[renamed.removeprefix("bert.")] = array
    old["embeddings.position_ids"] = np.arange(CFG.max_position_embeddings)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    old.pop("cls.predictions.bias")
    _, loaded = load_hf(make(old | {"cls.predictions.bias": None}), head="pretraining")
    assert_bit_equal(flat(loaded), flat(params))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_sources_become_float32_exactly(make, tensors, dtype):
    halves = {name: array.astype(dtype) for name, array in tensors.items()}
    _, loaded = load_hf(make(halves), head="pretraining")
    assert_bit_equal(params_to_hf(loaded), {name: array.astype(np.float32) for name, array in halves.items()})


def test_missing_heads_are_drawn_from_the_key_and_reported(tensors, params):
    encoder = {name: array for name, array in tensors.items() if name.startswith("bert.")}
    first, fresh = params_from_hf(encoder, CFG, head="pretraining", key=jax.random.key(1))
    assert fresh == [path for path in flat(params) if path.startswith(("mlm/", "nsp/"))]
    kept = [path for path in flat(params) if path not in fresh]
    assert_bit_equal({path: flat(first)[path] for path in kept}, {path: flat(params)[path] for path in kept})
    second, _ = params_from_hf(encoder, CFG, head="pretraining", key=jax.random.key(2))
    assert np.ptp(first["nsp"]["kernel"]) > 0
    assert not np.array_equal(first["nsp"]["kernel"], second["nsp"]["kernel"])


def test_a_pretraining_checkpoint_gives_a_new_classifier(make, caplog):
    with caplog.at_level("INFO"):
        _, params = load_hf(make(), head="classification", num_labels=3)
    assert params["classifier"]["kernel"].shape == (CFG.hidden_size, 3)
    assert "model.safetensors has no classifier/bias, classifier/kernel: drawn at random" in caplog.text
    assert not {"mlm", "nsp"} & params.keys()


@pytest.mark.parametrize(
    "act,expected", [("gelu", "gelu"), ("gelu_new", "gelu_new"), ("gelu_pytorch_tanh", "gelu_new")]
)
def test_config_is_read_without_weights(tmp_path, act, expected):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG, "hidden_act": act, "x": [1]}))
    assert read_hf_config(tmp_path) == CFG.model_copy(update={"hidden_act": expected})


def test_overrides(make):
    cfg, _ = load_hf(make(), head="pretraining", dtype="bfloat16", hidden_dropout_prob=0.0)
    assert (cfg.dtype, cfg.hidden_dropout_prob) == ("bfloat16", 0.0)
    with pytest.raises(ValueError, match=r"hidden_size: the checkpoint decides it"):
        load_hf(make(), head="pretraining", hidden_size=8)


def test_hub_names_are_fetched_file_by_file(make, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    source, asked = make(), []

    def fetch(name, filename, revision=None):
        asked.append((name, filename, revision))
        if not (source / filename).exists():
            raise EntryNotFoundError(filename)
        return str(source / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    load_hf("some/bert", head="pretraining", revision="v1")
    assert asked == [("some/bert", "config.json", "v1"), ("some/bert", "model.safetensors", "v1")]


# --- legacy pickles -------------------------------------------------------------------------------------------------


class Opens:
    """A pickle that would create a file when it is loaded by an ordinary unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_legacy_bin_is_read_by_the_weights_only_loader(make, tensors, params):
    torch = pytest.importorskip("torch")
    folder = make()
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, folder / "pytorch_model.bin")
    assert_bit_equal(flat(load_hf(folder, head="pretraining")[1]), flat(params))


def test_legacy_bin_with_code_is_refused_and_not_run(make):
    torch = pytest.importorskip("torch")
    folder = make()
    (folder / "model.safetensors").unlink()
    for write in (
        lambda payload, path: torch.save(payload, path),
        lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    ):
        write({QUERY: Opens(folder / "ran")}, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model.bin: not a plain dict of tensors .*; save it"):
            load_hf(folder, head="pretraining")
        assert not (folder / "ran").exists()


def test_legacy_bin_without_torch(make, monkeypatch):
    folder = make()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: reading it needs torch"):
        load_hf(folder, head="pretraining")


@pytest.mark.parametrize("name", ["model.pkl", "flax_model.msgpack", "tf_model.h5", "model.pt"])
def test_other_formats_are_refused_by_name(make, name):
    folder = make()
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ValueError, match=f"{name} is not read; save the model as one model.safetensors"):
        load_hf(folder, head="pretraining")


# --- refusals -------------------------------------------------------------------------------------------------------


def with_nan(array):
    array = array.copy()
    array.flat[3] = np.nan
    return array


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            lambda t: {"bert.embeddings.word_embeddings.weight": np.zeros((96, 32), np.float32)},
            r"bert.embeddings.word_embeddings.weight: shape \(96, 32\), but the config asks for \(97, 32\)",
        ),
        (
            lambda t: {"bert.encoder.layer.0.intermediate.dense.weight": t["bert.encoder.layer.0.output.dense.weight"]},
            r"bert.encoder.layer.0.intermediate.dense.weight: shape \(32, 72\), but the config asks for \(72, 32\)",
        ),
        (lambda t: {QUERY: None}, rf"{QUERY}: tensor missing"),
        (lambda t: {"bert.extra.weight": t[QUERY]}, r"bert.extra.weight: not a tensor of BERT"),
        (
            lambda t: {"bert.encoder.layer.2.output.dense.bias": np.zeros(32, np.float32)},
            r"bert.encoder.layer.2.output.dense.bias: layer 2, but num_hidden_layers = 2",
        ),
        (lambda t: {QUERY: with_nan(t[QUERY])}, rf"{QUERY}: 1 values are NaN or infinite"),
        (lambda t: {QUERY: t[QUERY].astype(np.int8)}, rf"{QUERY}: type int8"),
        (
            lambda t: {"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"] + 1},
            r"cls.predictions.decoder.weight: differs from bert.embeddings.word_embeddings.weight",
        ),
        (
            lambda t: {"bert.embeddings.LayerNorm.gamma": t["bert.embeddings.LayerNorm.weight"]},
            r"bert.embeddings.LayerNorm.\w+: given twice",
        ),
    ],
)
def test_tensors_that_are_not_this_bert(make, tensors, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        load_hf(make(changes(tensors)), head="pretraining")
    assert "\n" not in str(error.value) and "model.safetensors: " in str(error.value)


@pytest.mark.parametrize(
    "config,message",
    [
        ({"model_type": "roberta"}, "model_type = 'roberta'; only BERT with model_type = 'bert'"),
        ({"model_type": None}, "model_type = None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; supported are gelu"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 32"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": 3}, r"bert.encoder.layer.2.\S+: tensor missing; the checkpoint is not a whole BERT"),
        ({"vocab_size": None}, r"word_embeddings.weight: shape \(97, 32\), but the config asks for \(30522, 32\)"),
    ],
)
def test_configs_of_other_models(make, config, message):
    with pytest.raises(ValueError, match=message) as error:
        load_hf(make(**config), head="pretraining")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"model_type": ', "\udcff", "[" * 100_000])
def test_a_config_that_is_not_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config.json: not a config.json"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"\xff" * 16 + raw[16:], lambda raw: b""]
)
def test_a_damaged_safetensors_file(make, damage):
    path = make() / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable safetensors file"):
        load_hf(path.parent, head="pretraining")


def test_places_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="has no config.json; give a Hugging Face model directory"):
        read_hf_config(tmp_path)
    with pytest.raises(ValueError, match="no such directory"):
        read_hf_config(tmp_path / "absent")
    with pytest.raises(ValueError, match="some/absent-model: neither a directory nor"):
        read_hf_config("some/absent-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG}))
    with pytest.raises(ValueError, match="there are no weights"):
        load_hf(tmp_path, head="pretraining")


def test_save_refuses_what_would_not_load(tmp_path, params):
    broken = params | {"nsp": {"kernel": params["nsp"]["kernel"] * np.float32(np.inf), "bias": params["nsp"]["bias"]}}
    small = params | {"nsp": {"kernel": params["nsp"]["kernel"][:-1], "bias": params["nsp"]["bias"]}}
    headless = {name: value for name, value in params.items() if name != "nsp"}
    for wrong, message in (
        (broken, r"cls.seq_relationship.weight: has NaN or infinite values; not written"),
        (small, r"cls.seq_relationship.weight: float32 \(2, 31\), but the config asks for float32 \(2, 32\)"),
        (headless, r"cls.seq_relationship.bias: missing tensor of BERT with head = 'pretraining'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_hf(tmp_path / "out", CFG, wrong, head="pretraining")
    with pytest.raises(ValueError, match="has none of vocab.txt"):
        save_hf(tmp_path / "out", CFG, params, head="pretraining", tokenizer=tmp_path)
    assert not Path(tmp_path / "out").exists()


def test_saving_over_its_own_source_keeps_the_tokenizer(make, params):
    folder = make()
    (folder / "vocab.txt").write_text("[PAD]")
    save_hf(folder, CFG, params, head="pretraining", tokenizer=folder)
    assert (folder / "vocab.txt").read_text() == "[PAD]"
    shutil.rmtree(folder)
