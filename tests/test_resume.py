"""Whatever stops a run, the same command ends with the same bits: losses, weights, moments, masks, data position."""

import json
import math
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_folders import content
from workflow import Running

from jaxprune.cli import EXIT_USER, main
from jaxprune.config import PretrainConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.errors import CheckpointError, Diverged, Preempted, UserError
from jaxprune.experiments.pretrain import blueprint_of
from jaxprune.experiments.program import compile_program
from jaxprune.experiments.weights import model_folder
from jaxprune.models.weights import read_origin
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.manifest import read_manifest, update_manifest
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow

PHASES = {"before": (1, 3), "during": (4, 8), "after": (9, 11)}
"""Steps of the tiny run around its pruning window, which is 4 to 8."""


def end_state(workdir: Path):
    """(step, state, data position) of the newest checkpoint."""
    cfg = validate(PretrainConfig, read_yaml(workdir / "config.yaml"), str(workdir))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(compile_program(blueprint_of(cfg)).abstract)


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
    result, expected = (json.loads((path / "result.json").read_text()) for path in (workdir, reference))
    assert result.pop("seconds_this_session") != expected.pop("seconds_this_session")
    assert result == expected


def wait_for(process: Running, happened: Callable[[], bool]):
    """Return as soon as it `happened` while the process runs."""
    deadline = time.monotonic() + 240
    while not happened():
        if time.monotonic() > deadline or not process.runs():
            raise AssertionError(f"it never came: {process.finish(0)}")
        time.sleep(0.002)


def wait_for_step(process: Running, workdir: Path, step: int):
    """Return as soon as metrics.jsonl (whose last line may be cut then) or a checkpoint holds `step` or a later one."""
    metrics, checkpoints, steps = workdir / "metrics.jsonl", workdir / "checkpoints", range(step, 13)

    def recorded():
        if metrics.exists() and any(f'"step": {s},' in metrics.read_text() for s in steps):
            return True
        return any((checkpoints / str(s)).exists() for s in steps)

    wait_for(process, recorded)


def starts(workdir: Path):
    """Every start that run.json holds."""
    return json.loads((workdir / "run.json").read_text())["starts"]


def stop(tiny, argv: list, workdir: Path, step: int, number: int) -> tuple[int, str]:
    """Start the run, send it a signal once `step` is recorded, and return exit code and standard error."""
    process = tiny.start("pretrain", *argv, "--workdir", workdir)
    wait_for_step(process, workdir, step)
    process.signal(number)
    done = process.finish()
    return done.code, done.err


@pytest.fixture(scope="module")
def soft(tiny):
    """(config, finished workdir) of an uninterrupted run with soft masks, pruned from step 0 on, that logs every 5."""
    prune = {"mode": "soft", "scope": "global", "begin": 0}
    config = tiny.pretrain_yaml(tiny.root / "soft.yaml", prune=prune, train={"log_every": 5})
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
    assert done.code == 0 and "(bitwise)" in done.err and "resuming at step" in done.err, done.err
    assert_same_run(tmp_path / "run", reference)


def test_asked_to_stop_it_saves_that_step_and_resumes(tiny, pretrained, tmp_path):
    workdir = tmp_path / "run"
    # No checkpoint is due before the end, so what resumes is what the signal saved. save_every may change.
    argv = [tiny.root / "pretrain.yaml", "--train.save-every", 1000]
    saved = 0
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 6)):
        code, err = stop(tiny, argv, workdir, step, number)
        assert code == Preempted.exit_code, err
        assert not saved or f"resuming at step {saved} of 12" in err
        saved = losses(workdir)[-1]["step"]
        assert step <= saved < 12
        assert max(int(path.name) for path in (workdir / "checkpoints").iterdir()) == saved
        assert err.splitlines()[-1].endswith(f"step {saved} of 12 is saved; run the same command to resume")
    done = tiny.run("pretrain", *argv, "--workdir", workdir)
    assert done.code == 0 and f"resuming at step {saved} of 12" in done.err
    assert_same_run(workdir, pretrained)


def test_the_log_does_not_show_a_stop_and_every_start_is_kept(tiny, soft, tmp_path):
    """log_every 5 and stops at 2 and 7: the second line is about steps 6 to 10, and run.json about all starts."""
    config, reference = soft
    argv = ["pretrain", config, "--workdir", tmp_path / "run", "--train.save-every", 1000]
    for steps, number, saved in ((2, signal.SIGTERM, 2), (5, signal.SIGINT, 7)):
        done = tiny.stop(steps, number, *argv)
        assert done.code == Preempted.exit_code and f"step {saved} of 12 is saved" in done.err, done.err
    assert tiny.run(*argv, "--train.keep", 2).code == 0
    assert [line["step"] for line in losses(reference) if "loss" in line] == [5, 10, 12]
    assert_same_run(tmp_path / "run", reference)
    (whole,), kept = starts(reference), starts(tmp_path / "run")
    assert [start["step"] for start in kept] == [0, 2, 7] and whole["step"] == 0
    assert ["--train.keep 2" in start["command"] for start in kept] == [False, False, True]
    for start in kept:
        apart = {"step": 0, "command": "", "date": ""}
        assert start | apart == whole | apart


