"""Whatever stops a run, the same command ends with the same bits: losses, weights, moments, masks, data position."""

import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxprune.cli import EXIT_CHECKPOINT, EXIT_DIVERGED, EXIT_PREEMPTED, EXIT_USER, main
from jaxprune.config import PretrainConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.experiments.pretrain import compile_run
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow

PHASES = {"before": (1, 3), "during": (4, 8), "after": (9, 11)}
"""Steps of the tiny run around its pruning window, which is 4 to 8."""


def end_state(workdir: Path):
    """(step, state, data position) of the newest checkpoint."""
    cfg = validate(PretrainConfig, read_yaml(workdir / "config.yaml"), str(workdir))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(compile_run(cfg).program.abstract)


def losses(workdir: Path):
    """All lines of metrics.jsonl without what the clock decides."""
    lines = read_records(workdir / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(workdir: Path, reference: Path):
    assert losses(workdir) == losses(reference)
    assert (workdir / "prunes.jsonl").read_bytes() == (reference / "prunes.jsonl").read_bytes()
    (step, state, data), (expected_step, expected, expected_data) = end_state(workdir), end_state(reference)
    assert (step, data) == (expected_step, expected_data)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    name = "hf/model.safetensors"
    assert (workdir / name).read_bytes() == (reference / name).read_bytes()
    result, expected = (json.loads((place / "result.json").read_text()) for place in (workdir, reference))
    assert result.pop("seconds_this_session") != expected.pop("seconds_this_session")
    assert result == expected


def wait_for_step(process, workdir: Path, step: int):
    """Return as soon as metrics.jsonl holds `step`; what it holds then may end in half a line."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {s},' in path.read_text() for s in range(step, 13)):
            return
        time.sleep(0.002)
    out, err = process.communicate()
    raise AssertionError(f"step {step} never came: {process.returncode}\n{out}\n{err}")


def stop(tiny, argv: list, workdir: Path, step: int, number: int) -> tuple[int, str]:
    """Start the run, send it a signal once `step` is recorded, and return exit code and standard error."""
    process = tiny.start("pretrain", *argv, "--workdir", workdir)
    wait_for_step(process, workdir, step)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.fixture(scope="module")
def soft(tiny):
    """(config, finished workdir) of an uninterrupted run with soft masks, pruned from step 0 on."""
    config = tiny.pretrain_yaml(tiny.root / "soft.yaml", prune={"mode": "soft", "scope": "global", "begin": 0})
    done = tiny.run("pretrain", config, "--workdir", tiny.root / "soft")
    assert done.code == 0, done.err
    return config, tiny.root / "soft"


@pytest.mark.parametrize(("mode", "phases"), [("hard", ["before", "during", "after"]), ("soft", ["during"])])
def test_killed_at_random_steps_it_ends_with_the_same_bits(tiny, pretrained, soft, tmp_path, mode, phases):
    config, reference = (tiny.root / "pretrain.yaml", pretrained) if mode == "hard" else soft
    rng = random.Random(f"kill {mode}")
    for first, last in map(PHASES.get, phases):
        code, err = stop(tiny, [config], tmp_path / "run", rng.randint(first, last), signal.SIGKILL)
        assert code == -signal.SIGKILL, err
        assert not (tmp_path / "run" / "result.json").exists()
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "run")
    assert done.code == 0 and "resuming at step" in done.err, done.err
    assert_same_run(tmp_path / "run", reference)


def test_asked_to_stop_it_saves_that_step_and_resumes(tiny, pretrained, tmp_path):
    workdir = tmp_path / "run"
    # No checkpoint is due before the end, so what resumes is what the signal saved. save_every may change.
    argv = [tiny.root / "pretrain.yaml", "--train.save-every", 1000]
    saved = 0
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 6)):
        code, err = stop(tiny, argv, workdir, step, number)
        assert code == EXIT_PREEMPTED, err
        assert not saved or f"resuming at step {saved} of 12" in err
        saved = losses(workdir)[-1]["step"]
        assert step <= saved < 12
        assert max(int(path.name) for path in (workdir / "checkpoints").iterdir()) == saved
        assert err.splitlines()[-1].endswith(f"step {saved} of 12 is saved; run the same command to resume")
    done = tiny.run("pretrain", *argv, "--workdir", workdir)
    assert done.code == 0 and f"resuming at step {saved} of 12" in done.err
    assert_same_run(workdir, pretrained)


@pytest.fixture
def interrupted(pretrained, tmp_path):
    """A copy of the finished run as it was before it wrote its result: it resumes at its last step."""
    workdir = shutil.copytree(pretrained, tmp_path / "run")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "hf")
    return workdir


def flip(workdir: Path, step: int):
    """Flip a bit in the middle of the arrays of a checkpoint."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_the_newest_checkpoint(tiny, pretrained, interrupted):
    flip(interrupted, 12)
    flip(interrupted, 10)
    with (interrupted / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # as a kill leaves it
    done = tiny.run("pretrain", tiny.root / "pretrain.yaml", "--workdir", interrupted)
    assert done.code == 0, done.err
    for step in (12, 10):
        assert (
            f"{interrupted}/checkpoints/{step}: " in done.err and f"moved to {interrupted}/checkpoints/{step}.corrupt"
        )
    assert "has changed since it was written" in done.err and "resuming at step 8 of 12" in done.err
    assert_same_run(interrupted, pretrained)


def test_no_good_checkpoint_stops_the_run_and_loses_nothing(tiny, interrupted, capsys):
    for step in (8, 10, 12):
        flip(interrupted, step)
    kept = (interrupted / "metrics.jsonl").read_bytes()
    argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted)]
    assert main(argv) == EXIT_CHECKPOINT
    assert "[8, 10, 12]" in capsys.readouterr().err
    assert (interrupted / "metrics.jsonl").read_bytes() == kept
    assert len([*(interrupted / "checkpoints").glob("*.corrupt")]) == 3


