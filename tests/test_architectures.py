"""Every architecture's record keeps its promises (names, paths, scopes, parts, FLOPs), and a new one is one record."""

import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from workflow import SEQ_LEN, VOCAB

from jaxprune.cli import EXIT_USER, main
from jaxprune.config.commands import PretrainConfig
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.experiments.pretrain import open_run, resolve
from jaxprune.experiments.shelf import Shelf
from jaxprune.models import ARCHITECTURES, architecture_named
from jaxprune.models.architecture import Architecture
from jaxprune.models.bert import BERT
from jaxprune.models.distilbert import DISTILBERT
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.models.model import HEADS
from jaxprune.models.roberta import ROBERTA
from jaxprune.models.tensors import params_to_tensors, tensor_name
from jaxprune.models.xlm_roberta import XLM_ROBERTA
from jaxprune.pruning import init_masks, keep_top

EVERY = pytest.mark.parametrize("record", ARCHITECTURES.values(), ids=ARCHITECTURES)
DISTINCT = pytest.mark.parametrize(
    "record", {record.build: record for record in ARCHITECTURES.values()}.values(), ids=lambda record: record.name
)
"""One of those that compute the same: RoBERTa and XLM-R differ in names alone."""

QUICK = {"xla_backend_optimization_level": 0}


def config(record, num_hidden_layers=11):
    """Eleven layers, of two digits; compiled programs take two."""
    return ModelConfig(
        architecture=record.name,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
        classifier_dropout=0.3,
    )


def drawn(record, cfg, head):
    return jax.device_get(jax.jit(record.build(cfg, head=head).init, compiler_options=QUICK)(jax.random.key(0)))


def abstract(record, head):
    init = record.build(config(record), head=head, num_labels={"classification": 3, "multi_label": 2}.get(head, 0)).init
    return flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")


def matched(regex, paths):
    return {path for path in paths if re.fullmatch(regex, path)}


def test_registry():
    assert ARCHITECTURES == {
        "bert": BERT,
        "distilbert": DISTILBERT,
        "roberta": ROBERTA,
        "xlm-roberta": XLM_ROBERTA,
    }
    assert architecture_named("bert") is BERT
    with pytest.raises(
        UserError, match=r"architecture = 'distillbert' is unknown; .* bert, distilbert, .*'distilbert'"
    ):
        architecture_named("distillbert")


@EVERY
def test_every_leaf_has_a_tensor_of_its_own(record):
    for head in HEADS:
        names = [tensor_name(record, path) for path in abstract(record, head)]
        assert len({*names}) == len(names)
        originals = {original for _, original in record.tied}
        assert head != "pretraining" or originals <= {*names}
        assert not {copy for copy, _ in record.tied} & {*names}
    with pytest.raises(UserError, match=f"encoder/other: not a path of {record.name}'s params"):
        tensor_name(record, "encoder/other")


