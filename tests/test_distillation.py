"""Distillation: its losses against numpy, meshes, runs with a teacher and with one that teaches nothing, refusals."""

import json
import shutil
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from test_architectures import QUICK
from test_packed_models import CLASSES, SHAPE, encoded_for, padded
from test_resume import assert_same_run

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig, MeshConfig, ModelConfig, OptimizerConfig, PretrainConfig, PruneConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.config.teacher import TeacherConfig
from jaxprune.data.task_batches import TaskData
from jaxprune.experiments import task_run
from jaxprune.experiments.pretrain import PRETRAIN
from jaxprune.experiments.program import Blueprint, compile_program
from jaxprune.experiments.pruning_plan import included
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.slice_plan import planned
from jaxprune.experiments.teacher import teacher_of
from jaxprune.models import architecture_named
from jaxprune.models.distillation import Compared, distillation_loss, evenly_spaced
from jaxprune.plan.memory import shard_bytes
from jaxprune.training.sharding import put_whole
from jaxprune.training.workdir import read_records

STUDENT = ModelConfig(architecture="bert", **SHAPE)
WIDER = STUDENT.model_copy(update={"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2})
LOGITS = Compared(True, 3.0, False, 0, (0,))


def divergence(ours, theirs, temperature):
    """T^2 KL(theirs || ours) over the last axis, float64."""
    a, b = (log_softmax(np.asarray(x, np.float64) / temperature, -1) for x in (ours, theirs))
    return temperature**2 * (np.exp(b) * (b - a)).sum(-1)


def mean(term):
    total, count = term
    return float(total) / float(count)


@pytest.mark.parametrize("head", ["pretraining", "classification", "multi_label", "regression", "similarity"])
def test_logits_lose_what_numpy_says(head):
    """With weights of examples, of which some are 0; the labels' own terms are those of the plain loss."""
    rng = np.random.default_rng(0)
    weights = np.array([1, 2, 0.5, 1, 0, 1], np.float32)
    width = {"classification": (3,), "multi_label": (3,)}.get(head, ())
    batch: dict[str, Any] = {"input_ids": np.zeros((6, 4), np.int32), "example_weights": weights}
    if head == "pretraining":
        outs = [{"mlm_logits": rng.normal(size=(6, 2, 9)), "nsp_logits": rng.normal(size=(6, 2))} for _ in "ab"]
        batch |= {"masked_ids": np.ones((6, 2), np.int32), "masked_weights": np.array([[1, 1]] * 5 + [[1, 0]])}
        batch["next_sentence_label"] = np.zeros(6, np.int32)
        of_masked = batch["masked_weights"] * weights[:, None]
        want = {"teacher_mlm": ("mlm_logits", of_masked), "teacher_nsp": ("nsp_logits", weights)}
        want = {
            name: np.average(divergence(outs[0][key], outs[1][key], 3.0), weights=w) for name, (key, w) in want.items()
        }
    else:
        outs = [{"logits": rng.normal(size=(6, *width)) * 4} for _ in "ab"]
        batch["labels"] = np.zeros((6, *width) if head != "classification" else 6, np.int32)
        a, b = (out["logits"] for out in outs)
        if head == "classification":
            distances = divergence(a, b, 3.0)
        elif head == "multi_label":
            distances = divergence(*(np.stack([x, 0 * x], -1) for x in (a, b)), 3.0).mean(-1)
        else:
            distances = (a - b) ** 2
        want = {f"teacher_{head}": np.average(distances, weights=weights)}
    ours, theirs = jax.tree.map(lambda x: np.asarray(x, np.float32), outs)
    loss_fn = distillation_loss(head, lambda p, b, **_: p, lambda p, b, **_: p, LOGITS)
    batch = {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in batch.items()}
    terms, _ = loss_fn(ours, theirs, batch, None)
    assert {name: mean(terms[name]) for name in want} == pytest.approx(want, rel=1e-5)
    assert len(terms) == 2 * len(want)
    same, _ = loss_fn(theirs, theirs, batch, None)
    assert max(abs(mean(same[name])) for name in want) < 1e-6


def relations(params, state, layer, heads, visible):
    """Log-probabilities (3, B, H, L, L) of queries, keys and values among themselves, float64."""
    attention, result = params["encoder"][f"layer_{layer:02d}"]["attention"], []
    for name in ("query", "key", "value"):
        x = np.asarray(state, np.float64) @ np.asarray(attention[name]["kernel"], np.float64) + attention[name]["bias"]
        x = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        scores = x @ x.swapaxes(2, 3) / np.sqrt(x.shape[-1])
        result.append(log_softmax(np.where(visible[:, None], scores, -np.inf), -1))
    return np.stack(result)


def test_states_and_relations_lose_what_numpy_says_and_packing_changes_nothing():
    """Of a teacher with other heads and layers; rows of several examples lose what one in each row does."""
    encoded = encoded_for("classification")
    packed, alone = TaskData(encoded, 14, 0, multiple=2).batch(0), padded(encoded)
    teacher = STUDENT.model_copy(update={"num_hidden_layers": 4, "num_attention_heads": 2})
    models = [architecture_named("bert").build(cfg, head="classification", num_labels=3) for cfg in (STUDENT, teacher)]
    compared = Compared(False, 1.0, True, 8, evenly_spaced(2, 4))
    assert compared.layers == (1, 3) and evenly_spaced(3, 2) == (0, 1, 1) and evenly_spaced(12, 12) == (*range(12),)
    loss_fn = distillation_loss("classification", models[0].apply, models[1].apply, compared)

    @partial(jax.jit, compiler_options=QUICK)
    def run(keys, batches):
        params = [model.init(key) for model, key in zip(models, keys, strict=True)]
        outs = [model.apply(p, batches[1], hidden_states=True) for model, p in zip(models, params, strict=True)]
        of_teacher = jax.grad(lambda p: loss_fn(params[0], p, batches[1], None)[0]["teacher_relations"][0])(params[1])
        return params, outs, [loss_fn(*params, batch, None)[0] for batch in batches], of_teacher

    keys = jax.random.split(jax.random.key(0), 2)
    params, outs, terms, of_teacher = jax.device_get(run(keys, (packed, alone)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_teacher))
    real = alone["attention_mask"] > 0
    states = [[np.asarray(x, np.float64) for x in out["hidden_states"]] for out in outs]
    hidden = [((states[0][1 + i] - states[1][1 + j]) ** 2).mean(-1)[real].mean() for i, j in enumerate((1, 3))]
    visible = real[:, None, :]
    a, b = (relations(params[i], states[i][n], n, 8, visible) for i, n in ((0, 1), (1, 3)))
    with np.errstate(invalid="ignore"):
        kl = np.where(visible[:, None], np.exp(b) * (b - a), 0).sum(-1).mean((0, 2))[real].mean()
    want = {"teacher_hidden": np.mean(hidden), "teacher_relations": kl}
    assert min(want.values()) > 1e-3
    for rows in terms:
        assert {name: mean(rows[name]) for name in want} == pytest.approx(want, rel=1e-4)


def test_one_and_eight_devices_agree():
    """A step with all that can be compared, of a wider teacher in bfloat16, split over devices with Explicit axes."""
    cfg = TeacherConfig(source="x", hardness=0.3, relations=2.0, relation_heads=4, dtype="bfloat16")
    batch = TaskData(encoded_for("classification"), 14, 0, multiple=8).batch(0)
    results = []
    for mesh, devices in ((MeshConfig(), jax.devices()[:1]), (MeshConfig(data=2, fsdp=4, axes="explicit"), None)):
        blueprint = Blueprint(
            model=STUDENT,
            head="classification",
            num_labels=3,
            prune=included(PruneConfig(), STUDENT),
            masked=True,
            optimizer=OptimizerConfig(decay="constant", eps=1e-3),
            steps=2,
            mesh=mesh,
            accumulate=1,
            teacher=teacher_of(cfg, lambda: WIDER, STUDENT, "classification", 3),
        )
        assert blueprint.weights(("classification",)) == {
            "classification": 0.7,
            "teacher_classification": 0.3,
            "teacher_relations": 2.0,
        }
        program = compile_program(blueprint, devices)
        assert blueprint.teacher and {leaf.dtype.name for leaf in jax.tree.leaves(program.frozen)} == {"bfloat16"}
        inits = blueprint.build().init, blueprint.teacher.build().init
        params, frozen = (init(jax.random.key(i)) for i, init in enumerate(inits))
        frozen = jax.tree.map(lambda x, s: np.asarray(x).astype(s.dtype), frozen, program.frozen)
        frozen = put_whole(frozen, jax.tree.map(lambda s: s.sharding, program.frozen))
        state = program.init(jax.device_get(params), blueprint.masks(params))
        with jax.set_mesh(program.mesh):
            state, metrics = program.train(state, frozen, program.put_whole(batch), jax.random.key(3))
            dev = program.evaluate(state, (), program.put_whole(batch))
        assert {*dev} == {"classification", "accuracy"} and len(metrics) == 5
        results.append(jax.device_get((state.params, metrics)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eight, one, rtol=2e-3, atol=2e-5)
    assert mean(results[0][1]["teacher_classification"]) > 1e-3


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=4, axes="explicit")], ids=["auto", "explicit"])
def test_asked_beforehand_it_says_what_it_says_in_every_step(head, mesh):
    """Other rows, on eight devices; each example finds its own answer in another order."""
    encoded, classes = encoded_for(head), CLASSES[head]
    teacher = teacher_of(TeacherConfig(source="x"), lambda: WIDER, STUDENT, head, classes)
    assert teacher is not None and teacher.beforehand
    model = teacher.build()
    params = jax.jit(model.init)(jax.random.key(4))
    said = task_run.answers(teacher, jax.device_get(params), encoded, mesh)
    assert said.shape == ((len(encoded), classes) if classes else (len(encoded),)) and said.dtype == np.float32
    assert np.ptp(said, 0).min() > 1e-3  # else one answer would do for all
    batch = TaskData(encoded, len(encoded), 5).batch(1, {"teacher_logits": said})
    ours = jax.tree.map(lambda x: 1.1 * x, params)
    anew = distillation_loss(head, model.apply, model.apply, teacher.compared)
    losses = [
        jax.jit(loss)(ours, params, batch)[0][f"teacher_{head}"] for loss in (anew, teacher.loss(head, model.apply))
    ]
    assert mean(losses[0]) > 1e-5 and mean(losses[1]) == pytest.approx(mean(losses[0]), rel=1e-3)


