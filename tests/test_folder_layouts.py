"""Model folders as users make them: every layout is read as transformers reads it."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_folders import (
    arrays_of,
    bits,
    drawn_masks,
    encoder_output,
    save_pickles,
    save_safetensors,
    state,
    tiny_model,
    torch,
    transformers,
    umask,
)

from jaxprune.cli import main
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_config, read_folder, write_masked
from jaxprune.models.tensors import params_to_tensors
from jaxprune.models.weights import read_weights

pytestmark = pytest.mark.parity

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


# --- layouts --------------------------------------------------------------------------------------------------------


def renamed(model, folder, rename):
    save_safetensors(model, folder, {rename(name): tensor for name, tensor in state(model).items()})


def old_norms(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


LAYOUTS = {
    "one file": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="8KB"),
    "pickle": save_pickles,
    "old pickle": lambda model, folder: save_pickles(model, folder, _use_new_zipfile_serialization=False),
    "pickles": lambda model, folder: save_pickles(model, folder, 3),
    "no prefix": lambda model, folder: renamed(model, folder, lambda name: name.removeprefix("bert.")),
    "gamma and beta": lambda model, folder: renamed(model, folder, old_norms),
    "buffers": lambda model, folder: save_safetensors(
        model,
        folder,
        state(model) | {f"bert.embeddings.{name}_ids": torch.arange(20)[None] for name in ("position", "token_type")},
    ),
    "decoder stored": lambda model, folder: save_safetensors(
        model, folder, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ),
    "decoder's bias alone": lambda model, folder: save_safetensors(
        model,
        folder,
        state(model, **{"cls.predictions.bias": None, "cls.predictions.decoder.bias": model.cls.predictions.bias}),
    ),
}


@pytest.fixture(scope="module")
def model():
    made = tiny_model()
    with torch.no_grad():  # biases start at 0, and any of them would do
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_and_pruned_as_transformers_reads_it(model, tmp_path, layout):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    LAYOUTS[layout](model, source)
    theirs = transformers.AutoModelForPreTraining.from_pretrained(source)
    expected = arrays_of(theirs)
    assert {name: bits(array) for name, array in expected.items()} == {
        name: bits(array) for name, array in arrays_of(model).items()
    }
    read = read_folder(source, head="pretraining")
    ours = params_to_tensors(architecture_named("bert"), read.params)
    assert read.fresh == () and ours.keys() | {DECODER, "cls.predictions.decoder.bias"} == expected.keys()
    for name, array in ours.items():
        assert bits(array) == bits(expected[name]), name
        assert array.base is None or array.flags.writeable  # no view of the file

    masks = drawn_masks(source)
    write_masked(source, out, masks)
    before, after = read_weights(source)[1], read_weights(out)[1]
    kept = params_to_tensors(architecture_named("bert"), masks)
    assert before.keys() == after.keys() and len(kept) == 2 + 6 * 2
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "masks.safetensors", "model.safetensors"]
    loaded, info = transformers.AutoModelForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    zeroed = {name: array * kept.get(WORDS if name == DECODER else name, True) for name, array in expected.items()}
    for name, array in arrays_of(loaded).items():
        assert bits(array + np.float32(0)) == bits(zeroed[name] + np.float32(0)), name
    for path in out.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_data_parallel_names(model, tmp_path):
    """transformers does not load `module.`; the model itself is the reference."""
    renamed(model, tmp_path, "module.{}".format)
    ours = params_to_tensors(architecture_named("bert"), read_folder(tmp_path, head="pretraining").params)
    expected = arrays_of(model)
    assert all(bits(array) == bits(expected[name]) for name, array in ours.items())
    write_masked(tmp_path, tmp_path / "out", drawn_masks(tmp_path))
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {f"module.{name}" for name in ours}


@pytest.mark.parametrize("kind", ["BertModel", "RobertaModel"])
def test_no_pooler_and_no_head(tmp_path, kind):
    tiny_model(kind).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = {name for name in tensors if name.startswith("pooler")}
    assert len(gone) == 2
    save_file({name: tensors[name] for name in tensors.keys() - gone}, tmp_path / "model.safetensors", {"format": "pt"})
    assert "pooler" not in read_folder(tmp_path, head=None).params
    masks = drawn_masks(tmp_path)
    write_masked(tmp_path, tmp_path / "out", masks)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys() - gone
    dense = drawn_masks(tmp_path, share=2)
    write_masked(tmp_path, tmp_path / "dense", dense)
    np.testing.assert_array_equal(
        encoder_output(tmp_path, add_pooling_layer=False), encoder_output(tmp_path / "dense", add_pooling_layer=False)
    )


HEADS = [
    *(("BertForTokenClassification", {"num_labels": n}) for n in (1, 7)),
    ("BertForQuestionAnswering", {}),
    ("BertForMultipleChoice", {}),
    ("DistilBertForTokenClassification", {"num_labels": 5}),
    ("DistilBertForQuestionAnswering", {}),
    ("RobertaForTokenClassification", {"num_labels": 5}),
    ("RobertaForQuestionAnswering", {}),
]


@pytest.mark.parametrize("kind,config", HEADS, ids=lambda value: value if isinstance(value, str) else "")
def test_heads_of_other_classes_go_along_and_are_not_in_the_way(tmp_path, kind, config):
    model = tiny_model(kind, **config)
    model.save_pretrained(tmp_path)
    read = read_folder(tmp_path, head="pretraining")
    record = architecture_named(read.model.architecture)
    assert read.fresh and all(path.startswith(("mlm/", "nsp/", "pooler/")) for path in read.fresh)
    masks = drawn_masks(tmp_path)
    write_masked(tmp_path, tmp_path / "out", masks)
    loaded, info = getattr(transformers, kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (
        not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.num_labels == model.config.num_labels
    )
    kept, before = params_to_tensors(record, masks), arrays_of(model)
    for name, array in arrays_of(loaded).items():
        assert bits(array + np.float32(0)) == bits(before[name] * kept.get(name, True) + np.float32(0)), name
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_a_head_that_only_shares_a_name(model, tmp_path):
    """A classifier of a class of the user's own is no concern of ours, and of no error."""
    extra = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3), "crf.transitions": torch.ones(4)}
    save_safetensors(model, tmp_path, state(model) | extra)
    assert "kernel" not in read_folder(tmp_path, head=None).params.get("classifier", {})
    write_masked(tmp_path, tmp_path / "out", drawn_masks(tmp_path))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bits(after[name]) == bits(tensor.numpy()) for name, tensor in extra.items())