@EVERY
@pytest.mark.parity
def test_tensor_names_are_those_of_transformers(record):
    pytest.importorskip("torch")
    import transformers

    for head in HEADS:
        cfg = config(record)
        labels = {"classification": 3, "regression": 1}.get(head, 2)
        shape = transformers.AutoConfig.for_model(record.name, **record.config_to_hf(cfg), num_labels=labels)
        model = getattr(transformers, record.classes[head])(shape)
        tied = dict(record.tied)
        theirs = {tied.get(name, name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if head == "similarity":  # of the bare encoder, whose pooler it leaves out
            theirs = {f"{record.prefix}{name}": shape for name, shape in theirs.items() if "pooler" not in name}
        ours = {
            tensor_name(record, path): leaf.shape[::-1] if path.endswith("/kernel") else leaf.shape
            for path, leaf in abstract(record, head).items()
        }
        assert ours == theirs
        assert record.config_from_hf(shape.to_dict(), "there") == cfg


@EVERY
def test_paths_of_the_record_are_paths_of_the_model(record):
    heads = {head: abstract(record, head) for head in HEADS}
    every = {path for leaves in heads.values() for path in leaves}
    pretraining = heads["pretraining"]
    assert pretraining[record.word_embeddings].shape == (40, 16)
    for regex in record.prunable:
        assert matched(regex, every), regex
    for regex in record.optional:  # of the model, or what a file may hold beside it
        assert matched(regex, every | {f"{module}/kernel" for module, _ in record.tensors}), regex
    prunable = set().union(*(matched(regex, pretraining) for regex in record.prunable))
    assert len(prunable) == 1 + 6 * 11 + (record is BERT)
    assert {len(pretraining[path].shape) for path in prunable} == {2}
    required = every - set().union(*(matched(regex, every) for regex in record.optional))
    assert all(path.startswith(("embeddings/", "encoder/")) for path in required)
    assert len(required) == len([path for path in pretraining if path.startswith(("embeddings/", "encoder/"))])
    parts = {path: next(name for name, regex in record.parts if re.fullmatch(regex, path)) for path in every}
    assert set(parts.values()) == {name for name, _ in record.parts}
    assert parts[record.word_embeddings] == "word embeddings"
    assert record.next_sentence == ("nsp/kernel" in pretraining)
    assert {*heads["similarity"]} == required


@EVERY
def test_pairs_of_segments_are_for_those_that_learn_from_them(tiny, tmp_path, caplog, capsys, record):
    """`prepare` refuses them for others; data that have them all the same are warned of."""
    path = tiny.prepare_yaml(tmp_path / "p.yaml", architecture=record.name)
    words = ["prepare", str(path), "--workdir", str(tmp_path / "data"), "--dry-run"]
    assert main(words) == (0 if record is BERT else EXIT_USER)
    assert ("set next_sentence: false" in capsys.readouterr().err) == (record is not BERT)
    model = {"architecture": record.name, "max_position_embeddings": SEQ_LEN + 1, "vocab_size": VOCAB}
    cfg = PretrainConfig.model_validate({"steps": 1, "batch_size": 8, "data": {"path": str(tiny.data)}, "model": model})
    open_run(resolve(cfg, None), Shelf())
    assert ("prepare it with next_sentence: false" in caplog.text) == (record is not BERT)


def test_bert_base_has_the_papers_74_matrices():
    leaves = flatten_dict(
        jax.eval_shape(BERT.build(ModelConfig(), head="pretraining").init, jax.random.key(0)), sep="/"
    )
    prunable = set().union(*(matched(regex, leaves) for regex in BERT.prunable))
    assert len(prunable) == 74
    assert sum(leaves[path].size for path in prunable) == 30522 * 768 + 12 * 12 * 768**2 + 768**2


@EVERY
def test_scopes(record):
    leaves = abstract(record, "pretraining")
    scopes = record.scopes(config(record))
    assert set(scopes) == {"layer", "head"}
    for path, leaf in leaves.items():
        layer, head = (scopes[name](path, leaf.shape) for name in ("layer", "head"))
        inside = re.match(r"encoder/layer_\d\d/", path)
        assert (layer is None) == (inside is None)
        attention = re.fullmatch(r"(encoder/layer_\d\d)/attention/(query|key|value|output)/kernel", path)
        assert (head is None) == (attention is None)
        if inside:
            assert layer == (inside[0].removesuffix("/"), None, 1)
        if attention:
            assert head == (f"{attention[1]}/attention", 0 if attention[2] == "output" else 1, 4)
    with pytest.raises(
        UserError, match=r"num_attention_heads = 4 does not divide axis 1 of \S+query/kernel.*\(16, 18\)"
    ):
        scopes["head"]("encoder/layer_00/attention/query/kernel", (16, 18))
    with pytest.raises(UserError, match=r"does not divide axis 0 of .*\(4, 4, 16\)"):
        scopes["head"]("encoder/layer_00/attention/output/kernel", (4, 4, 16))


@DISTINCT
def test_scopes_hold_one_threshold_over_a_layer_or_a_head(record):
    """Against numpy, with one layer's values ten times larger: each head loses half over its four matrices."""
    heads, cfg = 4, config(record, 2)
    params = drawn(record, cfg, "pretraining")
    value = params["encoder"]["layer_01"]["attention"]["value"]
    value["kernel"] = 10 * value["kernel"]
    masks = init_masks(params, (r"encoder/layer_\d+/attention/(query|key|value|output)/kernel",))
    scores = jax.tree.map(lambda m, w: None if m is None else np.abs(w), masks, params, is_leaf=lambda m: m is None)
    for scope, pieces in (("layer", 1), ("head", heads)):
        prune = jax.jit(partial(keep_top, sparsity=0.5, scope=record.scopes(cfg)[scope]), compiler_options=QUICK)
        for layer, kept in jax.device_get(prune(scores))["encoder"].items():
            for piece in range(pieces):
                score, keep = (
                    np.concatenate(
                        [
                            np.split(tree["encoder"][layer]["attention"][name]["kernel"], pieces, name != "output")[
                                piece
                            ].ravel()
                            for name in ("query", "key", "value", "output")
                        ]
                    )
                    for tree in (scores, {"encoder": {layer: kept}})
                )
                assert keep.sum() == keep.size // 2
                assert score[keep].min() > score[~keep].max()


@EVERY
def test_train_flops_are_those_of_the_matrix_products(record):
    """Counted from the leaves: 6 per weight and token it meets, and attention's two products with no weights."""
    seq_len, predictions = 12, 3
    cfg, leaves, total = config(record), abstract(record, "pretraining"), 0
    for path, leaf in leaves.items():
        if path.endswith("kernel") or path == record.word_embeddings:
            meets = seq_len if path.startswith("encoder/") else 1 if path.startswith(("pooler", "nsp")) else predictions
            total += 6 * leaf.size * meets
    total += cfg.num_hidden_layers * 6 * 2 * seq_len**2 * cfg.hidden_size
    assert record.train_flops(cfg, seq_len=seq_len, predictions=predictions) == total


@EVERY
def test_folder_round_trip(record, tmp_path):
    cfg = config(record, 2).model_copy(update={"dtype": "bfloat16"})
    params = drawn(record, cfg, "regression")
    write_folder(tmp_path / "model", cfg, params, head="regression")
    folder = read_folder(tmp_path / "model", head="regression", dtype="bfloat16")
    assert folder.model == cfg
    jax.tree.map(np.testing.assert_array_equal, folder.params, params)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (record.name, [record.classes["regression"]])
    in_file = read_folder(tmp_path / "model", head=None)
    assert in_file.params.keys() == params.keys() and in_file.fresh == ()


def test_a_new_architecture_is_one_record(monkeypatch, tmp_path):
    """From outside the package: BERT under other tensor names, found by its model_type alone."""
    renamed = tuple((path, name.replace("bert.encoder.layer", "other.blocks")) for path, name in BERT.tensors)
    renamed = tuple((path, name.replace("bert.", "other.")) for path, name in renamed)
    record: Architecture = BERT._replace(
        name="other",
        tensors=renamed,
        prefix="other.",
        tied=(),
        config_from_hf=lambda raw, where: BERT.config_from_hf(raw, where).model_copy(update={"architecture": "other"}),
    )
    monkeypatch.setitem(ARCHITECTURES, "other", record)
    cfg = config(record, 2)
    params = drawn(record, cfg, "pretraining")
    assert "other.blocks.1.output.dense.weight" in params_to_tensors(record, params)
    write_folder(tmp_path / "model", cfg, params, head="pretraining")
    folder = read_folder(tmp_path / "model", head="pretraining")
    assert folder.model == cfg and folder.fresh == ()
    jax.tree.map(np.testing.assert_array_equal, folder.params, params)
