"""Whatever fails around a command: one line, the documented exit code, nothing lost; the same command goes on."""

import errno
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from test_resume import assert_same_run, flip

from jaxprune import files
from jaxprune.cli import main
from jaxprune.config import FinetuneConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.data.split_writer import SplitWriter
from jaxprune.errors import EXIT_DISK, EXIT_RESOURCES, CheckpointError, Diverged, Preempted, UserError
from jaxprune.exit_code import exit_code_of
from jaxprune.experiments import walk
from jaxprune.experiments.finetune import finetune
from jaxprune.experiments.weights import read_weights, stored_config
from jaxprune.progress import Progress
from jaxprune.training import processes
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.manifest import list_files
from jaxprune.training.processes import Stop

CODES = {
    "ENOSPC EFBIG EDQUOT EROFS EIO ESTALE EBUSY EXDEV": EXIT_DISK,
    "EMFILE ENFILE ENOMEM": EXIT_RESOURCES,
    "ENAMETOOLONG ENOENT EACCES ELOOP ENOTEMPTY": UserError.exit_code,
}


@pytest.mark.parametrize(("name", "code"), [(name, code) for names, code in CODES.items() for name in names.split()])
def test_an_error_of_the_system_is_one_line(name, code, capsys):
    number = getattr(errno, name)

    def fail():
        raise OSError(number, os.strerror(number), "/some/[file]")

    assert exit_code_of(fail, "jaxprune x") == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and os.strerror(number) in err and ("/some/[file]" in err) == (code != EXIT_RESOURCES)


def test_memory_that_ran_out_is_one_line(capsys):
    def fail():
        raise MemoryError("Unable to allocate 9 EiB")

    assert exit_code_of(fail, "jaxprune x") == EXIT_RESOURCES
    assert "Unable to allocate 9 EiB); take a smaller batch" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback():
    def fail():
        raise OSError(errno.EEXIST, "exists", "x")

    with pytest.raises(FileExistsError):
        exit_code_of(fail, "jaxprune x")


@pytest.mark.parametrize(
    ("redirection", "code", "err"),
    [
        ("> /dev/full", EXIT_DISK, "jaxprune --help: the disk or the output: No space left on device; make room"),
        (">&-", 0, ""),
        ("2>&- <&-", 0, ""),
        ("2> /dev/full", 0, ""),
    ],
)
def test_closed_and_full_streams(tiny, redirection, code, err):
    done = subprocess.run(
        f"{sys.executable} -m jaxprune --help {redirection}",
        shell=True,
        capture_output=True,
        text=True,
        env=tiny.environment(),
        check=False,
    )
    assert done.returncode == code and done.stderr.startswith(err) and done.stderr.count("\n") == bool(err)


