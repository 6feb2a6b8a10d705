"""Fine-tuning from end to end: three kinds of task, three ways with masks, from a workdir and from a directory."""

import json
import math
import os
import shutil
import signal
import threading
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig
from jaxprune.config.load import read_yaml, to_yaml, validate
from jaxprune.config.sections import MeshConfig
from jaxprune.data.metrics import score
from jaxprune.data.tasks import TASKS
from jaxprune.errors import CheckpointError, Preempted, UserError
from jaxprune.experiments import finetune, task_run, walk
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder
from jaxprune.progress import Progress
from jaxprune.pruning import leaf_counts
from jaxprune.training.manifest import list_files
from jaxprune.training.sharding import make_mesh
from jaxprune.training.workdir import Workdir, read_records

pytestmark = pytest.mark.slow

RATES, SEEDS = (1e-3, 4e-3), (0, 1)


@pytest.fixture(scope="module")
def grid(tiny, pretrained):
    """(config, workdir) of three tasks x two learning rates x two seeds with fixed masks, by the real command."""
    config = tiny.finetune_yaml(
        tiny.root / "grid.yaml",
        tasks=["SST-2", "CoLA", "STS-B"],
        learning_rates=list(RATES),
        seeds=list(SEEDS),
        init_from=str(pretrained),
        train_loss=True,
    )
    done = tiny.run("finetune", config, "--workdir", tiny.root / "grid")
    assert done.code == 0, done.err
    return config, tiny.root / "grid"


def table(workdir):
    return pandas.read_csv(workdir / "results.csv")


def test_every_run_of_the_grid_is_a_row(grid):
    rows = table(grid[1])
    keys = [*zip(rows["task"], rows["learning_rate"], rows["seed"])]
    assert keys == [(task, rate, seed) for task in ("SST-2", "CoLA", "STS-B") for rate in RATES for seed in SEEDS]
    assert dict(zip(rows["task"], rows["metric"])) == {"SST-2": "accuracy", "CoLA": "matthews", "STS-B": "spearman"}
    assert (rows["masks"] == "fixed").all() and (rows["steps"] == 3).all()
    assert (rows["train_examples"] == 48).all() and (rows["dev_examples"] == 27).all()
    assert np.isfinite(rows["train_loss"]).all()
    assert rows.groupby("task")["best"].sum().tolist() == [1, 1, 1]
    assert len([*grid[1].glob("*/lr*/hf/model.safetensors")]) == 12


def test_saved_predictions_give_the_same_scores_again(grid, tiny):
    """Labels come from the files, accuracy and correlation from their definitions."""
    for row in table(grid[1]).to_dict("records"):
        place = grid[1] / row["task"] / f"lr{row['learning_rate']:g}-seed{row['seed']}"
        saved = np.load(place / "dev_predictions.npz")
        lines = (tiny.glue / row["task"] / "dev.tsv").read_text().splitlines()
        if row["task"] == "CoLA":
            labels = [float(line.split("\t")[1]) for line in lines]
        else:
            labels = [float(line.split("\t")[-1]) for line in lines[1:]]
        np.testing.assert_array_equal(saved["labels"], np.array(labels, saved["labels"].dtype))
        if row["task"] == "STS-B":
            pearson = np.corrcoef(saved["logits"].reshape(-1), labels)[0, 1]
            assert math.isclose(row["pearson"], pearson, rel_tol=1e-5)
        else:
            assert row["accuracy"] == (saved["logits"].argmax(-1) == labels).mean()
        again = score(TASKS[row["task"]], saved["logits"], saved["labels"])
        assert row["score"] == again[row["metric"]]


