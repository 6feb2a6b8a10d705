"""`jaxprune compact`: physically smaller models compute what the pruned ones did."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_folders import contents, encoder_output, tiny_model, torch, transformers

from jaxprune.cli import main
from jaxprune.export.source import read_source
from jaxprune.export.torch_model import torch_model
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder
from jaxprune.models.portable_encoder import arrays, encode
from jaxprune.models.sparse_file import read

KINDS = {
    "BertForPreTraining": {},
    "BertForSequenceClassification": {"num_labels": 3},
    "DistilBertForMaskedLM": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "RobertaForMaskedLM": {"max_position_embeddings": 22, "pad_token_id": 1},
}
IDS = np.arange(18).reshape(3, 6) * 3 % 50 + 5


def saved(folder, kind="BertForPreTraining", **config):
    """A model of transformers whose biases are not 0."""
    model = tiny_model(kind, **KINDS[kind] | {"num_attention_heads": 4, "n_heads": 4} | config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
            elif "LayerNorm" not in name and "layer_norm" not in name:
                tensor.mul_(10)
    model.save_pretrained(folder)
    return folder


def outputs(folder, ids=IDS):
    """What jaxprune computes of a folder: the hidden states and the logits of its head."""
    read = read_folder(folder, head=None)
    head = "classification" if "classifier" in read.params else "pretraining"
    build = architecture_named(read.model.architecture).build
    model = build(read.model, head=head, num_labels=3 if head == "classification" else 0)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with jax.default_matmul_precision("highest"):
        out = model.apply(read.params, jax.tree.map(jnp.asarray, batch), hidden_states=True)
    return [*out["hidden_states"], *(out[name] for name in ("logits", "mlm_logits", "nsp_logits") if name in out)]


def theirs(folder, kind, ids=IDS):
    with torch.no_grad():
        out = getattr(transformers, kind).from_pretrained(folder).eval()(input_ids=torch.tensor(ids))
    return (out.prediction_logits if kind == "BertForPreTraining" else out.logits).numpy()


def run(*argv):
    assert main([str(word) for word in argv]) == 0


def same(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_neurons_and_heads_gone_and_the_same_logits(tmp_path, caplog, kind):
    source = saved(tmp_path / "dense", kind)
    run("prune", source, tmp_path / "neurons", "--structure", "neurons", "--sparsity", 0.5)
    run("compact", tmp_path / "neurons", tmp_path / "small")
    same(outputs(tmp_path / "small"), outputs(tmp_path / "neurons"))
    logits = theirs(tmp_path / "neurons", kind)
    same([theirs(tmp_path / "small", kind)], [logits])
    assert abs(logits - theirs(source, kind)).max() > 0.1  # pruning does something here
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config.get("hidden_dim", config.get("intermediate_size")) == 12 and "head_dim" not in config
    assert not (tmp_path / "small/masks.safetensors").exists()

    run("prune", tmp_path / "neurons", tmp_path / "both", "--structure", "heads", "--sparsity", 0.5)
    run("compact", tmp_path / "both", tmp_path / "smaller")
    same(outputs(tmp_path / "smaller"), outputs(tmp_path / "both"))
    assert "Attention heads were taken out" in caplog.text
    assert "Attention heads were taken out" in (tmp_path / "smaller/README.md").read_text()
    read = read_folder(tmp_path / "smaller", head=None).model
    assert (read.num_attention_heads, read.head_dim, read.intermediate_size, read.hidden_size) == (2, 4, 12, 16)
    with pytest.raises(RuntimeError, match="mismatch"):  # not a wrong model, silently
        theirs(tmp_path / "smaller", kind)
    ready = torch_model(read_source(str(tmp_path / "smaller")))  # what exporters start from
    ids = torch.tensor(IDS)
    with torch.no_grad():
        logits = ready.module(ids, torch.ones_like(ids), *[torch.zeros_like(ids)] * (len(ready.inputs) - 2))
    place = -1 if kind != "BertForPreTraining" else -2
    same([logits[0].numpy()], [outputs(tmp_path / "smaller")[place]])


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "DistilBertForMaskedLM"])
def test_fewer_heads_leave_in_the_sparse_form_and_as_onnx(tmp_path, caplog, kind):
    """Whose reader checks the shapes, and whose forward pass computes the same; 3 heads do not divide the width."""
    source = saved(tmp_path / "source", kind)
    run("prune", source, tmp_path / "pruned", "--sparsity", 0.25, "--structure", "heads")
    run("compact", tmp_path / "pruned", tmp_path / "small")
    run("export", tmp_path / "small", tmp_path / "hf", "--format", "hf")
    assert "heads were taken out of it; our commands load it, transformers does not" in caplog.text
    run("export", tmp_path / "small", tmp_path / "sparse", "--format", "sparse")
    tensors, config = read(tmp_path / "sparse")[0], json.loads((tmp_path / "sparse" / "config.json").read_text())
    hidden = encode(arrays(tensors), config, IDS)
    last = outputs(tmp_path / "small")[config.get("num_hidden_layers", config.get("n_layers"))]
    np.testing.assert_allclose(hidden, last, atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run("export", tmp_path / "small", tmp_path / "onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    inputs = {each.name: np.ones_like(IDS) * (each.name != "token_type_ids") for each in session.get_inputs()}
    (logits,) = session.run(["logits"], inputs | {"input_ids": IDS})
    same([logits], outputs(tmp_path / "small")[-1:])


def test_layers_keep_as_many_neurons_as_the_one_that_needs_most(tmp_path, capsys):
    source = saved(tmp_path / "dense")
    words = ["--structure", "neurons", "--sparsity", 0.6, "--amount", "encoder/layer_01/.+", 0.25]
    run("prune", source, tmp_path / "uneven", *words)
    run("compact", tmp_path / "uneven", tmp_path / "small")
    assert "neurons: layers need 10, 18; each keeps 18" in capsys.readouterr().out
    same(outputs(tmp_path / "small"), outputs(tmp_path / "uneven"))
    masks = read_folder(tmp_path / "small", head=None).masks["encoder"]
    assert masks["layer_01"]["output"]["kernel"] is None  # what still prunes something is masked still
    assert int(masks["layer_00"]["output"]["kernel"].sum()) == 10 * 16


def test_zeros_without_masks_count_and_a_unit_goes_by_either_side(tmp_path):
    """A neuron whose row is 0 adds nothing whatever goes into it; one whose column and bias are 0 gives gelu(0) = 0."""
    model = transformers.BertForPreTraining.from_pretrained(saved(tmp_path / "dense"))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, :5] = 0
            layer.intermediate.dense.weight[5:8] = 0
            layer.intermediate.dense.bias[5:7] = 0
    model.save_pretrained(tmp_path / "zeros")
    run("compact", tmp_path / "zeros", tmp_path / "small")
    assert read_folder(tmp_path / "small", head=None).model.intermediate_size == 24 - 7
    same(outputs(tmp_path / "small"), outputs(tmp_path / "zeros"))


def test_layers_that_stay_are_numbered_anew(tmp_path):
    source = saved(tmp_path / "dense", "DistilBertForMaskedLM", n_layers=3, num_hidden_layers=3)
    run("compact", source, tmp_path / "small", "--layers", 2, 0)
    before, after = (read_folder(tmp_path / name, head=None) for name in ("dense", "small"))
    assert after.model.num_hidden_layers == 2
    for new, old in (("layer_00", "layer_02"), ("layer_01", "layer_00")):
        one, other = after.params["encoder"][new], before.params["encoder"][old]
        jax.tree.map(np.testing.assert_array_equal, one, other)
    theirs(tmp_path / "small", "DistilBertForMaskedLM")


def test_weights_of_a_variant_alone_are_made_smaller(tmp_path):
    source = saved(tmp_path / "dense")
    run("compact", source, tmp_path / "one", "--layers", 0)
    (source / "model.safetensors").rename(source / "model.fp16.safetensors")
    run("compact", source, tmp_path / "other", "--layers", 0, "--variant", "fp16")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no head or neuron is pruned whole in every layer"),
        (["--layers", "0", "7"], "has the layers 0 to 1"),
        (["--layers", "1", "1"], "name each layer once"),
        (["--vocabulary", "no.txt"], "holds neither tokenizer.json nor vocab.txt"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(tmp_path, capsys, words, message):
    source, target = saved(tmp_path / "dense"), tmp_path / "small"
    assert main(["compact", str(source), str(target), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1] and not target.exists()
    (target).mkdir()
    (target / "mine").write_text("")
    assert main(["compact", str(source), str(target), *words]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_prunes_units_resumes_and_is_made_small(tiny, tmp_path):
    """Gradually, by first order, with recovery under the masks; stopped between two prunes it ends with the same bits.
    What it leaves is made small, and fine-tuned as any other model."""
    prune = {"structure": "heads+neurons", "sparsity": 0.5, "criterion": "taylor"}
    config = tiny.pretrain_yaml(tmp_path / "run.yaml", prune=prune, model={"num_attention_heads": 4})
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert tiny.run("pretrain", config, "--workdir", once).code == 0
    assert tiny.stop(6, signal.SIGTERM, "pretrain", config, "--workdir", twice).code == 75
    assert tiny.run("pretrain", config, "--workdir", twice).code == 0
    for name in ("prunes.jsonl", "hf/model.safetensors", "hf/masks.safetensors"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()
    assert json.loads((once / "result.json").read_text())["sparsity"] == 0.5
    masks = read_folder(once / "hf", head=None).masks
    kept = {path: mask for path, mask in flatten_dict(masks, sep="/").items() if mask is not None}
    assert all(mask.mean() == 0.5 for mask in kept.values()) and len(kept) == 10
    run("compact", once, tmp_path / "small")
    same(outputs(tmp_path / "small"), outputs(once / "hf"))
    cfg = read_folder(tmp_path / "small", head=None).model
    assert (cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size) == (2, 4, 16)
    tuning = tiny.finetune_yaml(tmp_path / "tune.yaml", init_from=str(tmp_path / "small"))
    assert tiny.run("finetune", tuning, "--workdir", tmp_path / "tuned").code == 0
    assert read_folder(tmp_path / "tuned/best/hf", head=None).model.head_dim == 4


@pytest.mark.real
def test_a_real_sentence_encoder_with_half_its_neurons(minilm, tmp_path):
    """It stays a sentence-transformers folder that transformers loads, and gives the same vectors."""
    run("prune", minilm, tmp_path / "masked", "--structure", "neurons", "--sparsity", 0.5)
    run("compact", tmp_path / "masked", tmp_path / "small")
    assert contents(minilm).keys() == contents(tmp_path / "small").keys()
    assert read_folder(tmp_path / "small", head=None).model.intermediate_size == 768
    same([encoder_output(tmp_path / "small")], [encoder_output(tmp_path / "masked")])
    text = tmp_path / "text.txt"
    text.write_text("A man is playing a guitar.\n\nThe weather is lovely today.")
    run("compact", tmp_path / "small", tmp_path / "smaller", "--vocabulary", text)
    pairs = []
    for folder in (tmp_path / "small", tmp_path / "smaller"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            model = transformers.AutoModel.from_pretrained(folder).eval()
            pairs.append(model(**tokenizer(text.read_text(), return_tensors="pt")).last_hidden_state.numpy())
    same([pairs[0]], [pairs[1]])


def uneven(tmp_path, kind="BertForPreTraining"):
    """A folder whose layers have other numbers of neurons and heads, and its masked origin."""
    source = saved(tmp_path / "dense", kind)
    words = ["--structure", "neurons", "--sparsity", 0.6, "--amount", "encoder/layer_01/.+", 0.25]
    run("prune", source, tmp_path / "neurons", *words)
    words = ["--structure", "heads", "--sparsity", 0.25, "--amount", "encoder/layer_01/.+", 0.75]
    run("prune", tmp_path / "neurons", tmp_path / "pruned", *words)
    run("compact", tmp_path / "pruned", tmp_path / "small", "--uneven")
    return tmp_path / "pruned", tmp_path / "small"


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_its_own_width_and_the_same_logits(tmp_path, capsys, kind):
    """Here, beside the weights with numpy alone, in ONNX; refused where transformers would read it."""
    pruned, small = uneven(tmp_path, kind)
    assert "neurons: layers need 10, 18; each keeps its own" in capsys.readouterr().out
    same(outputs(small), outputs(pruned))
    folder = read_folder(small, head=None)
    model = folder.model
    assert (model.layer_heads, model.layer_neurons, model.head_dim) == ((3, 1), (10, 18), 4)
    assert (model.num_attention_heads, model.intermediate_size, folder.masks) == (3, 18, None)
    flops = architecture_named(model.architecture).train_flops
    one, other = (model.with_layers([i]) for i in range(2))
    none = model.model_copy(update={"num_hidden_layers": 0, "layer_heads": (), "layer_neurons": ()})
    count = [flops(cfg, seq_len=8, predictions=2) for cfg in (model, one, other, none)]
    assert count[0] == count[1] + count[2] - count[3]
    with pytest.raises((RuntimeError, ValueError), match=r"mismatch|multiple|n_heads"):
        theirs(small, kind)
    for name in ("hf", "torch-2:4"):
        assert main(["export", str(small), str(tmp_path / "out"), "--format", name]) == 2
        assert "its layers differ in width" in capsys.readouterr().err and not (tmp_path / "out").exists()
    run("export", small, tmp_path / "sparse", "--format", "sparse")
    same(outputs(tmp_path / "sparse"), outputs(small))
    tensors, config = read(tmp_path / "sparse")[0], json.loads((tmp_path / "sparse/config.json").read_text())
    hidden = encode(arrays(tensors), config, IDS)
    np.testing.assert_allclose(hidden, outputs(small)[2], atol=1e-4)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run("export", small, tmp_path / "onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    inputs = {each.name: np.ones_like(IDS) * (each.name != "token_type_ids") for each in session.get_inputs()}
    logits = session.run(None, inputs | {"input_ids": IDS})[0]
    same([logits], [outputs(small)[3]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_neurons": [18, 10]}, "layer.0.intermediate.dense."),
        ({"layer_heads": [1, 3]}, "layer.0.attention"),
        ({"layer_neurons": [10, 19]}, "layer_neurons = [10, 19]: name each of the 2 layers, intermediate_size = 18"),
        ({"layer_heads": [3]}, "layer_heads = [3]: name each of the 2 layers"),
        ({"layer_heads": "many"}, "layer_heads"),
        ({"layer_heads": [3, 10**30]}, "layer_heads"),
        ({"layer_neurons": None}, "layer.0.intermediate.dense."),
    ],
)
def test_widths_that_do_not_fit_are_one_line(tmp_path, capsys, change, message):
    small = uneven(tmp_path)[1]
    run("export", small, tmp_path / "sparse", "--format", "sparse")
    for folder in (small, tmp_path / "sparse"):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert main(["export", str(folder), str(tmp_path / "out"), "--format", "sparse"]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error.splitlines()[-1]
    with pytest.raises(ValueError, match="config.json"):
        read(tmp_path / "sparse")


def test_uneven_models_are_pruned_cut_again_and_made_even(tmp_path):
    small = uneven(tmp_path)[1]
    run("prune", small, tmp_path / "again", "--structure", "heads+neurons", "--sparsity", 0.34)
    run("compact", tmp_path / "again", tmp_path / "smaller", "--uneven")
    same(outputs(tmp_path / "smaller"), outputs(tmp_path / "again"))
    model = read_folder(tmp_path / "smaller", head=None).model
    assert (model.layer_heads, model.layer_neurons) == ((2, 1), (7, 12))
    run("compact", small, tmp_path / "one", "--layers", 1)
    one = read_folder(tmp_path / "one", head=None).model
    assert one.even and (one.num_attention_heads, one.intermediate_size, one.head_dim) == (1, 18, 4)
    assert not {"layer_heads", "layer_neurons"} & json.loads((tmp_path / "one/config.json").read_text()).keys()
    outputs(tmp_path / "one")
    run("compact", small, tmp_path / "turned", "--layers", 1, 0)
    assert read_folder(tmp_path / "turned", head=None).model.layer_neurons == (18, 10)
    outputs(tmp_path / "turned")