def test_a_hangup_asks_for_a_stop_but_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with Stop() as stop:
            assert not stop.requested(1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested(2)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_store_that_does_not_answer_is_a_lost_peer(monkeypatch):
    """As where process 0 was stopped: whoever asks it waits."""
    monkeypatch.setattr(processes, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(processes, "SILENT_SECONDS", 0.1)
    lost, answered = [], [time.monotonic()]

    def end(number):
        lost.append(number)
        answered.clear()

    monkeypatch.setattr(processes, "_end_without", end)
    began = time.monotonic()
    processes._watch_store(answered)
    assert lost == ["0"] and 0.1 <= time.monotonic() - began < 10


def test_a_title_is_no_markup(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logging.getLogger("jaxprune").setLevel(logging.INFO)
    with Progress("[/run] [bold]x", "training", total=3) as progress:
        progress.update(1, "loss [/] 1")
        shown = Console(file=io.StringIO(), width=100)
        shown.print(Progress._screen._draw())
    assert "[/run] [bold]x" in shown.file.getvalue() and "loss [/] 1" in shown.file.getvalue()


def test_a_folder_that_takes_no_checkpoint_is_said_at_once(tmp_path):
    began = time.monotonic()
    with pytest.raises(OSError, match=r"(checkpoints|directory)") as error, Checkpoints(tmp_path) as checkpoints:
        (tmp_path / "checkpoints").rmdir()
        (tmp_path / "checkpoints").touch()
        checkpoints.save(1, {"x": 1.0}, {})
    assert time.monotonic() - began < 10 and error.value.errno in (errno.ENOTDIR, errno.ENOENT)


@pytest.mark.parametrize(("name", "failures"), [("ESTALE", 2), ("EIO", 3), ("EIO", 4), ("ENOSPC", 1)])
def test_what_may_pass_is_tried_again_a_few_times(monkeypatch, caplog, name, failures):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.01, 0.02))
    calls = []

    def write():
        calls.append(1)
        if len(calls) <= failures:
            raise OSError(getattr(errno, name), "no", "/the/file")
        return "written"

    if name == "ENOSPC" or failures == 4:
        with pytest.raises(OSError, match="/the/file"):
            files.patiently(write)
        assert len(calls) == failures
    else:
        assert files.patiently(write) == "written" and caplog.text.count("/the/file: no; trying again") == failures


FLAKY = """
import errno, os, pathlib, sys
from jaxprune import files

files.PAUSES = (0.01, 0.01, 0.01)
refused = {}

def flaky(name, before):
    def call(path, *args, **options):
        key = name, str(path)
        if sys.argv[-1] in str(path) and "tensorboard" not in str(path) and "lock" not in str(path):
            refused[key] = refused.get(key, 0) + 1
            if refused[key] % 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return before(path, *args, **options)
    return call

for name in ("rename", "replace"):
    setattr(pathlib.Path, name, flaky(name, getattr(pathlib.Path, name)))
from jaxprune.training.workdir import Workdir

before, pathlib_open = Workdir.append, pathlib.Path.open
def append(self, *words):
    pathlib.Path.open = flaky("open", pathlib_open)
    before(self, *words)
    pathlib.Path.open = pathlib_open
Workdir.append = append
from jaxprune.cli import main
code = main(sys.argv[1:])
print(len(refused))
sys.exit(code)
"""
"""A program that runs the command line over storage that fails twice before each rename, and before each record."""


@pytest.mark.slow
def test_storage_that_fails_twice_costs_nothing(tiny, pretrained, tmp_path):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", train={"save_every": 2})
    done = tiny.start("pretrain", config, "--workdir", tmp_path / "run", program=FLAKY).finish()
    assert done.code == 0, done.err
    assert int(done.out.splitlines()[-1]) > 10 and "Input/output error; trying again" in done.err
    assert_same_run(tmp_path / "run", pretrained)


@pytest.mark.slow
def test_check_says_what_is_wrong_and_what_still_works(tiny, pretrained, tmp_path, capsys):
    run, data = shutil.copytree(pretrained, tmp_path / "run"), shutil.copytree(tiny.data, tmp_path / "data")

    def checked(path):
        capsys.readouterr()
        code = main(["check", str(path)])
        return code, capsys.readouterr().out

    assert checked(run) == (0, f"{run}: finished, checkpoint 12 is whole\n{run}: as it was written\n")
    for path in (run / "hf", data):
        assert checked(path) == (0, f"{path}: as it was written\n")
    for name in ("checkpoints/12/integrity.json", "hf/model.safetensors", "metrics.jsonl"):
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(content)
    (run / "run.json").unlink()
    code, out = checked(run)
    assert code == CheckpointError.exit_code and out.splitlines() == [
        f"{run}/run.json: is missing; the next start writes it again",
        f"{run}: hf/model.safetensors has changed since it was written",
        *[line for line in out.splitlines() if line.startswith(f"{run}/checkpoints/12: ")],
        f"{run}/metrics.jsonl: is not what it was at step 10; the next start writes it again",
        f"{run}: finished, checkpoint 10 is whole",
    ]
    assert checked(run / "hf") == (78, f"{run}: hf/model.safetensors has changed since it was written\n")
    shard = next(data.glob("train-*.ids.npy"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"~")
    code, out = checked(data)
    assert code == 78 and out.startswith(f"{shard}: damaged, its SHA-256 is not the manifest's")
    (tmp_path / "scores").mkdir()
    for name in ("dev_predictions.npz", "results.csv"):
        (tmp_path / "scores" / name).write_text("as it was")
    list_files(tmp_path / "scores", "dev_predictions.npz", "results.csv")
    (tmp_path / "scores" / "run.json").write_text('{"starts": []}')
    assert checked(tmp_path / "scores")[0] == 0
    for name in ("dev_predictions.npz", "results.csv"):
        (tmp_path / "scores" / name).write_text("as it is")
    code, out = checked(tmp_path / "scores")
    assert code == 78 and all(
        f"{n} has changed since it was written" in out for n in ("results.csv", "dev_predictions.npz")
    )
    study = tmp_path / "study"
    shutil.copytree(pretrained, study / "runs" / "dense")
    (study / "config.yaml").write_text("command: study\n")
    dense = study / "runs" / "dense"
    assert checked(study) == (0, f"{dense}: finished, checkpoint 12 is whole\n{study}: as it was written\n")
    assert main(["check", str(tmp_path)]) == 78 and main(["check", str(tiny.corpus)]) == UserError.exit_code


@pytest.mark.slow
def test_a_start_from_a_run_whose_newest_checkpoint_is_damaged_must_be_asked_for(tiny, pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    flip(run, 12)
    with pytest.raises(CheckpointError, match=f"ask for an older one as {run}/checkpoints/10, or put a good copy back"):
        read_weights(str(run))
    older, newest = read_weights(f"{run}/checkpoints/10"), read_weights(str(pretrained))
    assert older.model == newest.model and older.params.keys() == newest.params.keys()
    assert stored_config(f"{run}/checkpoints/10") == stored_config(run)
    config = tiny.finetune_yaml(tmp_path / "f.yaml", init_from=f"{run}/checkpoints/10")
    assert main(["finetune", str(config), "--dry-run"]) == 0


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_others(tiny, pretrained, tmp_path):
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(pretrained), learning_rates=[1e30, 1e-3])
    cfg = validate(FinetuneConfig, read_yaml(path), str(path))
    with pytest.raises(Diverged, match=r"1 of 2 runs diverged, the first .*/lr1e\+30-seed0; all others are done"):
        finetune(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "SST-2" / "lr0.001-seed0" / "result.json").exists()
    _, row = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert "0.001" in row and "True" in row and not (tmp_path / "run" / "result.json").exists()


FULL = """
import resource, sys, time
from jaxprune.training import records

class Records(records.Records):
    def metrics(self, step, values):
        if step == 3:
            now = time.time
            time.time = lambda: now() - 86400
        if step == 7:
            size = (self._workdir / "metrics.jsonl").stat().st_size + 20
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        super().metrics(step, values)

from jaxprune.experiments import walk
walk.Records = Records
from jaxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""Of a run: the clock jumps back by a day before step 3 is logged, and the disk has no room for the line of step 7."""


@pytest.mark.slow
def test_no_room_for_the_log_and_a_clock_that_jumps_back(tiny, pretrained, tmp_path):
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run"]
    done = tiny.start(*argv, program=FULL).finish(120)
    assert done.code == EXIT_DISK, done
    assert done.err.splitlines()[-1].startswith("jaxprune pretrain: ") and "Traceback" not in done.err, done.err
    assert "File too large; make room or choose another disk, and run again" in done.err
    good = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert good in (4, 6)  # step 6 may still have been on its way
    done = tiny.run(*argv)
    assert done.code == 0 and f"resuming at step {good} of 12" in done.err, done.err
    assert_same_run(tmp_path / "run", pretrained)


LIMITED = """
import os, resource, signal, sys
from jaxprune.training import loop

KIND = sys.argv[1]

class Stop(loop.Stop):
    steps = 0
    def __enter__(self):
        super().__enter__()
        if KIND == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        return self
    def requested(self, step):
        Stop.steps += 1
        if Stop.steps == 3 and KIND == "files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # any descriptor is one too many
        return super().requested(step)

loop.Stop = Stop
from jaxprune.cli import main
del sys.argv[1]
sys.exit(main())
"""
"""Of a run: Ctrl-C before its first step is compiled, or no more open files after its third."""


@pytest.mark.slow
def test_interrupted_before_the_first_step_and_out_of_open_files_it_goes_on(tiny, pretrained, tmp_path):
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run"]
    alone = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}  # else it starts anew, without the limits
    done = tiny.start("interrupt", *argv, program=LIMITED, **alone).finish()
    assert done.code == Preempted.exit_code and "step 1 of 12 is saved" in done.err, done
    done = tiny.start("files", *argv, program=LIMITED, **alone).finish(120)  # no thread is waited for
    assert done.code == EXIT_RESOURCES and "Traceback" not in done.err, done
    assert done.err.splitlines()[-1].endswith("Too many open files; raise `ulimit -n`, and run again")
    done = tiny.run(*argv)
    assert done.code == 0 and "resuming at step" in done.err, done
    assert_same_run(tmp_path / "run", pretrained)


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_before_anything_is_written(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(walk, "compile_run", lambda *_: signal.raise_signal(signal.SIGINT))
    config = tiny.pretrain_yaml(tmp_path / "c.yaml")
    assert main(["pretrain", str(config), "--workdir", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.endswith("jaxprune pretrain: interrupted; run the same command to go on\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("interruptible")
def test_prepare_is_interrupted_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
    finish, config = SplitWriter.finish, tiny.prepare_yaml(tmp_path / "c.yaml")
    argv = ["prepare", str(config), "--workdir", str(tmp_path / "data")]
    monkeypatch.setattr(SplitWriter, "finish", lambda self: signal.raise_signal(signal.SIGINT))
    assert main(argv) == 130
    assert capsys.readouterr().err.endswith("jaxprune prepare: interrupted; run the same command to go on\n")
    monkeypatch.setattr(SplitWriter, "finish", finish)
    assert main(argv) == 0
    for path in tiny.data.glob("*.npy"):
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("command", ["pretrain", "prepare"])
def test_a_place_that_cannot_be_written_is_said_at_once(tiny, tmp_path, capsys, command):
    """/proc takes no directory, not even of root."""
    config = {"pretrain": tiny.pretrain_yaml, "prepare": tiny.prepare_yaml}[command](tmp_path / "c.yaml")
    began = time.process_time()
    assert main([command, str(config), "--workdir", "/proc/jaxprune"]) == UserError.exit_code
    assert time.process_time() - began < 10
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"jaxprune {command}: ")


@pytest.mark.slow
def test_every_command_takes_any_legal_path(tiny, tmp_path, monkeypatch, capsys):
    """Brackets, quotes, `$`, spaces, a backslash, a star, umlauts and a right-to-left mark, beside what would match.
    Nor does any of them write down a secret of the environment."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hf_canary")
    base = tmp_path / "[x] 'a\" $HOME\\b ü * \u202e\u05d0"
    for name in (base.name, "x 'a\" $HOMEb ü * \u202e\u05d0"):
        (tmp_path / name).mkdir()
    glue, corpus = shutil.copytree(tiny.glue, base / "glue"), base / "corpus"
    shutil.copytree(tiny.corpus, corpus)
    data, run, grid, model = (base / name for name in ("data", "run", "grid", "model"))
    source = {"sources": [{"kind": "local", "path": str(corpus)}]}
    prepare = tiny.prepare_yaml(base / "prepare.yaml", **source)
    assert main(["prepare", str(prepare), "--workdir", str(data)]) == 0
    assert next(data.glob("train-*.ids.npy")).read_bytes() == next(tiny.data.glob("train-*.ids.npy")).read_bytes()
    config = tiny.pretrain_yaml(base / "pretrain.yaml", data={"path": str(data)}, steps=8)
    assert tiny.stop(5, signal.SIGTERM, "pretrain", config, "--workdir", run).code == Preempted.exit_code
    done = tiny.run("pretrain", config, "--workdir", run)
    assert done.code == 0 and "resuming at step 5 of 8" in done.err, done
    config = tiny.finetune_yaml(base / "finetune.yaml", glue=str(glue), init_from=str(run), keep_weights=True)
    done = tiny.run("finetune", config, "--workdir", grid)
    assert done.code == 0, done
    texts = base / "texts.csv"
    texts.write_text("sentence\na cat\n")
    monkeypatch.chdir(base)
    for words in (
        ["prune", str(run), str(model), "--sparsity", "0.8"],
        ["predict", str(grid), str(texts), "--out", str(base / "out.csv")],
        ["report", str(grid)],
        ["report", str(run), str(grid), "--out", str(base / "page")],
        ["inspect", str(run)],
        ["diff", str(run), str(model)],
        ["check", str(base / "run")],
        ["check", str(data)],
        ["check", str(model)],
        ["doctor", "--workdir", str(base / "run")],
    ):
        assert main(words) == 0, (words, capsys.readouterr())
    assert (base / "out.csv").is_file() and (base / "page" / "report.html").is_file()
    files = [path for path in base.rglob("*") if path.is_file()]
    assert len(files) > 100 and not [path for path in files if b"canary" in path.read_bytes()]
