"""Hugging Face directories: bit-equal round trips, old and partial checkpoints, and every refusal."""

import json
import os
import pickle
import resource
import shutil
import signal
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from make_bert_golden import CASES, FIXTURES
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxprune.config.sections import ModelConfig
from jaxprune.config.tokenizer_files import TOKENIZER_FILES
from jaxprune.errors import UserError
from jaxprune.models.bert import BERT
from jaxprune.models.folder import read_config, read_folder, write_folder, write_masked
from jaxprune.models.tensors import params_from_tensors, params_to_tensors

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
    return params_from_tensors(BERT, tensors, CFG, head="pretraining")[0]


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
    params, fresh = params_from_tensors(BERT, tensors, CFG, head="pretraining")
    assert fresh == ()
    assert params["encoder"]["layer_01"]["attention"]["query"]["kernel"][:3, 1].tobytes() == odd.tobytes()
    assert_bit_equal(params_to_tensors(BERT, params), tensors)


def test_directory_round_trip_keeps_values_zeros_config_and_tokenizer(tmp_path, tensors, params):
    (tmp_path / "tokenizer").mkdir()
    for name in TOKENIZER_FILES[:2]:
        (tmp_path / "tokenizer" / name).write_text(name)
    write_folder(
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
    again = read_folder(tmp_path / "out", head="pretraining")
    assert (again.model, again.masks, again.fresh) == (CFG, None, ())
    assert_bit_equal(flat(again.params), flat(params))
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
    params, _ = params_from_tensors(BERT, tensors, CFG, head=head, num_labels=num_labels)
    write_folder(tmp_path, CFG, params, head=head)
    cls = getattr(transformers, f"AutoModelFor{auto}")
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    kept = {name: array for name, array in params_to_tensors(BERT, params).items() if name in state}
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
    loaded = read_folder(make(old | {"cls.predictions.bias": None}), head="pretraining").params
    assert_bit_equal(flat(loaded), flat(params))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_sources_become_float32_exactly(make, tensors, dtype):
    halves = {name: array.astype(dtype) for name, array in tensors.items()}
    loaded = read_folder(make(halves), head="pretraining").params
    expected = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_bit_equal(params_to_tensors(BERT, loaded), expected)


def test_missing_heads_are_drawn_from_the_key_and_reported(tensors, params):
    encoder = {name: array for name, array in tensors.items() if name.startswith("bert.")}
    first, fresh = params_from_tensors(BERT, encoder, CFG, head="pretraining", key=jax.random.key(1))
    assert fresh == tuple(path for path in flat(params) if path.startswith(("mlm/", "nsp/")))
    kept = [path for path in flat(params) if path not in fresh]
    assert_bit_equal({path: flat(first)[path] for path in kept}, {path: flat(params)[path] for path in kept})
    second, _ = params_from_tensors(BERT, encoder, CFG, head="pretraining", key=jax.random.key(2))
    assert np.ptp(first["nsp"]["kernel"]) > 0
    assert not np.array_equal(first["nsp"]["kernel"], second["nsp"]["kernel"])


def test_a_pretraining_checkpoint_gives_a_new_classifier(make, caplog):
    with caplog.at_level("INFO"):
        _, params, masks, fresh, others = read_folder(make(), head="classification", num_labels=3)
    assert {name.split(".")[0] for name in others} == {"cls"}
    assert (masks, sorted(fresh)) == (None, ["classifier/bias", "classifier/kernel"])
    assert params["classifier"]["kernel"].shape == (CFG.hidden_size, 3)
    assert "model.safetensors has no classifier/bias, classifier/kernel: drawn at random" in caplog.text
    assert not {"mlm", "nsp"} & params.keys()


@pytest.mark.parametrize(
    "act,expected", [("gelu", "gelu"), ("gelu_new", "gelu_new"), ("gelu_pytorch_tanh", "gelu_new")]
)
def test_config_is_read_without_weights(tmp_path, act, expected):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG, "hidden_act": act, "x": [1]}))
    assert read_config(tmp_path) == CFG.model_copy(update={"hidden_act": expected})