@pytest.mark.slow
def test_a_grid_asks_once_and_each_of_its_runs_is_the_run_alone(tiny, teacher, tmp_path, capsys):
    """Bit for bit, also where it was stopped; a dry run says what asking costs."""
    section = {"source": str(tmp_path / "taught"), "hardness": 0.7}
    changes = {"init_from": str(teacher), "train": {"log_every": 1}, "epochs": 2, "keep_weights": True}
    config = tiny.finetune_yaml(tmp_path / "t.yaml", **changes)
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "taught")]) == 0
    config = tiny.finetune_yaml(tmp_path / "c.yaml", **changes, teacher=section)
    argv = ["finetune", str(config), "--seeds"]
    assert tiny.run(*argv, "0", "1", "--workdir", tmp_path / "both").code == 0
    assert tiny.stop(2, 15, *argv, "1", "--workdir", tmp_path / "alone").code == 75
    assert tiny.run(*argv, "1", "--workdir", tmp_path / "alone").code == 0
    runs = [tmp_path / name / "SST-2" / "lr0.001-seed1" for name in ("both", "alone")]
    lines = [read_records(run / "metrics.jsonl") for run in runs]
    for line in lines[0]:
        assert line["loss"] == pytest.approx(0.3 * line["classification"] + 0.7 * line["teacher_classification"])
    shown = [[line | {"tokens_per_second": 0} for line in one] for one in lines]
    assert shown[0] == shown[1] and len(shown[0]) > 4
    capsys.readouterr()
    assert main([*argv, "0", "--dry-run"]) == 0
    assert "asked once, before the first step:" in " ".join(capsys.readouterr().out.split())