def test_learning_rates_and_seeds_make_different_runs(grid):
    for task in ("SST-2", "CoLA", "STS-B"):
        losses, logged = set(), set()
        for rate in RATES:
            for seed in SEEDS:
                place = grid[1] / task / f"lr{rate:g}-seed{seed}"
                lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
                assert [line["step"] for line in lines] == [1, 2, 3]
                assert math.isclose(max(line["learning_rate"] for line in lines), rate, rel_tol=1e-6)
                losses.add(json.loads((place / "result.json").read_text())["train_loss"])
                logged.add(tuple(line["loss"] for line in lines))
                assert not (place / "checkpoints").exists()
        assert len(losses) == len(logged) == 4


def test_what_is_finished_is_not_run_again_and_what_is_lost_is_the_same_again(grid, tiny):
    config, workdir = grid
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name not in (".lock", "result.json")}
    stamps = {p: p.stat().st_mtime_ns for p in workdir.glob("*/*/dev_predictions.npz")}
    expected = table(workdir)
    lost = workdir / "SST-2" / "lr0.001-seed1"
    shutil.rmtree(lost)
    done = tiny.run("finetune", config, "--workdir", workdir)
    assert done.code == 0, done.err
    for path, stamp in stamps.items():
        assert (path.stat().st_mtime_ns == stamp) == (path.parent != lost), path
    again = table(workdir)
    pandas.testing.assert_frame_equal(
        again.drop(columns="seconds_this_session"), expected.drop(columns="seconds_this_session"), check_exact=True
    )
    clock = ("results.csv", "metrics.jsonl", "run.json")
    del before[workdir / "contents.json"]  # it holds the hash of results.csv, and that the seconds
    for path, content in before.items():
        if path.name not in clock and "tensorboard" not in path.parts and lost not in path.parents:
            assert path.read_bytes() == content, path
    saved, first = np.load(lost / "dev_predictions.npz"), before[lost / "dev_predictions.npz"]
    (workdir / "first.npz").write_bytes(first)
    np.testing.assert_array_equal(saved["logits"], np.load(workdir / "first.npz")["logits"])


def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(tiny, pretrained, tmp_path):
    config = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), epochs=12)
    cfg = validate(FinetuneConfig, read_yaml(config), str(config))
    stopped, alone = (tmp_path / name / "SST-2" / "lr0.001-seed0" for name in ("stopped", "alone"))
    ended = threading.Event()

    def stop():
        while not ended.wait(0.01):
            if (stopped / "metrics.jsonl").exists() and len(read_records(stopped / "metrics.jsonl")) >= 5:
                return os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(Preempted, match="is saved"):
            finetune.finetune(cfg, tmp_path / "stopped")
    finally:
        ended.set()
        thread.join()
    assert not (stopped / "result.json").exists() and 5 <= len(read_records(stopped / "metrics.jsonl")) < 36
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    results = finetune.finetune(cfg, tmp_path / "stopped")
    assert finetune.finetune(cfg, tmp_path / "stopped") == results  # finished: left alone
    shutil.rmtree(alone / "checkpoints")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{alone}: trained before, .* --from-scratch"):
            finetune.finetune(cfg, tmp_path / "alone")
    pieces = tmp_path / "alone" / "tokenizer" / "tokenizer.json"
    pieces.write_text(pieces.read_text().replace("[UNK]", "[UNC]"))
    with pytest.raises(UserError, match="alone: tokenizer/tokenizer.json has changed since it was written; put it"):
        finetune.finetune(cfg, tmp_path / "alone")
    expected = finetune.finetune(cfg, tmp_path / "alone", from_scratch=True)
    assert (tmp_path / "alone" / "before" / "1" / "SST-2" / alone.name / "metrics.jsonl").exists()
    for result, other in zip(results, expected, strict=True):
        assert result["seconds_this_session"] > 0 and result["sparsity"] > 0
        assert result | {"seconds_this_session": 0} == other | {"seconds_this_session": 0}
    assert {p.name for p in stopped.iterdir()} == {p.name for p in alone.iterdir()}
    ours, theirs = (read_records(path / "metrics.jsonl") for path in (stopped, alone))
    assert [r["step"] for r in ours] == [*range(1, 37)]
    for name in ("step", "loss", "grad_norm", "learning_rate", "sparsity"):
        assert [r[name] for r in ours] == [r[name] for r in theirs], name
    logits = [np.load(path / "dev_predictions.npz")["logits"] for path in (stopped, alone)]
    np.testing.assert_array_equal(*logits)
    assert len(json.loads((stopped / "run.json").read_text())["starts"]) == 2