# --- types and variants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["one file", "shards", "pickle"])
def test_half_weights_stay_so(tmp_path, dtype, layout):
    model, source, out = tiny_model(dtype=dtype), tmp_path / "source", tmp_path / "out"
    source.mkdir()
    LAYOUTS[layout](model, source)
    write_masked(source, out, drawn_masks(source))
    assert {array.dtype.name for array in load_file(out / "model.safetensors").values()} == {dtype}
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert transformers.AutoModelForPreTraining.from_pretrained(out).dtype == getattr(torch, dtype)
    dense = params_to_tensors(architecture_named("bert"), read_folder(source, head="pretraining").params)
    assert all(array.dtype == np.float32 for array in dense.values())
    assert all(bits(array) == bits(arrays_of(model)[name]) for name, array in dense.items())


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_variant_is_read_by_its_name_and_the_config_tells_its_type(model, tmp_path, shards, key):
    source, out = tmp_path / "source", tmp_path / "out"
    model.save_pretrained(source)
    half = tiny_model(dtype="float16", seed=1)
    half.save_pretrained(source, variant="fp16", **({"max_shard_size": "4KB"} if shards else {}))
    stated = {
        name: value for name, value in json.loads((source / "config.json").read_text()).items() if name != "dtype"
    }
    (source / "config.json").write_text(json.dumps(stated | {key: "float32"}))
    write_masked(source, out, drawn_masks(source, variant="fp16"), variant="fp16")
    after = load_file(out / "model.safetensors")
    assert {array.dtype for array in after.values()} == {np.dtype(np.float16)}
    assert not list(out.glob("*fp16*"))
    loaded = transformers.AutoModelForPreTraining.from_pretrained(out)
    assert loaded.dtype == torch.float16
    before = arrays_of(half)
    for name, array in arrays_of(loaded).items():
        assert ((array == before[name]) | (array == 0)).all()
    written = json.loads((out / "config.json").read_text())
    assert written == stated | {key: "float16"} and [*written] == [*stated, key]
    plain = params_to_tensors(architecture_named("bert"), read_folder(source, head="pretraining").params)
    assert bits(plain[WORDS]) == bits(arrays_of(model)[WORDS])


def test_a_variant_that_is_not_there(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "a", variant="fp16")
    model.save_pretrained(tmp_path / "b")
    capsys.readouterr()
    for name, argv, said in (
        ("a", [], "has no model.safetensors, but the variant fp16; ask for it (--variant, init_variant)"),
        ("a", ["--variant", "bf16"], "has no model.bf16.safetensors, but the variant fp16;"),
        ("b", ["--variant", "fp16"], "has no variant fp16; save the model as one model.safetensors"),
    ):
        assert main(["prune", str(tmp_path / name), str(tmp_path / "out"), "--sparsity", "0.5", *argv]) == 2
        error = capsys.readouterr().err
        assert said in error and str(tmp_path / name) in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