@pytest.mark.usefixtures("untimed")
def test_a_moved_data_folder_is_the_same_data(tiny, pretrained, tmp_path):
    """It is known by its fingerprint, not by its path."""
    before, after = shutil.copytree(tiny.data, tmp_path / "before"), tmp_path / "elsewhere" / "after"
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run", "--data.path"]
    done = tiny.stop(7, signal.SIGTERM, *argv, before)
    assert done.code == Preempted.exit_code, done.err
    after.parent.mkdir()
    before.rename(after)
    done = tiny.run(*argv, before)
    assert done.code == EXIT_USER and str(before) in done.err and done.err.count("\n") == 1, done.err
    done = tiny.run(*argv, after)
    assert done.code == 0 and "resuming at step 7 of 12" in done.err, done.err
    assert_same_run(tmp_path / "run", pretrained)
    # What starts from the run needs no data folder at all.
    shutil.rmtree(after)
    config = tiny.finetune_yaml(tmp_path / "f.yaml", init_from=str(tmp_path / "run"))
    assert main(["finetune", str(config), "--dry-run"]) == 0


def test_what_it_started_from_may_be_deleted(tiny, pretrained, tmp_path):
    source = shutil.copytree(pretrained / "hf", tmp_path / "source")
    prune = {"sparsity": 0.9, "initial": 0.7}
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", init_from=str(source), prune=prune, train={"log_every": 5})
    assert tiny.run("pretrain", config, "--workdir", tmp_path / "whole").code == 0
    assert tiny.stop(7, signal.SIGTERM, "pretrain", config, "--workdir", tmp_path / "run").code == Preempted.exit_code
    shutil.rmtree(source)
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "run")
    assert done.code == 0 and "resuming at step 7 of 12" in done.err, done.err
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert main(["pretrain", str(config), "--workdir", str(tmp_path / "run")]) == 0  # finished
    assert main(["pretrain", str(config), "--workdir", str(tmp_path / "new")]) == EXIT_USER
    assert not (tmp_path / "new").exists()


def test_what_fine_tuning_started_from_may_be_deleted(tiny, pretrained, tmp_path):
    """The first of two runs is finished, the second stopped in its 7th of 12 steps."""
    source = shutil.copytree(pretrained, tmp_path / "source")
    changes = {"learning_rates": [1e-3, 2e-3], "epochs": 4, "train": {"log_every": 5}, "keep_weights": True}
    config = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(source), **changes)
    assert tiny.run("finetune", config, "--workdir", tmp_path / "whole").code == 0
    done = tiny.stop(12 + 7, signal.SIGTERM, "finetune", config, "--workdir", tmp_path / "run")
    assert done.code == Preempted.exit_code and "step 7 of 12 is saved" in done.err, done.err
    shutil.rmtree(source)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()
    done = tiny.run("finetune", config, "--workdir", tmp_path / "run")
    assert done.code == 0 and "resuming at step 7 of 12" in done.err, done.err
    for name in ("lr0.001-seed0", "lr0.002-seed0"):
        run, whole = (tmp_path / which / "SST-2" / name for which in ("run", "whole"))
        assert losses(run) == losses(whole)
        assert [line["step"] for line in losses(run)] == [5, 10, 12]
        for file in ("dev_predictions.npz", "hf/model.safetensors", "hf/masks.safetensors", "hf/tokenizer.json"):
            assert content(run / file) == content(whole / file), file
        assert [read_origin(path / "hf")["parent"] for path in (run, whole)] == [f"{tmp_path.name}/source"] * 2
        results = [json.loads((path / "result.json").read_text()) for path in (run, whole)]
        assert results[0].pop("seconds_this_session") != results[1].pop("seconds_this_session")
        assert results[0] == results[1]
    assert len(starts(run)) == 2
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "run")]) == 0  # finished
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "new")]) == EXIT_USER
    assert not (tmp_path / "new").exists()


