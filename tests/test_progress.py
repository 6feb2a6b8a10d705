"""Runs speak: a line at least every few seconds whatever goes on, the loss of the very step, and what came out."""

import io
import json
import logging
import re
import sys
import time

import pytest

from jaxprune import progress
from jaxprune.cli import main
from jaxprune.progress import Progress
from jaxprune.training.workdir import read_records

OFTEN = """
import sys
from jaxprune import progress
progress.SECONDS = 0.01
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A program that runs the command line and speaks a hundred times a second."""


def test_lines_come_while_nothing_moves(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="jaxprune")
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    with Progress("study", "run", total=9, done=2), Progress("dense", "compiling", total=2000):
        time.sleep(0.4)  # what a compiler does to the main thread
    lines = caplog.messages
    assert 3 <= len(lines) <= 8
    assert all(line.startswith("study: run 2/9 (") and " > dense: compiling 0/2,000" in line for line in lines[1:])
    time.sleep(0.15)
    assert caplog.messages == lines  # it ends with the work


def test_the_time_left_is_that_which_is_told(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    work = Progress("study", "run", total=10)
    work.update(1, left=600.0)
    assert str(work) == "study: run 1/10, 10 min left"
    clock[0] += 60
    assert str(work) == "study: run 1/10, 9 min left (60 s)"
    work.update(10, left=0.0)
    assert str(work) == "study: run 10/10"


def test_the_time_left_leaves_out_the_first_step(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    work = Progress("dense", "training", total=1000)
    clock[0] += 60  # compiles
    work.update(1, "loss 7.0")
    assert str(work) == "dense: training 1/1,000, loss 7.0"
    for step in (2, 3):
        clock[0] += 4
        work.update(step, "loss 6.5")
    assert str(work) == "dense: training 3/1,000, loss 6.5, 66 min left" and work.rate == 0.25
    clock[0] += 20
    with work.during("evaluating"):
        clock[0] += 21
        assert str(work) == "dense: evaluating 3/1,000, loss 6.5, 66 min left (21 s)"
    work.update(1000, "loss 5.0")
    assert str(work) == "dense: training 1,000/1,000, loss 5.0"


def test_a_terminal_gets_bars_and_whole_lines_above_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for name, value in {"TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    log = logging.getLogger("jaxprune")
    monkeypatch.setattr(log, "level", logging.INFO)
    with Progress("study", total=4, done=1), Progress("dense", "training", total=8) as run:
        run.update(3, "loss 5.250")
        log.info("a line of the log")
        time.sleep(0.4)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "study ━" in text and "training 3/8, loss 5.250" in text
    assert re.search(r"^a line of the log$", text, re.MULTILINE)
    assert sys.stderr is screen and handler.stream is screen


@pytest.mark.slow
def test_a_run_says_the_loss_of_the_step_and_what_came_out(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", steps=40, train={"save_every": 99})
    argv = ["pretrain", str(config), "--workdir", str(run)]
    done = tiny.start(*argv, program=OFTEN).finish()
    assert done.code == 0, done.err
    losses = {line["step"]: line["loss"] for line in read_records(run / "metrics.jsonl") if "loss" in line}
    said = re.findall(r"run: training (\d+)/40, loss (\d\.\d{3}), sparsity", done.err)
    assert len({*said}) >= 5
    assert all(f"{losses[int(step)]:.3f}" == loss for step, loss in said)
    for stage in ("reading config and data", "compiling 0/40", "saving"):
        assert f"run: {stage}" in done.err
    result = json.loads((run / "result.json").read_text())
    end = done.err[done.err.index(": finished, 40 steps") :]
    assert f"dev set   loss {result['dev']['loss']:.3f} nats" in end and f"{result['sparsity']:.4f}" in end
    assert f"{run / 'hf'}" in end and f"jaxprune finetune CONFIG.yaml --workdir DIR --init-from {run}" in end
    assert f"jaxprune report {run}" in end and f"tensorboard --logdir {run}" in end
    capsys.readouterr()
    assert main([*argv, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
