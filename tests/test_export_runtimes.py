"""`jaxprune export` to the runtimes of others: their logits are ours."""

import filecmp
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_export import export, ours, write_pruned

from jaxprune.cli import EXIT_USER, main
from jaxprune.export import load, onnx
from jaxprune.export.source import read_source
from jaxprune.models.folder import read_folder
from jaxprune.models.portable_encoder import arrays, encode
from jaxprune.models.sparse_file import SPARSE_WEIGHTS, read, read_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A classifier of one layer, 2:4 but for its embeddings, of a width that torch's kernels take."""
    shape = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128}
    folder = write_pruned(tmp_path_factory.mktemp("small") / "source", "bert", "classification", sparsity=0.0, **shape)
    target = folder.parent / "pruned"
    words = ["--structure", "2:4", "--sparsity", "0.5", "--include", "encoder/.*/kernel"]
    assert main(["prune", str(folder), str(target), *words]) == 0
    return target


@pytest.fixture(scope="module")
def sparser(small) -> Path:
    """The same at 80 %: sparse enough for ONNX's sparse form."""
    target = small.parent / "sparser"
    assert main(["prune", str(small), str(target), "--sparsity", "0.8", "--include", "encoder/.*/kernel"]) == 0
    return target


@pytest.fixture(scope="module")
def exported(sparser) -> Path:
    """What torch's exporter makes of it."""
    pytest.importorskip("onnxscript")
    onnx.export(read_source(str(sparser)), sparser.parent / "exported.onnx")
    return sparser.parent / "exported.onnx"


@pytest.fixture
def once(exported, monkeypatch):
    """Forms that start from what torch's exporter makes find it made."""
    monkeypatch.setattr(onnx, "export", lambda _, path: shutil.copyfile(exported, path))