def test_what_a_criterion_remembers_is_part_of_a_checkpoint(tiny, tmp_path, monkeypatch):
    """Stopped between two prunes, it prunes on as if it had not been; params and what is remembered may be split, and
    the rate begin anew with each prune."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    prune = {"criterion": "movement", "mode": "soft", "scope": "global", "begin": 2}
    changes = {"prune": prune, "mesh": {"fsdp": 4}, "optimizer": {"decay": "cycles"}, "train": {"log_every": 5}}
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", **changes)
    argv = ["pretrain", config, "--workdir"]
    whole = tiny.run(*argv, tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert tiny.stop(5, signal.SIGTERM, *argv, tmp_path / "run").code == Preempted.exit_code
    _, state, _ = end_state(tmp_path / "run")
    remembered = jax.device_get(state.pruner)
    assert jax.tree.structure(remembered) == jax.tree.structure(state.masks)
    for leaf, mask in zip(jax.tree.leaves(remembered), jax.tree.leaves(state.masks), strict=True):
        assert leaf.shape == mask.shape and (leaf != 0).mean() > 0.2
    done = tiny.run(*argv, tmp_path / "run")
    assert done.code == 0 and "resuming at step 5 of 12" in done.err, done.err
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [start["mesh"] for start in starts(tmp_path / "run")] == [{"data": 2, "fsdp": 4}] * 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sparsity"] == pytest.approx(0.7, abs=1e-3)


SECOND = """
import sys, time
from jaxprune.experiments import walk

def evaluate_all(*_):
    print("evaluating", flush=True)
    time.sleep(60)

walk.evaluate_all = evaluate_all
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_interrupt_stops_at_once(tiny, tmp_path):
    """The first lets the step end with its evaluation and its checkpoint; the second waits for neither."""
    argv = ["pretrain", tiny.pretrain_yaml(tmp_path / "c.yaml"), "--workdir", tmp_path / "run"]
    process = tiny.start(*argv, "--train.eval-every", 3, "--train.save-every", 3, program=SECOND)
    wait_for(process, lambda: process.out.read_text() == "evaluating\n")
    process.signal(signal.SIGINT)
    wait_for(process, lambda: "stopping after this step; Ctrl-C stops at once" in process.err.read_text())
    began = time.monotonic()
    process.signal(signal.SIGINT)
    done = process.finish(60)
    assert time.monotonic() - began < 20
    assert (done.code, done.out) == (130, "evaluating\n") and "Traceback" not in done.err, done
    assert not [*(tmp_path / "run" / "checkpoints").iterdir()]


@pytest.fixture
def interrupted(pretrained, tmp_path):
    """A copy of the finished run as it was before it wrote its result: it resumes at its last step."""
    workdir = shutil.copytree(pretrained, tmp_path / "run")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "hf")
    state = read_manifest(workdir).state
    update_manifest(workdir, state={name: state[name] for name in ("config.yaml", "run.json")}, files={})
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


def test_no_good_checkpoint_stops_the_run_until_asked_to_begin_anew(tiny, pretrained, interrupted, capsys):
    for step in (8, 10, 12):
        flip(interrupted, step)
    kept = (interrupted / "metrics.jsonl").read_bytes()
    argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted)]
    assert main(argv) == CheckpointError.exit_code
    assert len([*(interrupted / "checkpoints").glob("*.corrupt")]) == 3
    capsys.readouterr()
    for _ in range(3):  # the last time nothing but run.json and the records says that it trained
        assert main(argv) == CheckpointError.exit_code
        err = capsys.readouterr().err
        assert f"{interrupted}: trained before" in err and "--from-scratch" in err
        shutil.rmtree(interrupted / "checkpoints")
        (interrupted / "contents.json").unlink()
    assert (interrupted / "metrics.jsonl").read_bytes() == kept
    begun = tiny.run(*argv, "--from-scratch")
    assert begun.code == 0 and f"what was here is in {interrupted / 'before' / '1'} now" in begun.err, begun.err
    assert (interrupted / "before" / "1" / "metrics.jsonl").read_bytes() == kept
    assert_same_run(interrupted, pretrained)


def test_records_and_state_that_were_changed_are_written_again(tiny, pretrained, interrupted):
    """Whatever was flipped, cut or deleted is said, and what it was comes back."""
    metrics = interrupted / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"loss", b"lost", 1))
    (interrupted / "prunes.jsonl").write_bytes((interrupted / "prunes.jsonl").read_bytes()[:-40])
    (interrupted / "run.json").unlink()
    config = interrupted / "config.yaml"
    config.write_text(config.read_text().replace("steps: 12", "steps: 13"))
    done = tiny.run("pretrain", tiny.root / "pretrain.yaml", "--workdir", interrupted)
    assert done.code == 0, done.err
    for name in ("metrics.jsonl", "prunes.jsonl", "config.yaml"):
        assert f"{name}: has changed since it was written; moved to {name}.changed; written again as it was" in done.err
    assert f"{interrupted / 'run.json'}: is gone; written again as it was" in done.err
    assert_same_run(interrupted, pretrained)
    assert len(starts(interrupted)) == 2 and config.read_bytes() == (pretrained / "config.yaml").read_bytes()