def test_overrides(make):
    rates = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.3}
    cfg = read_folder(make(), head="pretraining", dtype="bfloat16", **rates).model
    assert (cfg.dtype, cfg.hidden_dropout_prob, cfg.classifier_dropout) == ("bfloat16", 0.0, 0.3)
    with pytest.raises(UserError, match=r"hidden_size: the checkpoint decides it"):
        read_folder(make(), head="pretraining", hidden_size=8)


def test_hub_names_are_fetched_file_by_file(make, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    source, asked = make(), []

    def fetch(name, filename, revision=None):
        asked.append((name, filename, revision))
        if not (source / filename).exists():
            raise EntryNotFoundError(filename)
        return str(source / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    read_folder("some/bert", head="pretraining", revision="v1")
    files = ("modules.json", "config.json", "model.safetensors", "masks.safetensors")
    assert asked == [("some/bert", name, "v1") for name in files]


def test_a_config_without_model_type_names_its_class(tmp_path):
    for classes in (["BertForMaskedLM"], ["BertModel"]):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": classes, **CONFIG}))
        assert read_config(tmp_path) == CFG
    for classes in (["DistilBertForMaskedLM"], ["ElectraForMaskedLM"], [], None, "x"):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": classes, **CONFIG}))
        with pytest.raises(UserError, match=r"model_type = None; supported|has no dim, n_layers"):
            read_config(tmp_path)


@pytest.mark.parametrize("absent,gone", [((), ()), (("bert.pooler", "cls.seq_relationship"), ("pooler", "nsp"))])
def test_no_head_gives_what_is_in_the_file_and_draws_nothing(make, tensors, params, absent, gone):
    """Also a classifier beside the pre-training heads."""
    changes = {name: None for name in tensors if name.startswith(absent)} if absent else {}
    changes |= {"classifier.weight": np.ones((3, CFG.hidden_size), np.float32)}
    changes |= {"classifier.bias": np.ones(3, np.float32)}
    folder = read_folder(make(changes), head=None)
    expected = {name: value for name, value in params.items() if name not in gone}
    kernel = np.ones((CFG.hidden_size, 3), np.float32)
    assert_bit_equal(
        flat(folder.params), flat(expected | {"classifier": {"kernel": kernel, "bias": np.ones(3, np.float32)}})
    )
    assert (folder.fresh, folder.masks) == ((), None)


# --- masks and tied matrices ----------------------------------------------------------------------------------------


def masks_of(params, *paths, seed=0):
    """Random masks at these paths, None elsewhere."""
    rng = np.random.default_rng(seed)
    leaves = {path: rng.random(leaf.shape) < 0.6 if path in paths else None for path, leaf in flat(params).items()}
    return unflatten_dict(leaves, sep="/")


def masked(array, mask):
    return np.where(mask, array, np.float32(0))


WORDS, OUTPUT, POOLER = "embeddings/word_embeddings/embedding", "encoder/layer_01/output/kernel", "pooler/kernel"


def test_masks_travel_with_the_directory(tmp_path, params):
    """Odd sizes included: 97 x 32 words, 72 x 32 kernels. Weights under a mask are written as +0.0."""
    masks = masks_of(params, WORDS, OUTPUT)
    write_folder(tmp_path / "out", CFG, params, head="pretraining", masks=jax.tree.map(jax.numpy.asarray, masks))
    again = read_folder(tmp_path / "out", head="pretraining")
    assert jax.tree.structure(again.masks) == jax.tree.structure(masks)
    for path, mask in flat(masks).items():
        if mask is None:
            assert flat(again.masks)[path] is None
            expected = flat(params)[path]
        else:
            np.testing.assert_array_equal(flat(again.masks)[path], mask)
            assert flat(again.masks)[path].dtype == bool
            expected = masked(flat(params)[path], mask)
        assert flat(again.params)[path].tobytes() == expected.tobytes(), path
    with safe_open(tmp_path / "out" / "masks.safetensors", framework="np") as file:
        name = "bert.encoder.layer.1.output.dense.weight"
        assert set(file.keys()) == {name, "bert.embeddings.word_embeddings.weight"}
        assert json.loads(file.metadata()["shapes"])[name] == [32, 72]
        np.testing.assert_array_equal(file.get_tensor(name), np.packbits(flat(masks)[OUTPUT].T))
    classifier = read_folder(tmp_path / "out", head="classification", num_labels=2)
    assert set(classifier.masks) == set(classifier.params) and classifier.masks["classifier"]["kernel"] is None
    np.testing.assert_array_equal(flat(classifier.masks)[OUTPUT], flat(masks)[OUTPUT])


def test_a_directory_is_rewritten_without_its_old_masks(tmp_path, params):
    write_folder(tmp_path / "out", CFG, params, head="pretraining", masks=masks_of(params, WORDS))
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "own.txt").write_text("own")
    write_folder(tmp_path / "out", CFG, params, head="pretraining")
    again = read_folder(tmp_path / "out", head="pretraining")
    assert again.masks is None
    assert_bit_equal(flat(again.params), flat(params))
    assert (tmp_path / "out" / "notes" / "own.txt").read_text() == "own"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("damage", ["shape", "metadata", "name", "file"])
def test_masks_that_fit_nothing_are_refused(tmp_path, params, damage):
    write_folder(tmp_path, CFG, params, head="pretraining", masks=masks_of(params, WORDS))
    path = tmp_path / "masks.safetensors"
    bits, shapes = np.zeros(97 * 4, np.uint8), {"bert.embeddings.word_embeddings.weight": [97, 32]}
    if damage == "shape":
        shapes = {name: [32, 97] for name in shapes}
    if damage == "name":
        shapes = {"bert.embeddings.words.weight": [97, 32]}
    save_file(dict.fromkeys(shapes, bits), path, {} if damage == "metadata" else {"shapes": json.dumps(shapes)})
    if damage == "file":
        path.write_bytes(b"x")
    with pytest.raises(UserError) as error:
        read_folder(tmp_path, head="pretraining")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


TIED = "cls.predictions.decoder.weight"


@pytest.mark.parametrize("old", [False, True])
def test_masked_copies_alter_every_copy_of_a_tied_matrix_and_nothing_else(make, tmp_path, tensors, params, old):
    """Both layouts: today's names, and old ones without the prefix. Masks that the source has go along."""
    words = "bert.embeddings.word_embeddings.weight"
    renamed = {name: name.removeprefix("bert.") if old else name for name in tensors}
    stored = {new: tensors[name].astype(ml_dtypes.bfloat16) for name, new in renamed.items()}
    stored |= {TIED: stored[renamed[words]].copy()}
    source = make(dict.fromkeys(tensors) | stored)
    extra = {"vocab.txt": "[PAD]", "README.md": "card", "1_Pooling/config.json": "{}", "2_Dense/model.safetensors": "d"}
    left = {
        "pytorch_model.bin": "dense",
        "onnx/model.onnx": "dense",
        ".cache/lock": "",
        "earlier/model.safetensors": "dense",
    }
    for name, text in (extra | left).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    first = masks_of(params, WORDS)
    write_masked(source, source / "out", first)
    after = load_file(source / "out" / "model.safetensors")
    kept = flat(first)[WORDS]
    assert not kept.all()
    for name in (renamed[words], TIED):
        bits = after.pop(name).view(np.uint16)
        np.testing.assert_array_equal(bits, np.where(kept, stored[name].view(np.uint16), 0))
    assert_bit_equal(after, {name: array for name, array in stored.items() if name not in (renamed[words], TIED)})
    for name, text in extra.items():
        assert (source / "out" / name).read_text() == text
    assert not any((source / "out" / name).exists() for name in left)
    assert (source / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()

    write_masked(source / "out", tmp_path / "second", masks_of(params, POOLER))
    again = read_folder(tmp_path / "second", head="pretraining")
    assert {path for path, mask in flat(again.masks).items() if mask is not None} == {WORDS, POOLER}
    np.testing.assert_array_equal(flat(again.masks)[WORDS], kept)
    np.testing.assert_array_equal(flat(again.params)[WORDS] == 0, ~kept)


def test_the_tied_copy_may_be_the_only_one(make, tmp_path, tensors, params):
    words = "bert.embeddings.word_embeddings.weight"
    source = make({words: None, TIED: tensors[words]})
    assert_bit_equal(flat(read_folder(source, head="pretraining").params), flat(params))
    masks = masks_of(params, WORDS)
    write_masked(source, tmp_path / "out", masks)
    folder = read_folder(tmp_path / "out", head="pretraining")
    np.testing.assert_array_equal(flat(folder.masks)[WORDS], flat(masks)[WORDS])
    assert flat(folder.params)[WORDS].tobytes() == masked(tensors[words], flat(masks)[WORDS]).tobytes()


@pytest.mark.parity
def test_transformers_finds_a_masked_copy_tied(make, tmp_path, tensors, params):
    pytest.importorskip("torch")
    import transformers

    words = tensors["bert.embeddings.word_embeddings.weight"]
    write_masked(make({TIED: words.copy()}), tmp_path / "out", masks_of(params, WORDS))
    model, info = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    table, decoder = model.bert.embeddings.word_embeddings.weight, model.cls.predictions.decoder.weight
    assert table.data_ptr() == decoder.data_ptr()
    np.testing.assert_array_equal(table.detach().numpy(), masked(words, flat(masks_of(params, WORDS))[WORDS]))


def test_a_mask_without_a_tensor_is_refused(make, tmp_path, tensors, params):
    source = make({name: None for name in tensors if name.startswith("bert.pooler")})
    with pytest.raises(UserError, match="has no tensor for pooler/kernel of its mask's shape; leave it out"):
        write_masked(source, tmp_path / "out", masks_of(params, POOLER))
    assert not (tmp_path / "out").exists()


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_follow_the_umask(make, tmp_path, params):
    previous = os.umask(0o027)
    try:
        write_folder(tmp_path / "a", CFG, params, head="pretraining", masks=masks_of(params, WORDS))
        write_masked(make(), tmp_path / "b", masks_of(params, WORDS))
    finally:
        os.umask(previous)
    for name in ("a", "b"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / name).iterdir()} == {0o640}


def test_a_full_disk_is_an_os_error_and_leaves_nothing(make, tmp_path, params):
    source, target = make(), tmp_path / "new"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for write in (
            lambda: write_folder(target, CFG, params, head="pretraining"),
            lambda: write_masked(source, target, masks_of(params, WORDS)),
        ):
            with pytest.raises(OSError, match="File too large"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*new*"))


def test_a_directory_that_holds_no_model_is_left_alone(make, tmp_path, params):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("x")
    for target in (tmp_path / "own", tmp_path / "own" / "thesis.tex"):
        with pytest.raises(UserError, match="name a new directory"):
            write_folder(target, CFG, params, head="pretraining")
        with pytest.raises(UserError, match="name a new directory"):
            write_masked(make(), target, masks_of(params, WORDS))
    assert (tmp_path / "own" / "thesis.tex").read_text() == "x"


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
    assert_bit_equal(flat(read_folder(folder, head="pretraining").params), flat(params))


def test_legacy_bin_with_code_is_refused_and_not_run(make):
    torch = pytest.importorskip("torch")
    folder = make()
    (folder / "model.safetensors").unlink()
    for write in (
        lambda payload, path: torch.save(payload, path),
        lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    ):
        write({QUERY: Opens(folder / "ran")}, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match=r"pytorch_model.bin: not a plain dict of tensors .*; save it"):
            read_folder(folder, head="pretraining")
        assert not (folder / "ran").exists()


def test_legacy_bin_without_torch(make, monkeypatch):
    folder = make()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pytorch_model.bin: reading it needs torch"):
        read_folder(folder, head="pretraining")


@pytest.mark.parametrize("name", ["model.pkl", "flax_model.msgpack", "tf_model.h5", "model.pt"])
def test_other_formats_are_refused_by_name(make, name):
    folder = make()
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=f"{name} is not read; save the model as one model.safetensors"):
        read_folder(folder, head="pretraining")


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
        (lambda t: {"bert.extra.weight": t[QUERY]}, r"bert.extra.weight: not a tensor of bert"),
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
    with pytest.raises(UserError, match=message) as error:
        read_folder(make(changes(tensors)), head="pretraining")
    assert "\n" not in str(error.value) and "model.safetensors: " in str(error.value)


@pytest.mark.parametrize(
    "config,message",
    [
        ({"model_type": "electra"}, "model_type = 'electra'; supported are bert, distilbert"),
        ({"model_type": None}, "model_type = None"),
        ({"model_type": ["bert"]}, r"model_type = \['bert'\]"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; supported are gelu"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide hidden_size = 32"),
        ({"num_attention_heads": None}, "num_attention_heads = 12 does not divide hidden_size = 32"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: .* less than or equal to 1000"),
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000: .* less than or equal to 1048576"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True: true and false are no numbers"),
        ({"num_hidden_layers": 3}, r"bert.encoder.layer.2.\S+: tensor missing; .* not a whole bert of \S+ = 3, hidden"),
        ({"vocab_size": None}, r"word_embeddings.weight: shape \(97, 32\), but the config asks for \(30522, 32\)"),
    ],
)
def test_configs_of_other_models(make, config, message):
    with pytest.raises(UserError, match=message) as error:
        read_folder(make(**config), head="pretraining")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"model_type": ', "\udcff", "[" * 100_000])
def test_a_config_that_is_not_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config.json: not a config.json"):
        read_config(tmp_path)


def twice(raw: bytes) -> bytes:
    """Another entry under the name of one that is there."""
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    name, entry = next(pair for pair in json.loads(header).items() if pair[0] != "__metadata__")
    header = header[:-1] + b"," + json.dumps({name: entry}).encode()[1:]
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"\xff" * 16 + raw[16:], lambda raw: b"", twice]
)
def test_a_damaged_safetensors_file(make, damage):
    path = make() / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.safetensors: not a readable safetensors file"):
        read_folder(path.parent, head="pretraining")