def feeds(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of two texts, one padded, longer than what an exporter saw; and our logits."""
    cfg, model = ours(folder, "classification")
    ids = np.random.default_rng(0).integers(1, cfg.vocab_size, (3, 11))
    mask = (np.arange(11)[None] < np.array([[11], [4], [1]])).astype(np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    few = {name: array.astype(np.int32) for name, array in inputs.items()}
    return inputs, np.asarray(
        model.apply(read_folder(folder, head="classification", num_labels=3).params, few)["logits"]
    )


def test_onnxruntime_computes_our_logits_of_sparse_matrices(sparser, once, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import load as load_onnx

    folder = export(sparser, tmp_path / "out", "--format", "onnx")
    inputs, wanted = feeds(sparser)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [each.name for each in session.get_inputs()] == [*inputs]
    (logits,) = session.run(["logits"], inputs)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    graph = load_onnx(folder / "model.onnx").graph
    pruned = [array for name, array in load_file(sparser / "model.safetensors").items() if (array == 0).mean() > 0.7]
    pruned = [array for array in pruned if array.ndim == 2]
    assert len(pruned) == 6  # as many, of as many values, in the file
    counts = sorted(np.count_nonzero(array) for array in pruned)
    assert sorted(tensor.values.dims[0] for tensor in graph.sparse_initializer) == counts


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        ("TokenClassification", ["logits"]),
        ("QuestionAnswering", ["start_logits", "end_logits"]),
    ],
)
def test_heads_of_transformers_are_exported_too(tmp_path, head, outputs):
    """A head that we do not train is computed by its own library on both sides."""
    onnxruntime, transformers = pytest.importorskip("onnxruntime"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = getattr(transformers, f"BertFor{head}")(transformers.BertConfig(vocab_size=30, **shape)).eval()
    model.save_pretrained(tmp_path / "model")
    folder = export(tmp_path / "model", tmp_path / "out", "--format", "onnx")
    ids = np.random.default_rng(0).integers(0, 30, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [each.name for each in session.get_outputs()] == outputs
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    for name, array in zip(outputs, session.run(None, inputs), strict=True):
        np.testing.assert_allclose(array, wanted[name].numpy(), atol=1e-5)


def test_a_head_that_is_not_known_is_not_left_out(small, tmp_path, capsys):
    folder = shutil.copytree(small, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMultipleChoice"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", "onnx"]) == EXIT_USER
    assert "names architectures ['BertForMultipleChoice'], a head that is not known here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_a_head_without_weights_is_not_drawn(tmp_path, capsys, named):
    pytest.importorskip("torch")
    folder = write_pruned(tmp_path / "model", "bert", "similarity")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [named]}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", "onnx"]) == EXIT_USER
    lacks = "cls.predictions.bias" if named == "BertForMaskedLM" else "bert.pooler.dense.bias"
    assert f"is a {named}, but its weights lack {lacks}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_onnxruntime_s_own_int8(sparser, once, tmp_path):
    """Near ours: a step of int8 and no more; matrices take a byte per weight."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = export(sparser, tmp_path / "out", "--format", "onnx", "--dtype", "int8")
    inputs, wanted = feeds(sparser)
    (logits,) = onnxruntime.InferenceSession(folder / "model.onnx").run(["logits"], inputs)
    assert 0 < np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()
    weights = sum(array.size for array in read_source(str(sparser)).tensors.values() if array.ndim == 2)
    assert (folder / "model.onnx").stat().st_size < weights + 40_000


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("int8", 0.1)])
def test_openvino_computes_our_logits(sparser, once, tmp_path, dtype, tolerance):
    """int8 of its own tools: with the share of zeros that `compile_model` takes, and takes here."""
    if not importlib.util.find_spec("nncf"):
        pytest.skip("needs the `openvino` extra")
    folder = export(sparser, tmp_path / "out", "--format", "openvino", "--dtype", dtype)
    import openvino

    inputs, wanted = feeds(sparser)
    properties = json.loads((folder / "openvino_properties.json").read_text())
    assert properties == ({"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.8} if dtype == "int8" else {})
    properties["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", properties)
    assert np.abs(model(inputs)["logits"] - wanted).max() < tolerance * np.abs(wanted).max()
    assert "openvino_telemetry" not in sys.modules or sys.modules["openvino_telemetry"] is None


def test_torch_packs_what_is_2_of_4(small, tmp_path, capsys):
    """Its own packing for CUTLASS, which runs anywhere, and back: the same values, two of four in each row."""
    torch = pytest.importorskip("torch")
    from torch.sparse import _semi_structured_conversions as conversions

    folder = export(small, tmp_path / "out", "--format", "torch-2:4")
    modules = json.loads((folder / "two_four.json").read_text())
    tensors, before = load_file(folder / "model.safetensors"), load_file(small / "model.safetensors")
    assert len(modules) == 6 and all("encoder.layer.0." in name for name in modules)
    for name in modules:
        weight = torch.from_numpy(tensors[f"{name}.weight"])
        assert weight.dtype == torch.float16
        packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
        assert packed.shape == (weight.shape[0], weight.shape[1] // 2)
        assert (conversions.sparse_semi_structured_to_dense_cutlass(packed, meta) == weight).all()
        assert (weight.numpy() == before[f"{name}.weight"].astype(np.float16)).all()
    masks = (folder / "masks.safetensors").read_bytes()
    assert masks == (small / "masks.safetensors").read_bytes()
    target = tmp_path / "dense"
    dense = write_pruned(tmp_path / "source", "bert", "similarity", sparsity=0.3)
    assert main(["export", str(dense), str(target), "--format", "torch-2:4"]) == EXIT_USER
    assert "no matrix keeps 2 of 4; prune it with jaxprune prune --structure 2:4" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "absent"), [("onnx", "onnxruntime"), ("openvino", "nncf")])
def test_a_form_says_what_it_needs(small, tmp_path, capsys, monkeypatch, form, absent):
    for name in ("onnx", "onnxruntime", "onnxruntime.quantization", "openvino", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in {"onnx", "openvino"} - {absent}:
        monkeypatch.setitem(sys.modules, name, sys)  # installed
    assert main(["export", str(small), str(tmp_path / "out"), "--format", form]) == EXIT_USER
    words = f"jaxprune export: --format {form}: needs {absent}; pip install 'jaxprune[{form}]'\n"
    assert capsys.readouterr().err.endswith(words) and not (tmp_path / "out").exists()


def test_what_transformers_computes_otherwise_is_refused(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    source = write_pruned(tmp_path / "source", "bert", "similarity", sublayer_relu=True)
    assert main(["export", str(source), str(tmp_path / "out"), "--format", "onnx"]) == EXIT_USER
    assert "sublayer_relu is true, which transformers does not compute" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and load(export(source, tmp_path / "sparse", "--format", "sparse"))


@pytest.mark.filterwarnings("ignore")  # what coremltools says of newer libraries when it is imported
def test_core_ml_packs_pruned_matrices(sparser, tmp_path):
    """As far as it goes on Linux: the program is converted and has a mask and values for each; it does not run here."""
    coremltools = pytest.importorskip("coremltools")
    folder = export(sparser, tmp_path / "out", "--format", "coreml", "--dtype", "float32")
    spec = coremltools.utils.load_spec(str(folder / "model.mlpackage"))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    packed = [kind for kind in kinds if kind.startswith("constexpr_") and "sparse" in kind]
    assert len(packed) == 6, kinds  # the matrices of the layer
    assert [each.name for each in spec.description.output] == ["last_hidden_state", "logits"]
    weights = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    tensors = [*load_file(sparser / "model.safetensors").values()]
    dense = sum(array.nbytes for array in tensors)
    saved = sum(3.8 * array.size - 4 * np.count_nonzero(array) for array in tensors if (array == 0).mean() > 0.7)
    assert weights.stat().st_size < dense - saved


@pytest.fixture(scope="module")
def pruned_minilm(minilm, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("minilm") / "pruned"
    assert main(["prune", str(minilm), str(target), "--sparsity", "0.9"]) == 0
    return target


@pytest.mark.real
def test_minilm_in_the_sparse_form(pruned_minilm, tmp_path):
    """At 90 %: within 3 % of bit mask and values, bit-equal back, and what numpy computes is ours."""
    source = pruned_minilm
    sparse = export(source, tmp_path / "sparse", "--format", "sparse")
    back = export(sparse, tmp_path / "back", "--format", "hf")
    for path in source.rglob("*"):
        assert path.is_dir() or filecmp.cmp(path, back / path.relative_to(source), shallow=False), path
    before = load_file(source / "model.safetensors")
    masked = {name: a for name, a in before.items() if a.ndim == 2 and (a == 0).mean() > 0.5}
    bits = sum(array.size / 8 + array.itemsize * np.count_nonzero(array) for array in masked.values())
    bits += sum(array.nbytes for name, array in before.items() if name not in masked)
    assert len(masked) == 38 and bits < (sparse / SPARSE_WEIGHTS).stat().st_size < 1.03 * bits
    ids = np.array([[101, 7592, 2088, 102], [101, 2204, 102, 0]])
    mask = (ids != 0).astype(np.int32)
    hidden = encode(arrays(read(sparse)[0]), read_config(sparse), ids, mask)
    model = ours(source, "similarity")[1]
    inputs = {"input_ids": ids.astype(np.int32), "token_type_ids": np.zeros((2, 4), np.int32), "attention_mask": mask}
    wanted = model.apply(read_folder(source, head="similarity").params, inputs, hidden_states=True)["hidden_states"]
    np.testing.assert_allclose(hidden[mask == 1], np.asarray(wanted[-1])[mask == 1], atol=1e-5)


@pytest.mark.real
def test_minilm_in_onnxruntime_and_openvino(pruned_minilm, tmp_path, monkeypatch):
    """float32: our hidden states; int8: near them, in a quarter of the file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ids = np.array([[101, 7592, 2088, 102], [101, 2204, 102, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    few = {name: array.astype(np.int32) for name, array in inputs.items()}
    model, params = ours(pruned_minilm, "similarity")[1], read_folder(pruned_minilm, head="similarity").params
    wanted = np.asarray(model.apply(params, few, hidden_states=True)["hidden_states"][-1])[ids != 0]

    def in_onnxruntime(folder):
        return onnxruntime.InferenceSession(folder / "model.onnx").run(["last_hidden_state"], inputs)[0]

    def in_openvino(folder):
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"}
        return openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options)(inputs)["last_hidden_state"]

    runtimes = {"onnx": in_onnxruntime} | ({"openvino": in_openvino} if importlib.util.find_spec("nncf") else {})
    onnx.export(read_source(str(pruned_minilm)), tmp_path / "exported.onnx")
    monkeypatch.setattr(onnx, "export", lambda _, path: shutil.copyfile(tmp_path / "exported.onnx", path))
    for form, compute in runtimes.items():
        whole, small = (
            export(pruned_minilm, tmp_path / f"{form}-{dtype}", "--format", form, "--dtype", dtype)
            for dtype in ("float32", "int8")
        )
        np.testing.assert_allclose(compute(whole)[ids != 0], wanted, atol=2e-5)
        error = np.linalg.norm(compute(small)[ids != 0] - wanted) / np.linalg.norm(wanted)
        assert 0 < error < 0.1, (form, error)
        assert sum(path.stat().st_size for path in small.glob("*model.*")) < 24e6  # of 91
    assert (tmp_path / "onnx-float32" / "model.onnx").stat().st_size < 30e6


@pytest.mark.real
def test_minilm_in_2_of_4(minilm, tmp_path):
    assert main(["prune", str(minilm), str(tmp_path / "pruned"), "--sparsity", "0.5", "--structure", "2:4"]) == 0
    folder = export(tmp_path / "pruned", tmp_path / "out", "--format", "torch-2:4")
    modules, tensors = json.loads((folder / "two_four.json").read_text()), load_file(folder / "model.safetensors")
    assert len(modules) == 37  # six in each layer, and the pooler
    for name in modules:
        weight = tensors[f"{name}.weight"]
        assert (np.count_nonzero(weight.reshape(len(weight), -1, 4), axis=2) <= 2).all()


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_minilm_in_core_ml(pruned_minilm, tmp_path):
    """A bit per weight of its 37 matrices that are multiplied with or looked up, and 16 per value; smaller by half."""
    coremltools = pytest.importorskip("coremltools")
    folder = export(pruned_minilm, tmp_path / "out", "--format", "coreml")
    weights = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    tensors = [*load_file(pruned_minilm / "model.safetensors").values()]
    matrices = [array for array in tensors if (array == 0).mean() > 0.5]
    kept = sum(np.count_nonzero(array) for array in matrices)
    packed = sum(array.size for array in matrices) / 8 + 2 * kept
    rest = 2 * (sum(array.size for array in tensors) - sum(array.size for array in matrices))
    assert packed < weights.stat().st_size < 1.05 * (packed + rest)
    assert coremltools.utils.load_spec(str(folder / "model.mlpackage")).WhichOneof("Type") == "mlProgram"
