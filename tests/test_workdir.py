"""The directory of a run: locked, rewound, compared, and written so that a kill leaves the old or the new."""

import functools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxprune.config import PretrainConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.training.records import Records
from jaxprune.training.state import TrainState
from jaxprune.training.workdir import Workdir, read_records, write_atomically

HOLD = """
import sys, time
from jaxprune.training.workdir import Workdir
place = Workdir(sys.argv[1])
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path, holder):
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(ValueError, match=rf"{tmp_path}: in use by process {holder.pid} on .*another --workdir"):
            Workdir(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Workdir(tmp_path) as place, pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        Workdir(place.path)


def test_a_closed_workdir_is_free(tmp_path):
    with Workdir(tmp_path / "a" / "b"):
        pass
    with Workdir(tmp_path / "a" / "b") as place:
        assert place.path == (tmp_path / "a" / "b").resolve()


def test_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Workdir("here") as place:
        assert place.path == tmp_path.resolve() / "here"


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/jaxprune"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be written .*; choose another"):
        Workdir(tmp_path / where)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("cut", ["", '{"step": 5, "lo', '{"step": 5', "{", "null", "\x00\x00"])
def test_rewind_drops_later_records_and_half_a_line(tmp_path, cut):
    with Workdir(tmp_path) as place:
        for step in (1, 2, 2, 3, 4):
            place.append("m.jsonl", {"step": step, "loss": step / 3})
        with (tmp_path / "m.jsonl").open("a") as file:
            file.write(cut)
        place.rewind("m.jsonl", 3)
        assert read_records(tmp_path / "m.jsonl") == [{"step": s, "loss": s / 3} for s in (1, 2, 2, 3)]
        place.append("m.jsonl", {"step": 4})
        assert [r["step"] for r in read_records(tmp_path / "m.jsonl")] == [1, 2, 2, 3, 4]
        place.rewind("none.jsonl", 3)
        assert read_records(tmp_path / "none.jsonl") == []


MASK = np.array([True, False])
ONE_PRUNE = {"w": MASK | True}, TrainState(np.int32(0), {"w": np.ones(2, np.float32) * MASK}, {"w": MASK}, ())
"""Masks before, and the state after."""


def test_a_run_that_starts_over_doubles_no_record_of_step_0(tmp_path):
    with Workdir(tmp_path) as place:
        for _ in range(2):  # the second is a restart after a kill before the first checkpoint
            with Records(place, step=0) as records:
                records.pruned(0, 0.5, *ONE_PRUNE)
                records.metrics(1, {"loss": 1.5})
        assert [r["step"] for r in read_records(tmp_path / "prunes.jsonl")] == [0]
        with Records(place, step=1) as records:
            records.metrics(2, {"loss": 1.0})
        assert [r["step"] for r in read_records(tmp_path / "prunes.jsonl")] == [0]
        assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxprune.training.workdir import write_atomically
real = Path.write_text
def half(self, text, *args, **kwargs):
    real(self, text[: len(text) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
Path.write_text = half
write_atomically(Path(sys.argv[1]), "new" * 1000)
"""


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_changed_config_is_refused_and_every_key_named(tmp_path):
    old = PretrainConfig(steps=9)
    with Workdir(tmp_path) as place:
        place.check_same("config.yaml", to_yaml(old), lambda a, b: ["never called"])
        kept = (tmp_path / "config.yaml").read_bytes()

        def check(cfg):
            place.check_same("config.yaml", to_yaml(cfg), functools.partial(changes, PretrainConfig))

        check(old)
        new = PretrainConfig(steps=8, prune={"sparsity": 0.25, "end": 4}, train={"keep": 7, "accumulate": 2})
        with pytest.raises(ValueError) as error:
            check(new)
        for said in ("steps: 9 -> 8", "prune.sparsity: 0.0 -> 0.25", "prune.end: 0 -> 4", "train.accumulate: 1 -> 2"):
            assert said in str(error.value)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
        assert "train.keep" not in str(error.value)
        # How often a run logs, evaluates and saves changes no weight.
        rates = {"log_every": 3, "eval_every": 4, "eval_batches": 5, "save_every": 6, "keep": 7}
        check(PretrainConfig(steps=9, train=rates))
        assert (tmp_path / "config.yaml").read_bytes() == kept


def test_result_marks_the_end(tmp_path):
    with Workdir(tmp_path) as place:
        assert place.result() is None
        place.finish({"score": 0.1 + 0.2})
        assert place.result() == {"score": 0.1 + 0.2}
        assert json.loads((tmp_path / "result.json").read_text()) == {"score": 0.1 + 0.2}