def of_config(cfg):
    """What a config opens."""
    command = PRETRAIN if isinstance(cfg, PretrainConfig) else task_run.tuning()
    return command.open(command.resolve(cfg, None), Shelf())


@pytest.fixture(scope="module")
def teacher(pretrained, tmp_path_factory):
    """A folder with weights of the tiny model, masks and tokenizer."""
    return shutil.copytree(pretrained / "hf", tmp_path_factory.mktemp("teacher") / "hf")


@pytest.mark.slow
def test_a_teacher_that_teaches_nothing_changes_no_bit(tiny, pretrained, teacher, tmp_path):
    """Not even the program, with soft and hard masks, in pre-training and in packed fine-tuning."""
    nothing = {"source": str(teacher), "hardness": 0}
    for model, yaml in ((PretrainConfig, tiny.pretrain_yaml), (FinetuneConfig, tiny.finetune_yaml)):
        for mode in ("hard", "soft"):
            changes = {"init_from": str(teacher), "prune": {"mode": mode}}
            plain, taught = (
                of_config(validate(model, read_yaml(yaml(tmp_path / "c.yaml", **changes, teacher=section)), "x"))
                for section in ({}, nothing)
            )
            assert taught.blueprint.key() == plain.blueprint.key() and taught.teach() == ((), "")
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", teacher=nothing)
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "run")
    assert done.code == 0, done.err
    assert_same_run(tmp_path / "run", pretrained)


