"""The directory of a run: locked, rewound, compared, and written so that a kill leaves the old or the new."""

import functools
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxprune.config import PretrainConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.errors import InUse, UserError
from jaxprune.exit_code import exit_code_of
from jaxprune.files import new_directory, write_atomically
from jaxprune.pruning.masks import sparsity
from jaxprune.pruning.pruner import PruneReport
from jaxprune.training.records import Records
from jaxprune.training.workdir import Workdir, read_records

HOLD = """
import sys, time
from jaxprune.training.workdir import Workdir
workdir = Workdir(sys.argv[1])
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
        with pytest.raises(InUse, match=rf"{tmp_path}: in use by process {holder.pid} on .*another --workdir"):
            Workdir(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Workdir(tmp_path) as workdir, pytest.raises(InUse, match=f"in use by process {os.getpid()} on"):
        Workdir(workdir.path)


def test_a_closed_workdir_is_free(tmp_path):
    with Workdir(tmp_path / "a" / "b"):
        pass
    with Workdir(tmp_path / "a" / "b") as workdir:
        assert workdir.path == (tmp_path / "a" / "b").resolve()


def test_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Workdir("here") as workdir:
        assert workdir.path == tmp_path.resolve() / "here"


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/jaxprune"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written .*; choose another"):
        Workdir(tmp_path / where)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("cut", ["", '{"step": 5, "lo', '{"step": 5', "{", "null", "\x00\x00"])
def test_rewind_drops_later_records_and_half_a_line(tmp_path, cut):
    with Workdir(tmp_path) as workdir:
        for step in (1, 2, 2, 3, 4):
            workdir.append("m.jsonl", {"step": step, "loss": step / 3})
        with (tmp_path / "m.jsonl").open("a") as file:
            file.write(cut)
        workdir.rewind("m.jsonl", 3)
        assert read_records(tmp_path / "m.jsonl") == [{"step": s, "loss": s / 3} for s in (1, 2, 2, 3)]
        workdir.append("m.jsonl", {"step": 4})
        assert [r["step"] for r in read_records(tmp_path / "m.jsonl")] == [1, 2, 2, 3, 4]
        workdir.rewind("none.jsonl", 3)
        assert read_records(tmp_path / "none.jsonl") == []


ONE_PRUNE = PruneReport(
    kept={"w": np.uint32(1), "b": None},
    regrown={"w": np.uint32(0), "b": None},
    removed={"w": np.uint32(1), "b": None},
    size={"w": 2, "b": None},
    threshold={"w": np.float32(1), "b": None},
)
"""One of two weights went."""


def test_a_run_that_starts_over_doubles_no_record_of_step_0(tmp_path):
    with Workdir(tmp_path) as workdir:
        for _ in range(2):  # the second is a restart after a kill before the first checkpoint
            with Records(workdir, step=0) as records:
                assert records.pruned(0, 0.5, ONE_PRUNE) == 0.5
                records.metrics(1, {"loss": 1.5})
        assert [r["step"] for r in read_records(tmp_path / "prunes.jsonl")] == [0]
        with Records(workdir, step=1) as records:
            records.metrics(2, {"loss": 1.0})
        assert [r["step"] for r in read_records(tmp_path / "prunes.jsonl")] == [0]
        assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_prune_says_the_sparsity_that_a_resumed_run_reads_off_its_masks(tmp_path):
    masks = {"a": np.arange(10) > 0, "none": np.zeros((0, 3), bool)}
    kept, size = (jax.tree.map(count, masks) for count in (np.count_nonzero, np.size))
    with Workdir(tmp_path) as workdir, Records(workdir, step=0) as records:
        said = records.pruned(1, 0.5, PruneReport(kept, kept, kept, size, jax.tree.map(np.float32, kept)))
    assert said == sparsity(masks) != 1 - 9 / 10
    leaves = read_records(tmp_path / "prunes.jsonl")[0]["leaves"]
    assert leaves == {name: sparsity({name: mask}) for name, mask in masks.items()}


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxprune.files import write_atomically
def half(descriptor):
    os.ftruncate(descriptor, 1500)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = half
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
    with Workdir(tmp_path) as workdir:
        workdir.check_same("config.yaml", to_yaml(old), lambda a, b: ["never called"])
        kept = (tmp_path / "config.yaml").read_bytes()

        def check(cfg):
            workdir.check_same("config.yaml", to_yaml(cfg), functools.partial(changes, PretrainConfig))

        check(old)
        new = PretrainConfig(steps=8, prune={"sparsity": 0.25, "end": 4}, train={"keep": 7, "accumulate": 2})
        with pytest.raises(UserError) as error:
            check(new)
        for words in ("steps: 9 -> 8", "prune.sparsity: 0.0 -> 0.25", "prune.end: 0 -> 4", "train.accumulate: 1 -> 2"):
            assert words in str(error.value)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
        assert "train.keep" not in str(error.value)
        # How often a run logs, evaluates and saves changes no weight.
        rates = {"log_every": 3, "eval_every": 4, "eval_batches": 5, "save_every": 6, "keep": 7}
        check(PretrainConfig(steps=9, train=rates))
        # Nor does where the data lies (its fingerprint is compared), or the mesh but for rounding.
        check(PretrainConfig(steps=9, data={"path": "/moved"}, mesh={"data": 2, "fsdp": 4, "axes": "explicit"}))
        assert (tmp_path / "config.yaml").read_bytes() == kept


def test_a_config_is_vouched_for_again_after_contents_json_was_lost(tmp_path, caplog):
    """Else the next flipped bit in config.yaml could not be told from another config."""
    text, compare = "seed: 0\n", lambda old, new: [] if old == new else ["seed"]
    for _ in range(2):
        with Workdir(tmp_path) as workdir:
            workdir.check_same("config.yaml", text, compare)
        (tmp_path / "contents.json").unlink()
    with Workdir(tmp_path) as workdir:
        workdir.check_same("config.yaml", text, compare)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with Workdir(tmp_path) as workdir:
        workdir.check_same("config.yaml", text, compare)
    assert "config.yaml: has changed since it was written; moved to config.yaml.changed" in caplog.text


def test_every_start_is_kept(tmp_path):
    for number in range(3):
        with Workdir(tmp_path) as workdir:
            workdir.add_start({"number": number})
    assert json.loads((tmp_path / "run.json").read_text()) == {"starts": [{"number": n} for n in range(3)]}
    Workdir(tmp_path, owner=False).add_start({"number": 9})  # another process of a job
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 3


def test_a_new_directory_is_whole_or_not_there(tmp_path):
    for _ in range(2):
        with pytest.raises(OSError, match="disk"), new_directory(tmp_path / "a" / "b") as directory:
            (directory / "half").write_text("x")
            raise OSError("disk")
        assert [*(tmp_path / "a").iterdir()] == []
    with new_directory(tmp_path / "a" / "b") as directory:
        (directory / "one").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "a" / "b") as directory:
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "one"]
    with new_directory(tmp_path / "a" / "b") as directory:  # takes the place of the one before
        (directory / "two").write_text("2")
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["b", "two"]


def test_a_directory_below_a_file_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").touch()

    def write():
        with new_directory(tmp_path / "file" / "b"):
            return 0

    assert exit_code_of(write, "jaxprune x") == 2
    assert f"{tmp_path}/file: Not a directory; choose another path" in capsys.readouterr().err


def test_result_marks_the_end(tmp_path):
    with Workdir(tmp_path) as workdir:
        assert workdir.result() is None
        workdir.finish({"score": 0.1 + 0.2})
        assert workdir.result() == {"score": 0.1 + 0.2}
        assert json.loads((tmp_path / "result.json").read_text()) == {"score": 0.1 + 0.2}


@pytest.mark.slow
@pytest.mark.parity
def test_tensorboard_s_files_need_no_torch(tmp_path):
    """Which tensorboardX would import; afterwards it is there for whom it concerns."""
    program = f"""
import sys
from pathlib import Path
from jaxprune.training.records import Records
from jaxprune.training.workdir import Workdir
Records(Workdir(Path({str(tmp_path)!r})), step=0).metrics(1, {{"loss": 1.0}})
assert "torch" not in sys.modules
import torch
"""
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert any((tmp_path / "tensorboard").iterdir())