def test_another_config_in_the_same_place_is_refused(grid, capsys):
    config, workdir = grid
    argv = ["finetune", str(config), "--workdir", str(workdir), "--epochs", "2", "--train.keep", "9"]
    for more in ([], ["--dry-run"]):
        assert main([*argv, *more]) == 2
        err = capsys.readouterr().err
        assert "epochs: 1 -> 2" in err and "train.keep" not in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def pruned_directory(pretrained, tmp_path_factory):
    """A Hugging Face directory whose query kernel has zeros in every other row, and which brings no masks."""
    place = shutil.copytree(pretrained / "hf", tmp_path_factory.mktemp("zeros") / "hf")
    (place / "masks.safetensors").unlink()
    tensors = load_file(place / "model.safetensors")
    for name, tensor in tensors.items():  # zeros in one matrix alone
        tensors[name] = np.where(tensor == 0, np.float32(1e-3), tensor)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[name][::2] = 0
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.fixture
def fitted(monkeypatch):
    """The states that runs of this process end with."""
    states, fit = [], walk.fit

    def watched(*args, **kwargs):
        states.append(fit(*args, **kwargs))
        return states[-1]

    monkeypatch.setattr(walk, "fit", watched)
    return states


CASES = [("workdir", "fixed"), ("workdir", "lifted"), ("workdir", "none"), ("directory", "fixed")]


@pytest.mark.parametrize(("source", "masks"), CASES)
def test_pruned_weights(tiny, pretrained, pruned_directory, tmp_path, fitted, source, masks):
    """The state after fine-tuning: `fixed` keeps the zeros of the start, `lifted` and `none` train them away."""
    start = pretrained if source == "workdir" else pruned_directory
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(start), masks=masks)
    cfg = validate(FinetuneConfig, read_yaml(path), "c.yaml")
    (record,) = finetune.finetune(cfg, tmp_path / "run")
    before = read_folder(pretrained / "hf" if source == "workdir" else start, head="pretraining").params
    after = jax.device_get(fitted[0].params)
    zeros = {
        "/".join(p.key for p in path): w == 0 for path, w in jax.tree_util.tree_leaves_with_path(before["encoder"])
    }
    ends = {"/".join(p.key for p in path): w for path, w in jax.tree_util.tree_leaves_with_path(after["encoder"])}
    kernels = [name for name in zeros if name.endswith("kernel") and zeros[name].any()]
    assert len(kernels) == (6 if source == "workdir" else 1)
    for name in kernels:
        assert zeros[name].mean() == pytest.approx(0.7 if source == "workdir" else 0.5, abs=0.01)
        if masks == "fixed":
            assert (ends[name].view(np.uint32)[zeros[name]] == 0).all()  # +0.0
            assert (ends[name][~zeros[name]] != 0).all()
        else:
            assert (ends[name][zeros[name]] != 0).mean() > 0.9
    if masks == "fixed":
        kept, size = (sum(pair[i] for pair in leaf_counts(fitted[0].masks).values()) for i in (0, 1))
        assert record["sparsity"] == pytest.approx(1 - kept / size) and 0 < record["sparsity"] < 0.8
    else:
        assert record["sparsity"] == 0
    assert record["masks"] == masks


