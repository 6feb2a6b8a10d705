"""Two processes of four devices as one job over loopback: the same run, stopped, killed, resumed, moved."""

import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import end_state, flip, losses, wait_for_step
from workflow import COMMAND, Done, Running

from jaxprune.cli import EXIT_USER
from jaxprune.errors import EXIT_PEER, Preempted, UserError
from jaxprune.models.folder import read_folder
from jaxprune.pruning import leaf_counts
from jaxprune.training.processes import Stop, join
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow
ABORTED = -signal.SIGABRT
"""How JAX's coordination service ends a process whose process 0 is gone; nothing of ours can run then."""


@pytest.fixture(scope="module")
def config(tiny) -> Path:
    """A run on 8 devices, split over both data axes, saved at every other step."""
    changes = {"mesh": {"data": 4, "fsdp": 2}, "prune": {"scope": "global"}, "train": {"save_every": 2}}
    return tiny.pretrain_yaml(tiny.root / "job.yaml", **changes)


LOST = """
import os, signal, sys
from jaxprune.training import checkpoint

class Manager(checkpoint.ocp.CheckpointManager):
    def save(self, step, **more):
        if step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().save(step, **more)

checkpoint.ocp.CheckpointManager = Manager
from jaxprune.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""A program that runs the command line behind a step, and is lost while it saves that step."""


IMPATIENT = """
import sys
from jaxprune.training import processes

processes.SILENT_SECONDS = 10.0
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A program that runs the command line, and waits less long for a silent peer."""


