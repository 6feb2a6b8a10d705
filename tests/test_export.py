"""`jaxprune export`: what leaves the house computes the same, and comes back bit by bit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from own_tasks import write_encoder
from safetensors.numpy import load_file, save_file

from jaxprune.cli import EXIT_USER, main
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.export import load
from jaxprune.export.compressed_table import looked_up, nbytes, rows
from jaxprune.export.hugging_face import card
from jaxprune.export.openvino import sparsest
from jaxprune.export.source import read_source
from jaxprune.models import ARCHITECTURES
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.models.portable_encoder import arrays, class_logits, encode, mean_vectors
from jaxprune.models.sparse_file import SPARSE_WEIGHTS, read, read_config
from jaxprune.models.tensors import leaf_shapes

IDS = np.array([[2, 5, 9, 11, 3, 17, 18, 20], [2, 21, 3, 0, 0, 0, 0, 0]], np.int32)


def export(source, target, *words):
    assert main(["export", str(source), str(target), *words]) == 0
    return target


def batch(cfg):
    """Two texts, the second padded, as an architecture has its padding."""
    real = IDS != 0
    ids = np.where(real, IDS, cfg.pad_token_id).astype(np.int32)
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": real.astype(np.int32)}


def write_pruned(folder: Path, architecture: str, head: str, *, sparsity: float = 0.5, **changes) -> Path:
    """A directory of a tiny random model of any architecture, pruned."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 36}
    shape |= {"vocab_size": 37, "max_position_embeddings": 20} | changes
    cfg = ModelConfig(architecture=architecture, **shape)
    record = ARCHITECTURES[architecture]
    labels = 3 if head == "classification" else 0
    rng, params, masks = np.random.default_rng(0), {}, {}
    for path, leaf in leaf_shapes(record, cfg, head=head, num_labels=labels).items():
        params[path] = (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        if any(re.fullmatch(regex, path) for regex in record.prunable[:3]):
            order = np.argsort(abs(params[path]), axis=None).argsort().reshape(leaf.shape)
            masks[path] = order >= round(sparsity * leaf.size)
    params, masks = (unflatten_dict(tree, sep="/") for tree in (params, masks))
    write_folder(folder, cfg, params, head=head, masks=masks)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A sentence encoder with half of its weights pruned, to be read."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "source")


@pytest.fixture
def source(encoder, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(encoder, tmp_path / "source"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("coded", [[], ["--coded"]], ids=["bitmap", "coded"])
def test_sparse_and_back_is_the_same_directory(encoder, tmp_path, coded):
    """Other files, tensors and masks, byte by byte; `hf` adds a card, where there is none."""
    source = export(encoder, tmp_path / "source", "--format", "hf")
    sparse = export(source, tmp_path / "sparse", "--format", "sparse", *coded)
    readers = {SPARSE_WEIGHTS, "jaxprune_sparse.py", "jaxprune_encoder.py"}
    assert files(sparse).keys() - readers == files(source).keys() - {"model.safetensors", "masks.safetensors"}
    back = files(export(sparse, tmp_path / "back", "--format", "hf"))
    assert back == files(source) and "are pruned: exactly 0" in back["README.md"].decode()
    again = export(sparse, tmp_path / "again", "--format", "sparse", *coded)
    assert files(again) == files(sparse)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_types_come_back_as_what_they_were_rounded_to(source, tmp_path, dtype):
    sparse = export(source, tmp_path / "sparse", "--format", "sparse", "--dtype", dtype)
    back = export(sparse, tmp_path / "back", "--format", "hf")
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    stored = "float32" if dtype == "int8" else dtype
    for name, array in before.items():
        assert after[name].dtype.name == stored and not after[name][array == 0].any()
        assert np.abs(after[name].astype(np.float32) - array).max() <= 0.01 * np.abs(array).max()
    assert (back / "masks.safetensors").read_bytes() == (source / "masks.safetensors").read_bytes()
    assert json.loads((back / "config.json").read_text())["dtype"] == stored


def test_zeros_survive_a_re_save_by_transformers(encoder, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    source = export(encoder, tmp_path / "source", "--format", "hf")
    transformers.AutoModel.from_pretrained(source).save_pretrained(tmp_path / "saved")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    for name, array in before.items():
        assert after[name.removeprefix("bert.")].tobytes() == array.tobytes()


def ours(folder, head):
    held = read_folder(folder, head=head, num_labels=3 if head == "classification" else 0)
    assert not held.fresh
    build = ARCHITECTURES[held.model.architecture].build
    return held.model, build(held.model, head=head, num_labels=3 if head == "classification" else 0)


@pytest.mark.parametrize("head", ["similarity", "classification"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_numpy_torch_and_jax_compute_the_same_of_a_sparse_file(tmp_path, architecture, head):
    """Also with word embeddings that stay compressed, bit by bit."""
    source = write_pruned(tmp_path / "source", architecture, head)
    sparse = export(source, tmp_path / "sparse", "--format", "sparse", "--dtype", "bfloat16")
    cfg, model = ours(sparse, head)
    inputs = batch(cfg)
    out = model.apply(load(sparse), inputs, hidden_states=True)
    real = inputs["attention_mask"] == 1
    wanted = np.asarray(out["hidden_states"][-1])[real]

    @jax.jit
    def compressed(params, inputs):
        return model.apply(*looked_up(params, inputs, cfg), hidden_states=True)

    few = compressed(load(sparse, compressed_embeddings=True), inputs)
    plain = jax.jit(lambda params, inputs: model.apply(params, inputs, hidden_states=True))(load(sparse), inputs)
    name = "logits" if head == "classification" else "embeddings"
    assert (np.asarray(few[name]) == np.asarray(plain[name])).all()
    config = read_config(sparse)
    modules = [np]
    try:
        import torch

        modules.append(torch)
    except ImportError:
        pass
    for xp in modules:
        for few in (False, True):
            held = arrays(read(sparse)[0], xp, compressed_embeddings=few)
            hidden = encode(held, config, inputs["input_ids"], inputs["attention_mask"], xp)
            assert hidden.dtype == xp.float32
            np.testing.assert_allclose(np.asarray(hidden)[real], wanted, atol=1e-5)
            if head == "classification":
                logits = class_logits(hidden, held, xp)
                assert logits.dtype == xp.float32
                np.testing.assert_allclose(np.asarray(logits), np.asarray(out["logits"]), atol=1e-5)
            else:
                vectors = np.asarray(mean_vectors(hidden, inputs["attention_mask"], xp))
                assert vectors.dtype == np.float32
                cosines = np.asarray(out["logits"])
                np.testing.assert_allclose((vectors[::2] * vectors[1::2]).sum(-1), cosines, atol=1e-5)
    loaded = load(sparse, framework="numpy")
    assert all(
        (loaded[name] == load_file(source / "model.safetensors")[name].astype(jnp.bfloat16)).all() for name in loaded
    )


def test_other_settings_of_bert(tmp_path):
    """The tanh GELU, and the ReLU on sub-layers' outputs."""
    source = write_pruned(tmp_path / "source", "bert", "similarity", hidden_act="gelu_new", sublayer_relu=True)
    sparse = export(source, tmp_path / "sparse", "--format", "sparse")
    cfg, model = ours(sparse, "similarity")
    inputs = batch(cfg)
    wanted = model.apply(load(sparse), inputs, hidden_states=True)["hidden_states"][-1]
    hidden = encode(arrays(read(sparse)[0]), read_config(sparse), inputs["input_ids"], inputs["attention_mask"])
    real = inputs["attention_mask"] == 1
    assert hidden.dtype == np.float32
    np.testing.assert_allclose(hidden[real], np.asarray(wanted)[real], atol=1e-5)


ALONE = """
import sys
others = ["jax", "jaxprune", "ml_dtypes", "safetensors", "tokenizers", "transformers", *sys.argv[2:]]
sys.modules |= dict.fromkeys(others)
sys.path.insert(0, sys.argv[1])
import {module} as xp
from jaxprune_encoder import arrays, encode, mean_vectors
from jaxprune_sparse import read, read_config
held = arrays(read(sys.argv[1])[0], xp)
print(*mean_vectors(encode(held, read_config(sys.argv[1]), [[2, 5, 3]], None, xp), [[1, 1, 1]], xp)[0].tolist())
"""


@pytest.mark.parametrize(("module", "absent"), [("numpy", ["torch"]), ("torch", [])])
def test_the_files_beside_the_weights_need_one_library(encoder, tmp_path, module, absent):
    pytest.importorskip(module)
    sparse = export(encoder, tmp_path / "sparse", "--format", "sparse", "--coded")
    command = [sys.executable, "-I", "-c", ALONE.format(module=module), str(sparse), *absent]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    model = ours(sparse, "similarity")[1]
    ids = np.array([[2, 5, 3]], np.int32)
    inputs = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": np.ones_like(ids)}
    wanted = np.asarray(model.apply(load(sparse), inputs)["embeddings"])[0]
    np.testing.assert_allclose([*map(float, done.stdout.split())], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_compressed_word_embeddings_take_less_memory(tmp_path):
    shape = {"vocab_size": 2000, "hidden_size": 128}
    source = write_pruned(tmp_path / "source", "bert", "similarity", sparsity=0.9, **shape)
    sparse = export(source, tmp_path / "sparse", "--format", "sparse", "--dtype", "bfloat16")
    table = load(sparse, compressed_embeddings=True)["embeddings"]["word_embeddings"]["embedding"]
    weights = 2000 * 128
    assert nbytes(table) == weights // 8 + 2 * round(0.1 * weights) + 8 * 2000
    with pytest.raises(UserError, match="word embeddings are not packed"):
        dense = write_pruned(tmp_path / "dense", "bert", "similarity", sparsity=0.0)
        save_file(load_file(dense / "model.safetensors"), dense / "model.safetensors")
        (dense / "masks.safetensors").unlink()
        load(export(dense, tmp_path / "d", "--format", "sparse"), compressed_embeddings=True)


def test_without_masks_zeros_of_matrices_are_packed(source, tmp_path):
    """Where that is smaller; and none come back where none were."""
    (source / "masks.safetensors").unlink()
    tensors = load_file(source / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"][0, 0] = 0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    sparse = export(source, tmp_path / "sparse", "--format", "sparse")
    packed = {name for name, tensor in read(sparse)[0].items() if tensor.mask is not None}
    halves = {name for name, array in tensors.items() if array.ndim == 2 and np.count_nonzero(array) < 0.9 * array.size}
    assert packed == halves and len(packed) == 13
    back = export(sparse, tmp_path / "back", "--format", "hf")
    assert not (back / "masks.safetensors").exists()
    for name, array in load_file(back / "model.safetensors").items():
        assert array.tobytes() == tensors[name].tobytes()


def test_a_few_zeros_make_no_pruned_matrix(source):
    """Neither for the card nor for OpenVINO, whose rate of 0 would have it decode whole matrices as sparse ones."""
    (source / "masks.safetensors").unlink()
    stored = read_source(str(source))
    assert sparsest(stored) == pytest.approx(0.5, abs=0.01) and "of 13 matrices are pruned" in card(stored)
    table = stored.tensors["bert.embeddings.position_embeddings.weight"].copy()
    table[0, 0] = 0
    stored.tensors["bert.embeddings.position_embeddings.weight"] = table
    assert sparsest(stored) == pytest.approx(0.5, abs=0.01) and "of 13 matrices are pruned" in card(stored)
    dense = stored._replace(tensors={"bert.embeddings.position_embeddings.weight": table})
    assert sparsest(dense) == 1 and "pruned:" not in card(dense)
    masked = dense._replace(masks={name: array != 0 for name, array in dense.tensors.items()})
    assert sparsest(masked) == 1 and "1 of the 1,280 weights of 1 matrices" in card(masked)


def test_a_tied_copy_is_stored_once(tmp_path):
    source = write_pruned(tmp_path / "source", "bert", "pretraining")
    tensors = load_file(source / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    sparse = export(source, tmp_path / "sparse", "--format", "sparse")
    assert not any("decoder" in name for name in load_file(sparse / SPARSE_WEIGHTS))
    back = load_file(export(sparse, tmp_path / "back", "--format", "hf") / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in tensors.items())


REFUSED = {
    "form": (["--format", "zip"], "--format zip: is none of hf, sparse, onnx"),
    "type": (["--format", "hf", "--dtype", "int8"], "--dtype int8: hf takes stored"),
    "coded": (["--format", "hf", "--coded"], "--coded: hf has no masks to code"),
}


@pytest.mark.parametrize("case", [*REFUSED])
def test_what_a_form_does_not_take_is_refused(source, tmp_path, capsys, case):
    words, message = REFUSED[case]
    assert main(["export", str(source), str(tmp_path / "out"), *words]) == EXIT_USER
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_embeddings_without_a_weight_left_are_looked_up(source, tmp_path):
    """A take from an empty axis is none."""
    assert main(["prune", str(source), str(tmp_path / "empty"), "--sparsity", "1"]) == 0
    folder = export(tmp_path / "empty", tmp_path / "out", "--format", "sparse", "--dtype", "bfloat16")
    params = load(folder, compressed_embeddings=True)
    table = params["embeddings"]["word_embeddings"]["embedding"]
    assert not np.asarray(rows(table, np.arange(3), 16)).any()


def test_nothing_is_written_over(source, capsys):
    before = files(source)
    assert main(["export", str(source), str(source), "--format", "sparse"]) == EXIT_USER
    assert "exists and is not empty" in capsys.readouterr().err and files(source) == before


def test_a_stale_mask_and_a_value_beyond_float16_are_refused(source, tmp_path, capsys):
    tensors = load_file(source / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    kept = np.nonzero(tensors[name])
    tensors[name][kept[0][0], kept[1][0]] = 1e5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    words = ["--format", "sparse", "--dtype", "float16"]
    assert main(["export", str(source), str(tmp_path / "out"), *words]) == EXIT_USER
    assert f"{name}: 100000 is beyond float16; use bfloat16" in capsys.readouterr().err
    tensors[name][tensors[name] == 0] = 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "sparse"]) == EXIT_USER
    assert f"{tensors[name].size // 2} pruned weights of {name} are not 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_is_exported(pretrained, tmp_path):
    """The workdir of a run stands for the model that it left, and a sparse directory for a model."""
    sparse = export(pretrained, tmp_path / "sparse", "--format", "sparse")
    back = export(sparse, tmp_path / "back", "--format", "hf")
    for name in ("model.safetensors", "masks.safetensors", "config.json"):
        assert (back / name).read_bytes() == (pretrained / "hf" / name).read_bytes()
    assert main(["inspect", str(sparse), "--json"]) == 0