def test_places_without_a_model(tmp_path):
    with pytest.raises(UserError, match="has no config.json; give a Hugging Face model directory"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        read_config(tmp_path / "absent")
    with pytest.raises(UserError, match="some/absent-model: no directory in .*, nor"):
        read_config("some/absent-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG}))
    with pytest.raises(UserError, match="there are no weights"):
        read_folder(tmp_path, head="pretraining")


def test_save_refuses_what_would_not_load(tmp_path, params):
    broken = params | {"nsp": {"kernel": params["nsp"]["kernel"] * np.float32(np.inf), "bias": params["nsp"]["bias"]}}
    small = params | {"nsp": {"kernel": params["nsp"]["kernel"][:-1], "bias": params["nsp"]["bias"]}}
    headless = {name: value for name, value in params.items() if name != "nsp"}
    for wrong, message in (
        (broken, r"cls.seq_relationship.weight: has NaN or infinite values; not written"),
        (small, r"cls.seq_relationship.weight: float32 \(2, 31\), but the config asks for float32 \(2, 32\)"),
        (headless, r"cls.seq_relationship.bias: missing tensor of bert with head = 'pretraining'"),
    ):
        with pytest.raises(UserError, match=message):
            write_folder(tmp_path / "out", CFG, wrong, head="pretraining")
    with pytest.raises(UserError, match="has none of vocab.txt"):
        write_folder(tmp_path / "out", CFG, params, head="pretraining", tokenizer=tmp_path)
    assert not Path(tmp_path / "out").exists()


def test_saving_over_its_own_source_keeps_the_tokenizer(make, params):
    folder = make()
    (folder / "vocab.txt").write_text("[PAD]")
    write_folder(folder, CFG, params, head="pretraining", tokenizer=folder)
    assert (folder / "vocab.txt").read_text() == "[PAD]"
    shutil.rmtree(folder)