def test_a_kill_before_the_result_costs_nothing(tiny, pretrained, interrupted):
    done = tiny.run("pretrain", tiny.root / "pretrain.yaml", "--workdir", interrupted)
    assert done.code == 0, done.err
    assert_same_run(interrupted, pretrained)


def files(workdir: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_finished_run_is_left_alone(tiny, pretrained, capsys):
    before = files(pretrained)
    assert main(["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(pretrained)]) == 0
    assert files(pretrained) == before


def test_a_changed_config_is_refused(tiny, interrupted, capsys):
    before = files(interrupted)
    argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted)]
    assert main([*argv, "--seed", "1", "--prune.sparsity", "0.5", "--train.save-every", "3"]) == EXIT_USER
    err = capsys.readouterr().err
    assert "seed: 0 -> 1" in err and "prune.sparsity: 0.7 -> 0.5" in err and "save_every" not in err
    assert err.count("\n") == 1 and str(interrupted) in err
    assert files(interrupted) == before


def test_changed_data_is_noticed(tiny, interrupted, capsys):
    """The same path, but other text under it."""
    text = tiny._replace(corpus=shutil.copytree(tiny.corpus, interrupted.parent / "text"))
    (text.corpus / "0000.txt").write_text("Something else was here. It was a short text. Nobody read it.\n")
    data = interrupted.parent / "data"
    assert main(["prepare", str(text.prepare_yaml(data.parent / "p.yaml")), "--workdir", str(data)]) == 0
    kept = tiny.data.rename(tiny.root / "kept")
    try:
        shutil.copytree(data, tiny.data)
        capsys.readouterr()
        argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted)]
        assert main(argv) == EXIT_USER
        err = capsys.readouterr().err
        assert "data.path" in err and "put the old data back" in err
    finally:
        shutil.rmtree(tiny.data)
        kept.rename(tiny.data)


def test_divergence_stops_the_run_and_saves_no_bad_weights(tiny, tmp_path):
    config = tiny.pretrain_yaml(
        tmp_path / "c.yaml", optimizer={"learning_rate": 1e30}, train={"save_every": 1, "keep": 50}
    )
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "run")
    assert done.code == EXIT_DIVERGED, done.err
    said = done.err.splitlines()[-1]
    assert "not finite" in said and "another --workdir" in said
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert not (tmp_path / "run" / "result.json").exists()
    for line in read_records(tmp_path / "run" / "metrics.jsonl"):
        assert all(map(math.isfinite, line.values()))
    if saved:
        step, state, _ = end_state(tmp_path / "run")
        assert step == max(saved) < 12
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))
