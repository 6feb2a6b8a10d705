"""A run of BERT on eight devices, or moved to them, is the run on one: split params, under Auto and Explicit axes."""

import json
import signal

import jax
import numpy as np
import pytest
from test_processes import assert_near, numbers
from test_resume import end_state, losses, starts
from tiny_folders import content
from workflow import COMMAND

from jaxprune.errors import Preempted
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_any_layout_gives_the_same_run(tiny, pretrained, tmp_path, monkeypatch, axes):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run"]
    done = tiny.run(*argv, "--mesh.axes", axes, "--mesh.fsdp", 4)
    assert done.code == 0, done.err
    (start,) = starts(tmp_path / "run")
    assert start["mesh"] == {"data": 2, "fsdp": 4} and len(start["devices"]) == 8
    np.testing.assert_allclose(numbers(tmp_path / "run"), numbers(pretrained), rtol=2e-4)
    (_, state, data), (_, expected, expected_data) = end_state(tmp_path / "run"), end_state(pretrained)
    assert data == expected_data
    jax.tree.map(np.testing.assert_array_equal, state.masks, expected.masks)
    kept = [[line["kept"] for line in read_records(path / "prunes.jsonl")] for path in (tmp_path / "run", pretrained)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("way", ["1 to 8", "8 to 1"])
def test_a_run_moves_to_another_mesh(tiny, pretrained, tmp_path, monkeypatch, way):
    """Stopped in step 7, between two prunes, and resumed with another `mesh` on the command line."""
    split = ["--mesh.data", 2, "--mesh.fsdp", 4]
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run"]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", way[0])
    done = tiny.stop(7, signal.SIGTERM, *argv, *(split if way == "8 to 1" else []))
    assert done.code == Preempted.exit_code, done.err
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", way[-1])
    done = tiny.run(*argv, *(split if way == "1 to 8" else []))
    assert done.code == 0 and "resuming at step 7 of 12" in done.err, done.err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config
    meshes = [(start["step"], start["mesh"], len(start["devices"])) for start in starts(tmp_path / "run")]
    narrow, wide = ({"data": 1, "fsdp": 1}, 1), ({"data": 2, "fsdp": 4}, 8)
    first, second = (narrow, wide) if way == "1 to 8" else (wide, narrow)
    assert meshes == [(0, *first), (7, *second)]
    assert [line["step"] for line in losses(tmp_path / "run") if "loss" in line] == list(range(1, 13))
    assert_near(tmp_path / "run", pretrained)


LAYOUTS = {
    "fsdp": (8, ["--mesh.data", 2, "--mesh.fsdp", 4]),
    "explicit": (8, ["--mesh.data", 2, "--mesh.fsdp", 4, "--mesh.axes", "explicit"]),
    "accumulate": (1, ["--train.accumulate", 2]),
}


@pytest.fixture(scope="module")
def tuned(tiny, pretrained):
    """A fine-tuning run on one device, of rows that hold several examples."""
    config = tiny.finetune_yaml(tiny.root / "mesh_tuned.yaml", init_from=str(pretrained), dropout=0.0, train_loss=True)
    done = tiny.run("finetune", config, "--workdir", tiny.root / "mesh_tuned")
    assert done.code == 0, done.err
    return config, tiny.root / "mesh_tuned" / "SST-2" / "lr0.001-seed0"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tuning_in_any_layout_gives_the_same_run(tiny, tuned, tmp_path, monkeypatch, layout):
    """Rows are filled otherwise, so that each device has as many; a step's examples and its loss are the same."""
    (config, alone), (devices, mesh) = tuned, LAYOUTS[layout]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
    done = tiny.run("finetune", config, "--workdir", tmp_path / "run", *mesh)
    assert done.code == 0, done.err
    run = tmp_path / "run" / "SST-2" / "lr0.001-seed0"
    ours, theirs = (read_records(path / "metrics.jsonl") for path in (run, alone))
    assert [line["step"] for line in ours] == [1, 2, 3]
    for name in ("loss", "grad_norm", "accuracy"):
        np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in theirs], rtol=2e-4)
    a, b = (np.load(path / "dev_predictions.npz") for path in (run, alone))
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_allclose(a["logits"], b["logits"], rtol=1e-3, atol=1e-4)
    losses = [json.loads((path / "result.json").read_text())["train_loss"] for path in (run, alone)]
    np.testing.assert_allclose(*losses, rtol=2e-4)
    masks = [content(path / "hf" / "masks.safetensors") for path in (run, alone)]
    assert masks[0] == masks[1]


COUNTED = (
    """
import atexit, collections, json, jax
counts = collections.Counter()

def count(event, seconds, fun_name="", **rest):
    counts[f"{event.rpartition('/')[2]} {fun_name}"] += 1

jax.monitoring.register_event_duration_secs_listener(count)
atexit.register(lambda: print(json.dumps(counts)))
"""
    + COMMAND
)
"""The command line, which says at its end how often JAX traced and compiled what."""


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_compiles_each_step_once(tiny, pretrained, tmp_path, monkeypatch, command):
    """Before and after the first step, prunes, evaluations and saves, and with every learning rate and seed of a grid,
    a step is the same program: a state that is placed otherwise would be another one."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    if command == "pretrain":
        config = tiny.pretrain_yaml(tmp_path / "c.yaml", train={"eval_every": 5})
    else:
        grid = {"learning_rates": [1e-3, 2e-3], "seeds": [0, 1], "train_loss": True}
        prune = {"sparsity": 0.8, "begin": 1, "end": 2, "every": 1, "schedule": "cubic"}
        config = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), prune=prune, **grid)
    done = tiny.start(
        command, config, "--workdir", tmp_path / "run", "--mesh.data", 2, "--mesh.fsdp", 4, program=COUNTED
    ).finish()
    assert done.code == 0, done.err
    counts = json.loads(done.out.splitlines()[-1])
    assert counts["jaxpr_trace_duration train_step"] == 1
    compiled = {
        name: counts[f"backend_compile_duration jit({name})"] for name in ("train_step", "prune_step", "eval_step")
    }
    assert compiled == dict.fromkeys(compiled, 1)