def test_a_config_that_changed_while_its_file_was_gone_is_refused(tiny, interrupted, capsys):
    (interrupted / "config.yaml").unlink()
    argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted), "--seed", "1"]
    assert main(argv) == EXIT_USER
    assert "seed: 0 -> 1" in capsys.readouterr().err


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
    assert err.count("\n") == 1 and f"--init-from {interrupted} goes on from it" in err
    assert main([*argv, "--steps", "99", "--dry-run"]) == EXIT_USER  # as the run itself would
    assert "steps: 12 -> 99" in capsys.readouterr().err
    assert files(interrupted) == before


def test_changed_data_is_noticed(tiny, interrupted, capsys):
    """The same path, but other text under it."""
    text = tiny._replace(corpus=shutil.copytree(tiny.corpus, interrupted.parent / "text"))
    (text.corpus / "0000.txt").write_text("Something else was here. It was a short text. Nobody read it.\n")
    data = interrupted.parent / "data"
    assert main(["prepare", str(text.prepare_yaml(data.parent / "p.yaml")), "--workdir", str(data)]) == 0
    before = files(interrupted)
    kept = tiny.data.rename(tiny.root / "data aside")
    try:
        shutil.copytree(data, tiny.data)
        capsys.readouterr()
        argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(interrupted)]
        assert main(argv) == EXIT_USER
        err = capsys.readouterr().err
        assert "data.path" in err and "put the old data back" in err
        assert files(interrupted) == before  # what is refused is no start
    finally:
        shutil.rmtree(tiny.data)
        kept.rename(tiny.data)


def test_divergence_stops_the_run_and_saves_no_bad_weights(tiny, tmp_path):
    config = tiny.pretrain_yaml(
        tmp_path / "c.yaml", optimizer={"learning_rate": 1e30}, train={"save_every": 1, "keep": 50}
    )
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "run")
    assert done.code == Diverged.exit_code, done.err
    message = done.err.splitlines()[-1]
    assert "not finite" in message and "another --workdir" in message
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert not (tmp_path / "run" / "result.json").exists()
    for line in read_records(tmp_path / "run" / "metrics.jsonl"):
        assert all(map(math.isfinite, line.values()))
    if saved:
        step, state, _ = end_state(tmp_path / "run")
        assert step == max(saved) < 12
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))


# --- what was deleted by hand ---------------------------------------------------------------------------------------


def test_a_finished_run_writes_its_model_again_or_says_what_to_do(tiny, pretrained, tmp_path):
    workdir = shutil.copytree(pretrained, tmp_path / "run")
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", workdir]
    files = {path.name: path.read_bytes() for path in (workdir / "hf").iterdir()}
    kept = {name: (workdir / name).read_bytes() for name in ("result.json", "metrics.jsonl", "prunes.jsonl")}
    shutil.rmtree(workdir / "hf")
    done = tiny.run(*argv)
    assert done.code == 0 and f"{workdir}: finished before, but its hf/ was gone: written again" in done.err
    assert {path.name: path.read_bytes() for path in (workdir / "hf").iterdir()} == files
    assert {name: (workdir / name).read_bytes() for name in kept} == kept
    content = bytearray(files["model.safetensors"])
    content[-9] ^= 1
    (workdir / "hf" / "model.safetensors").write_bytes(content)
    assert main(["inspect", str(workdir / "hf")]) == 0  # a folder of its own has no manifest
    with pytest.raises(UserError, match=f"{workdir}: hf/model.safetensors has changed since it was written; run its"):
        model_folder(str(workdir))
    done = tiny.run(*argv)
    assert done.code == 0 and "moved to hf.damaged" in done.err and "written again" in done.err, done.err
    assert {path.name: path.read_bytes() for path in (workdir / "hf").iterdir()} == files
    assert (workdir / "hf.damaged" / "model.safetensors").read_bytes() == content
    for name in ("hf", "checkpoints"):
        shutil.rmtree(workdir / name)
    done = tiny.run(*argv)
    assert done.code == CheckpointError.exit_code, done.err
    assert f"{workdir}: trained before" in done.err and "--from-scratch" in done.err
    assert not (workdir / "hf").exists() and (workdir / "result.json").read_bytes() == kept["result.json"]
