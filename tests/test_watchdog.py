"""Training that stands still ends with code 79; training that moves slowly, or was stopped and goes on, does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import workflow
from test_resume import assert_same_run

from jaxprune.errors import EXIT_STALLED

HANGS = """
import sys, time
from jaxprune.training import loop

class Stop(loop.Stop):
    def requested(self, step):
        while step == 7:
            time.sleep(1)
        return super().requested(step)

loop.Stop = Stop
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A program that runs the command line, whose training comes to step 7 and no further."""

STEPS = """
import sys, time
from jaxprune.progress import Progress
from jaxprune.training.watchdog import Watchdog
seconds, steps = float(sys.argv[1]), int(sys.argv[2])
with Progress("a run", "training", total=steps) as progress, Watchdog(progress, float(sys.argv[3]) / 60):
    print("ready", flush=True)
    input()
    for step in range(steps):
        time.sleep(seconds)
        progress.update(step)
"""
"""A program of steps that take so many seconds, so many of them, watched for so many seconds."""


@contextmanager
def steps(*argv: float) -> Iterator[subprocess.Popen]:
    environment = os.environ | {"PYTHONPATH": str(workflow.ROOT)}
    command = [sys.executable, "-c", STEPS, *map(str, argv)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("seconds", "count", "limit", "code"), [(0.5, 5, 2, 0), (3, 1, 1, EXIT_STALLED), (3, 1, 0, 0)])
def test_it_ends_what_stands_still_alone(seconds, count, limit, code):
    with steps(seconds, count, limit) as process:
        _, err = process.communicate("\n", timeout=20)
        assert process.returncode == code, err
        assert ("nothing has moved for 1 s while training" in err) == (code != 0), err
        assert ("Thread 0x" in err) == (code != 0), err


def test_a_process_that_was_stopped_has_not_stood_still():
    with steps(0.1, 3, 1.5) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate("\n", timeout=20)
        assert process.returncode == 0, err


@pytest.mark.slow
def test_a_step_that_never_ends_is_ended_and_the_same_command_resumes(tiny, pretrained, tmp_path):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", train={"save_every": 2})
    argv = ("pretrain", config, "--workdir", tmp_path / "run")
    done = tiny.start(*argv, "--train.stall-minutes", 0.25, program=HANGS).finish()
    assert done.code == EXIT_STALLED, done.err
    assert "in requested" in done.err and "Thread 0x" in done.err  # where it hung
    assert "nothing has moved for 15 s while training; run the same command to resume" in done.err.splitlines()[-1]
    assert tiny.run(*argv).code == 0
    assert_same_run(tmp_path / "run", pretrained)