# --- vocabularies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"new_num_tokens": 64}, {"new_num_tokens": 62, "pad_to_multiple_of": 32}])
def test_resized_and_padded_vocabularies(tmp_path, change):
    model = tiny_model()
    model.resize_token_embeddings(**change, mean_resizing=False)
    model.save_pretrained(tmp_path)
    assert read_config(tmp_path).vocab_size == 64
    masks = drawn_masks(tmp_path)
    write_masked(tmp_path, tmp_path / "out", masks)
    loaded, info = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    kept = params_to_tensors(architecture_named("bert"), masks)[WORDS]
    table = loaded.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table, arrays_of(model)[WORDS] * kept)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(table) == 64


def test_rows_that_the_config_does_not_count_are_refused_as_by_transformers(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    with pytest.raises(RuntimeError, match="size"):
        transformers.AutoModelForPreTraining.from_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"word_embeddings.weight: shape \(61, 16\), but the config asks for \(64, 16\)"
    ):
        read_folder(tmp_path, head=None)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["shards", "pickles"])
def test_shards_that_do_not_fit_their_index(model, tmp_path, layout):
    LAYOUTS[layout](model, tmp_path)
    (index,) = tmp_path.glob("*.index.json")
    whole = json.loads(index.read_text())
    shard = sorted({*whole["weight_map"].values()})[1]
    for damaged in (
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        "[" * 100_000,
    ):
        index.write_text(damaged)
        with pytest.raises(UserError, match=f"{index.name}: not an index of weights .*; fetch it again") as error:
            read_folder(tmp_path, head=None)
        assert "\n" not in str(error.value)
    for other in (f"../{tmp_path.name}/{shard}", str(tmp_path / shard)):  # a folder's files are in it
        index.write_text(json.dumps({"weight_map": whole["weight_map"] | {QUERY: other}}))
        with pytest.raises(UserError, match="not an index of weights"):
            read_folder(tmp_path, head=None)
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"bert.more.weight": shard}}))
    with pytest.raises(UserError, match=f"{shard}: has no bert.more.weight, which {index.name} says"):
        read_folder(tmp_path, head=None)
    index.write_text(json.dumps(whole))
    content = (tmp_path / shard).read_bytes()
    (tmp_path / shard).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{shard}: not a "):
        read_folder(tmp_path, head=None)
    (tmp_path / shard).unlink()
    with pytest.raises(UserError, match=f"has no {shard}, which {index.name} names; fetch it again"):
        read_folder(tmp_path, head=None)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


class Opens:
    """A pickle that would create a file when it is loaded by an ordinary unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("payload", [Opens, lambda path: 3, lambda path: "text", lambda path: {"epoch": 1}])
def test_pickles_in_shards_that_are_not_plain_tensors(model, tmp_path, payload):
    save_pickles(model, tmp_path, 2)
    torch.save({QUERY: payload(tmp_path / "ran")}, tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match=r"pytorch_model-00001-of-00002.bin: not a plain dict of tensors .*; save it"):
        read_folder(tmp_path, head=None)
    assert not (tmp_path / "ran").exists()


def test_a_type_that_is_not_read_is_named(model, tmp_path):
    tensors = state(model) | {QUERY: state(model)[QUERY].to(torch.float8_e4m3fn)}
    save_safetensors(model, tmp_path, tensors)
    with pytest.raises(UserError, match=f"{QUERY} has type F8_E4M3; save it as float32") as error:
        read_folder(tmp_path, head=None)
    assert "\n" not in str(error.value)


def test_mixed_types_are_written_as_safetensors_reads_them(model, tmp_path):
    """Also where the sizes of items would put the next tensor out of step, and for a scalar and an empty one."""
    extra = {
        "head.byte": torch.ones(3, dtype=torch.uint8),
        "head.half": torch.ones(1, dtype=torch.bfloat16),
        "head.scalar": torch.tensor(7, dtype=torch.int64),
        "head.empty": torch.zeros(0, 4),
        "head.flag": torch.tensor([True, False, True]),
    }
    save_safetensors(model, tmp_path, state(model) | extra)
    write_masked(tmp_path, tmp_path / "out", drawn_masks(tmp_path, share=2))
    from safetensors.torch import load_file as load

    before, after = load(tmp_path / "model.safetensors"), load(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), name
    assert load_file(tmp_path / "out" / "model.safetensors")["head.half"].dtype == ml_dtypes.bfloat16


def test_an_unknown_architecture_is_named_with_its_key():
    with pytest.raises(UserError, match=r"^model.architecture = 'brt' is unknown; use one of bert, distilbert"):
        architecture_named("brt")
    assert ModelConfig().architecture == "bert"