@pytest.mark.slow
def test_a_run_learns_resumes_and_refuses_another_teacher(tiny, teacher, tmp_path, capsys):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", teacher={"source": str(teacher), "hidden": 0.25})
    argv = ["pretrain", config, "--workdir"]
    done = tiny.run(*argv, tmp_path / "whole")
    assert done.code == 0, done.err
    assert done.err.count(f"Teacher: {teacher}, for its logits x 0.5, hidden states x 0.25") == 1
    lines = read_records(tmp_path / "whole" / "metrics.jsonl")
    for line in (line for line in lines if "loss" in line):
        terms = 0.5 * sum(line[name] for name in ("mlm", "nsp", "teacher_mlm", "teacher_nsp"))
        assert line["loss"] == pytest.approx(terms + 0.25 * line["teacher_hidden"])
    (dev,) = (line for line in lines if "dev_loss" in line)
    assert dev["dev_loss"] == pytest.approx(dev["dev_mlm"] + dev["dev_nsp"]) and "dev_teacher_mlm" not in dev
    assert tiny.stop(5, 15, *argv, tmp_path / "run").code == 75
    file = teacher / "model.safetensors"
    kept = file.read_bytes()
    tensors = load_file(file)
    tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"] + 1
    save_file(tensors, file, {"format": "pt"})
    try:
        assert main([str(word) for word in (*argv, tmp_path / "run")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"teacher.source = {teacher}: changed since this run began; put the old weights back" in said
    finally:
        file.write_bytes(kept)
    done = tiny.run(*argv, tmp_path / "run")
    assert done.code == 0 and "resuming at step 5 of 12" in done.err and "Teacher:" not in done.err, done.err
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_fine_tuning_learns_from_the_best_model_of_its_task(tiny, teacher, tmp_path, capsys):
    """Of a grid over several tasks; a head for another task is refused."""
    grid = tmp_path / "grid"
    changes = {"init_from": str(teacher), "masks": "none", "train": {"log_every": 1}}
    config = tiny.finetune_yaml(tmp_path / "t.yaml", **changes, tasks=["SST-2", "CoLA"], keep_weights=True)
    assert main(["finetune", str(config), "--workdir", str(grid)]) == 0
    config = tiny.finetune_yaml(tmp_path / "s.yaml", **changes, teacher={"source": str(grid), "hardness": 1})
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "run")]) == 0
    run = tmp_path / "run" / "SST-2" / "lr0.001-seed0"
    lines = [line for line in read_records(run / "metrics.jsonl") if "loss" in line]
    assert lines and all(line["loss"] == pytest.approx(line["teacher_classification"]) for line in lines)
    assert lines[0]["classification"] > 0.1 and json.loads((run / "result.json").read_text())["score"] >= 0
    capsys.readouterr()
    argv = ["finetune", str(config), "--workdir", str(tmp_path / "new"), "--teacher.source"]
    assert main([*argv, str(grid / "best" / "CoLA" / "hf")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "its head is for unacceptable, acceptable, this task is about negative, positive" in said, said
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_a_teacher_costs_is_said(tiny, teacher, tmp_path, capsys, untimed):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", teacher={"source": str(teacher), "dtype": "bfloat16"})
    assert main(["pretrain", str(config), "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    cfg = validate(PretrainConfig, read_yaml(config), "x")
    opened, plan = of_config(cfg), planned(cfg, None)
    params = sum(leaf.size for leaf in jax.tree.leaves(opened.teach().params))
    assert f"teacher {params:,} weights in bfloat16" in out and "25.0% of a step's arithmetic" in out
    plain = planned(cfg.model_copy(update={"teacher": TeacherConfig()}), None)
    assert plan.flops == pytest.approx(4 / 3 * plain.flops) and plain.teacher is None
    assert plan.teacher == {"from": str(teacher), "dtype": "bfloat16", "flops": plain.flops / 3}
    assert shard_bytes(plan.program(4, jax.devices()[:1])[0].frozen) == 2 * params


REFUSED = {
    "nowhere": ({"source": "/nowhere/at all"}, ["/nowhere/at all"]),
    "layers": (
        {"hidden": 1, "layers": [3]},
        ["teacher.layers = [3]: name one of its layers 0 to 0 for each"],
    ),
    "heads": (
        {"relations": 1, "relation_heads": 3},
        ["teacher.relation_heads = 3 does not divide", "hidden_size 16"],
    ),
    "no source": ({"source": "", "hidden": 1}, ["teacher.source: missing; name the teacher's workdir"]),
    "width": ({"hidden": 1}, ["its hidden_size is 16, the run's 32; set teacher.hidden = 0"]),
    "rows": ({}, ["it has 160 pieces, the run's model 161; set model.vocab_size = 160, or teacher.hardness = 0"]),
    "vocabulary": ({}, ["its vocabulary is not that of data.path", "(piece 159 differs); both need the same"]),
    "head": ({}, ["has no", "mlm/bias", "set teacher.hardness = 0"]),
}
MODELS = {"width": {"hidden_size": 32}, "rows": {"vocab_size": 161}}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_that_does_not_suit_is_refused(tiny, teacher, tmp_path, capsys, case):
    section, words = REFUSED[case]
    source = teacher
    if case in ("vocabulary", "head"):
        source = shutil.copytree(teacher, tmp_path / "other")
    if case == "vocabulary":
        content = json.loads((source / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {
            ("##zz" if number == 159 else piece): number for piece, number in vocabulary.items()
        }
        (source / "tokenizer.json").write_text(json.dumps(content))
    if case == "head":
        tensors = load_file(source / "model.safetensors")
        save_file({name: x for name, x in tensors.items() if "predictions" not in name}, source / "model.safetensors")
    section = {"source": str(source)} | section
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", teacher=section, model=MODELS.get(case, {}))
    assert main(["pretrain", str(config), "--workdir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()