def test_another_vocabulary_is_refused(tiny, pretrained, tmp_path, capsys):
    pieces = [*architecture_named("bert").special_tokens, *(f"word{i}" for i in range(300))]
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), tokenizer=str(tmp_path / "vocab"))
    assert main(["finetune", str(path), "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "305 pieces do not fit the 160 rows" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_checkpoints_go_behind_the_result(tmp_path, monkeypatch):
    """A kill before the result is written loses nothing; one right behind it leaves what the next start takes away."""
    decisions = SimpleNamespace(cfg=FinetuneConfig(), rewrites=False)
    ready: Any = walk.Ready(SimpleNamespace(decisions=decisions), SimpleNamespace(mesh=make_mesh(MeshConfig())))
    command: Any = SimpleNamespace(finish=lambda _: {"score": 1.0})
    monkeypatch.setattr(walk, "fit_run", lambda *_: (tmp_path / "checkpoints" / "3").mkdir(parents=True, exist_ok=True))

    def run():
        return walk._owned(command, ready, tmp_path, to_yaml(decisions.cfg), Progress("run", "test"), None)

    with monkeypatch.context() as killed:
        killed.setattr(Workdir, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert run() == {"score": 1.0} and not (tmp_path / "checkpoints").exists()
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert run() == {"score": 1.0} and not (tmp_path / "checkpoints").exists()


def test_the_best_copy_is_left_alone_or_moved_away(tmp_path, caplog):
    model, best = tmp_path / "CoLA/lr1-seed0/hf", tmp_path / "best/hf"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    list_files(model.parent, "hf")
    finetune._keep_both(model, best)
    (best / "handler.py").write_text("mine")
    finetune._keep_both(model, best)
    assert {path.name: path.read_text() for path in best.iterdir()} == {"config.json": "{}", "handler.py": "mine"}
    (best / "config.json").write_text("changed")
    finetune._keep_both(model, best)
    assert [path.name for path in best.iterdir()] == ["config.json"] and (best / "config.json").read_text() == "{}"
    assert (tmp_path / "best/hf.damaged/handler.py").exists() and "moved to hf.damaged" in caplog.text


def test_all_tasks_of_a_grid_are_moved_away(tmp_path):
    """Also those that the new config does not name."""
    for name in ("CoLA/lr0.001-seed0", "SST-2/lr1e-05-seed3", "mine", "before/1/STS-B/lr1-seed0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    assert finetune._task_folders(tmp_path) == ["CoLA", "SST-2"]


IGNORED = {
    "train.eval_every = 5: a fine-tuning run scores its whole dev set, at its end; remove it": {
        "train": {"eval_every": 5}
    },
    "train.eval_batches = 7: a fine-tuning run scores": {"train": {"eval_batches": 7}},
    "model.dtype = bfloat16: fine-tuning takes dtype = float32; set dtype instead": {"model": {"dtype": "bfloat16"}},
    "model.hidden_dropout_prob = 0.0: fine-tuning takes dropout = 0.1": {"model": {"hidden_dropout_prob": 0.0}},
    "model.classifier_dropout = 0.3: fine-tuning takes dropout = 0.1": {"model": {"classifier_dropout": 0.3}},
}


@pytest.mark.parametrize("words", IGNORED)
def test_a_key_that_would_be_ignored_is_refused(words):
    with pytest.raises(UserError, match=words):
        task_run.resolve(validate(FinetuneConfig, IGNORED[words], "c.yaml"), None)


def test_a_resolved_config_is_resolved_to_itself():
    model = {"hidden_dropout_prob": 0.2, "classifier_dropout": None, "dtype": "bfloat16"}
    content = {"dropout": 0.2, "dtype": "bfloat16", "model": model, "train": {"keep": 2}}
    decisions = task_run.resolve(validate(FinetuneConfig, content, "c.yaml"), None)
    again = validate(FinetuneConfig, yaml.safe_load(to_yaml(decisions.cfg)), "c.yaml")
    assert task_run.resolve(again, None).cfg == decisions.cfg and decisions.keep == 2
    assert decisions.cfg.model.classifier_dropout == decisions.cfg.model.attention_probs_dropout_prob == 0.2