def start(
    tiny, config, workdir, *more, count: int = 2, command: str = "pretrain", lost: int = 0, program: str = COMMAND
) -> list[Running]:
    """The processes of a job of 8 devices; a job of one process is one too. The last is `lost` in saving a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    specs = [f"--distributed=127.0.0.1:{port},{count},{number}" for number in range(count)]
    words = (command, config, "--workdir", workdir, *more)
    devices = str(8 // count)
    processes = [
        tiny.start(*words, spec, program=program, JAX_NUM_CPU_DEVICES=devices)
        for spec in specs[: -1 if lost else count]
    ]
    if lost:
        processes += [tiny.start(lost, *words, specs[-1], JAX_NUM_CPU_DEVICES=devices, program=LOST)]
    return processes


def finish(processes: list[Running]) -> list[Done]:
    """What all processes of a job left; none outlives the time allowed."""
    return [process.finish() for process in processes]


@pytest.fixture(scope="module")
def job(tiny, config) -> Path:
    """The workdir of an undisturbed job of two processes."""
    done = finish(start(tiny, config, tiny.root / "job"))
    assert [d.code for d in done] == [0, 0], done
    return tiny.root / "job"


def numbers(workdir: Path) -> np.ndarray:
    """Losses and gradient norms of every step."""
    return np.array([[line[key] for key in ("loss", "grad_norm")] for line in losses(workdir) if "loss" in line])


def assert_near(workdir: Path, reference: Path) -> None:
    """Another number of processes: losses to float tolerance, the same prunes and the same masks."""
    np.testing.assert_allclose(numbers(workdir), numbers(reference), rtol=2e-4)
    for key in ("target", "kept", "size", "leaves"):
        a, b = ([line[key] for line in read_records(path / "prunes.jsonl")] for path in (workdir, reference))
        assert a == b
    (step, state, data), (_, expected, expected_data) = end_state(workdir), end_state(reference)
    assert (step, data) == (12, expected_data)
    jax.tree.map(np.testing.assert_array_equal, state.masks, expected.masks)


def test_a_job_is_the_same_run_as_one_process(tiny, config, job, tmp_path):
    done = finish(start(tiny, config, tmp_path / "run", count=1))
    assert done[0].code == 0, done
    assert_near(tmp_path / "run", job)
    assert (tmp_path / "run" / "hf" / "model.safetensors").stat().st_size
    assert len(read_records(job / "prunes.jsonl")) == 3
    assert [line["step"] for line in losses(job) if "loss" in line] == list(range(1, 13))


def test_a_checkpoint_moves_to_another_number_of_processes(tiny, config, job, tmp_path):
    """One process, stopped; two, one of which is asked to stop; one to the end."""
    for count, step in ((1, 2), (2, 7)):
        processes = start(tiny, config, tmp_path / "run", "--train.save-every", 1000, count=count)
        wait_for_step(processes[0], tmp_path / "run", step)
        processes[-1].signal(signal.SIGTERM)
        done = finish(processes)
        assert [d.code for d in done] == [Preempted.exit_code] * count, done
        assert all("is saved; run the same command to resume" in d.err for d in done)
    done = finish(start(tiny, config, tmp_path / "run", count=1))
    assert done[0].code == 0 and "resuming at step" in done[0].err, done
    assert_near(tmp_path / "run", job)


def test_a_lost_process_ends_the_job_and_the_restart_resumes(tiny, config, job, tmp_path):
    """Process 1 is lost in a save, the newest checkpoint damaged, then process 0 lost: the same bits in the end."""
    workdir = tmp_path / "run"
    for victim, step in ((1, 8), (0, 10)):
        processes = start(tiny, config, workdir, lost=step if victim == 1 else 0)
        wait_for_step(processes[0], workdir, step)
        if victim == 0:
            processes[victim].signal(signal.SIGKILL)
        began = time.monotonic()
        done = finish(processes)
        assert time.monotonic() - began < 60
        assert done[victim].code == -signal.SIGKILL
        if victim == 1:
            assert done[0].code == EXIT_PEER, done
            assert "was lost" in done[0].err and "run the same command on all hosts to resume" in done[0].err
            newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
            flip(workdir, newest)
        else:
            assert done[1].code in (EXIT_PEER, ABORTED), done
            assert f"checkpoints/{newest}: " in done[0].err and "has changed since it was written" in done[0].err
    assert not (workdir / "result.json").exists()
    done = finish(start(tiny, config, workdir))
    assert [d.code for d in done] == [0, 0], done
    assert "resuming at step" in done[0].err
    assert losses(workdir) == losses(job)
    (_, state, _), (_, expected, _) = end_state(workdir), end_state(job)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_process_0_that_is_stopped_is_lost_and_notices_it_itself(tiny, config, tmp_path):
    """It keeps the store that the others ask who is there; nobody waits for it, and gone on it does not wait either."""
    workdir = tmp_path / "run"
    processes = start(tiny, config, workdir, program=IMPATIENT)
    wait_for_step(processes[0], workdir, 4)
    processes[0].signal(signal.SIGSTOP)
    began = time.monotonic()
    other = processes[1].finish()
    assert other.code == EXIT_PEER and time.monotonic() - began < 60, other
    assert "process 0 of 2 was lost: silent for 10 s; run the same command on all hosts to resume" in other.err
    processes[0].signal(signal.SIGCONT)
    first = processes[0].finish()
    assert first.code in (EXIT_PEER, ABORTED) and time.monotonic() - began < 120, first


def test_fine_tuning_in_a_job(tiny, job, tmp_path):
    config = tiny.finetune_yaml(tmp_path / "c.yaml", tasks=["SST-2"], init_from=str(job), keep_weights=True)
    results = []
    for count in (2, 1):
        workdir = tmp_path / str(count)
        done = finish(start(tiny, config, workdir, count=count, command="finetune"))
        assert [d.code for d in done] == [0] * count, done
        results.append((workdir / "results.csv").read_text().splitlines())
        assert len(results[-1]) == 2
    name = "SST-2/lr0.001-seed0"
    a, b = (np.load(tmp_path / n / name / "dev_predictions.npz") for n in "12")
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_allclose(a["logits"], b["logits"], rtol=1e-3, atol=1e-4)
    a, b = (read_folder(tmp_path / n / name / "hf", head="classification", num_labels=2) for n in "12")
    assert a.fresh == b.fresh == () and jax.tree.structure(a.params) == jax.tree.structure(b.params)
    jax.tree.map(np.testing.assert_array_equal, a.masks, b.masks)
    for folder in (a, b):
        kept, size = leaf_counts(folder.masks)["pooler/kernel"]
        assert size - kept == (folder.params["pooler"]["kernel"] == 0).sum() > 0


def test_what_one_process_gets_wrong_stops_all(tiny, config, tmp_path):
    """Another config on one host, and data that one host lacks: exit code 2 on both, nothing written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for changed, words in (("--seed=5", "config, data: not the same"), ("--data.path=/nowhere", "no such directory")):
        spec = [f"--distributed=127.0.0.1:{port},2,{number}" for number in range(2)]
        one = ["pretrain", config, "--workdir", tmp_path / "run", "--mesh.data=2", "--mesh.fsdp=1"]
        done = finish([tiny.start(*one, spec[0]), tiny.start(*one, changed, spec[1])])
        assert [d.code for d in done] == [EXIT_USER] * 2, done
        assert words in done[1].err and not (tmp_path / "run").exists()
    assert "config and data: failed on process 1 of 2; its output says why" in done[0].err


@pytest.mark.parametrize("job", [False, True])
def test_a_second_interrupt_is_none_to_wait_for(monkeypatch, job):
    """The first is passed on to the whole job where there is one; the second ends this process."""
    passed_on = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: job)
    interrupt = signal.getsignal(signal.SIGINT)
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: passed_on.append(number))
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert passed_on == [signal.SIGTERM] * job
            assert job or stop.requested(1)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, terminate)


@pytest.mark.parametrize("spec", ["here", "127.0.0.1:99,2", "127.0.0.1,2,0", "127.0.0.1:99,2,2"])
def test_a_bad_address_is_refused(spec):
    with pytest.raises(UserError, match=f"--distributed {spec}: "):
        join(spec)
