"""The command line: every bad input gets one line that helps and exit code 2, and leaves nothing behind."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from workflow import write_yaml

import jaxprune
from jaxprune.cli import EXIT_USER, main
from jaxprune.config.sections import ModelConfig
from jaxprune.data.mlm import PretrainData
from jaxprune.data.tasks import TASKS
from jaxprune.errors import EXIT_DISK, EXIT_PEER, CheckpointError, UserError
from jaxprune.exit_code import exit_code_of
from jaxprune.experiments.own_folder import check_own
from jaxprune.models import ARCHITECTURES
from jaxprune.pruning import CRITERIA, DISTRIBUTIONS, METHODS, SCHEDULES, SCOPES, STRUCTURES
from jaxprune.pruning.criteria import BY_INPUTS


def outside(path):
    """Everything below `path`, with contents."""
    return {str(p): p.is_file() and p.read_bytes() for p in path.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(argv..., say=[...]): the command exits with 2, says all of it on one line, and writes nothing."""

    def check(*argv, say):
        before = outside(tmp_path)
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert code == EXIT_USER, err
        assert err.count("\n") == 1 and err.startswith("jaxprune") and "Traceback" not in err, err
        assert not out
        for words in say:
            assert words in err, f"{words!r} is not in {err!r}"
        assert outside(tmp_path) == before

    return check


PRETRAIN = {
    "unknown key": ([], {"stepz": 3}, ["stepz", "did you mean steps?"]),
    "unknown key in a section": ([], {"prune": {"sparsty": 0.5}}, ["prune.sparsty", "did you mean sparsity?"]),
    "unknown option": (["--prune.sparsty", "0.5"], {}, ["prune.sparsty", "did you mean sparsity?"]),
    "option of an unknown section": (["--prun.sparsity", "0.5"], {}, ["prun.sparsity", "did you mean prune?"]),
    "sparsity above 1": ([], {"prune": {"sparsity": 1.5}}, ["prune.sparsity", "1.5", "less than or equal to 1"]),
    "sparsity in percent": (["--prune.sparsity", "70"], {}, ["prune.sparsity", "(got 70.0): 0.7 for 70 %"]),
    "sparsity below 0": (["--prune.sparsity=-0.1"], {}, ["prune.sparsity", "-0.1", "greater than or equal to 0"]),
    "sparsity no number": (["--prune.sparsity", "half"], {}, ["--prune.sparsity", "'half'", "correct the value"]),
    "no value": (["--steps"], {}, ["--steps", "Missing value"]),
    "no such choice": (
        ["--prune.scope", "layr"],
        {},
        ["prune.scope = 'layr'", "one of global, matrix, output, layer, head", "the nearest is 'layer'"],
    ),
    "no such criterion": (
        [],
        {"prune": {"criterion": "tailor"}},
        ["prune.criterion = 'tailor'", "nearest is 'taylor'"],
    ),
    "no gradients yet": (
        ["--prune.criterion", "movement", "--prune.schedule", "one_shot", "--prune.begin", "0"],
        {},
        ["prune.criterion = movement", "prune.begin = 0", "set it to 1 or more, or use one of magnitude, random"],
    ),
    "no such method": ([], {"prune": {"method": "hist"}}, ["prune.method = 'hist'", "the nearest is 'hist256'"]),
    "no such structure": (["--prune.structure", "2:"], {}, ["prune.structure = '2:'", "n:m, block(rows, columns)"]),
    "no such schedule": (
        ["--prune.schedule", "cubik", "--prune.sparsity", "0"],
        {},
        ["prune.schedule = 'cubik'", "one of one_shot, linear, cubic", "the nearest is 'cubic'"],
    ),
    "no such architecture": (["--model.architecture", "brt"], {}, ["architecture = 'brt'", "bert, distilbert"]),
    "blocks do not fit": (
        ["--prune.structure", "block(5, 5)"],
        {},
        ["(5, 5) do not divide embeddings/word_embeddings/embedding", "(160, 16)"],
    ),
    "n of m by a rough method": (
        ["--prune.structure", "2:4", "--prune.method", "quantile", "--prune.sparsity", "0.5"],
        {},
        ["prune.structure: ", "method = 'exact' alone"],
    ),
    "n of m beyond n": (["--prune.structure", "2:4"], {}, ["prune.sparsity = 0.7", "2 of 4 stay", "use at most 0.5"]),
    "amount matches nothing": (
        [],
        {"prune": {"amounts": {"poolr/kernel": 0.5}}},
        ["prune.amounts: 'poolr/kernel'", "the nearest is 'pooler/kernel'"],
    ),
    "all excluded": (["--prune.exclude", ".*"], {}, ["prune.exclude = ['.*']", "exclude less"]),
    "exclude is no regex": (["--prune.exclude", "(kernel"], {}, ["prune.exclude: '(kernel'", "no regular expression"]),
    "stray word": (["more"], {}, ["'more'", "write --key value"]),
    "begin after end": ([], {"prune": {"begin": 9}}, ["prune.begin = 9", "end = 8", "set begin <= end"]),
    "end after steps": (["--steps", "6"], {}, ["prune.end = 8", "steps = 6"]),
    "regex matches nothing": (
        ["--prune.include", r"encoder/layer_\d+/attention/qery/kernel"],
        {},
        ["prune.include: ", "attention/qery/kernel", "the nearest is 'encoder/layer_00/attention/query/kernel'"],
    ),
    "a dot for any character": (["--prune.include", "encoder/layer.0.*"], {}, ["'encoder/layer.0.*'", "layer_00/"]),
    "a dot in an amount": (
        [],
        {"prune": {"sparsity": 0.5, "amounts": {"encoder.layer.0.*": 0.9}}},
        ["prune.amounts: 'encoder.layer.0.*'", "layer_00/"],
    ),
    "a dot in what is frozen": (
        ["--optimizer.frozen", "encoder.layer.1.*"],
        {},
        ["optimizer.frozen: 'encoder.layer.1.*'", "layer_01/"],
    ),
    "heads that do not divide": (["--model.hidden-size", "25"], {}, ["num_attention_heads = 2", "hidden_size = 25"]),
    "biases along with matrices": (
        ["--prune.include", "encoder/.*"],
        {},
        ["prune.include: 'encoder/.*'", "10 biases and LayerNorms", "end it in /kernel"],
    ),
    "vocabulary too large": (
        [],
        {"model": {"vocab_size": 100}},
        ["data.path = ", "do not fit the 100 rows of the model; set model.vocab_size = "],
    ),
    "positions too few": (
        [],
        {"model": {"max_position_embeddings": 16}},
        ["model.max_position_embeddings = 16", "sequence length 32"],
    ),
    "batch does not split": (["--batch-size", "12"], {}, ["batch_size = 12", "8 devices"]),
    "no data": (["--data.path", "nowhere"], {}, ["nowhere"]),
    "a file of text": (["--data.path", "text.txt"], {}, ["text.txt: is a file", "`jaxprune prepare` made"]),
    "raw text": (["--data.path", "begun"], {}, ["no manifest.json", "raw text", "run `jaxprune prepare`"]),
    "a folder that is not there": (["--init-from", "begun/none"], {}, ["begun/none: no such directory from /"]),
    "no data key": ([], {"data": {"path": ""}}, ["data.path is empty", "jaxprune prepare"]),
    "no checkpoint": (["--init-from", "begun"], {}, ["init_from = ", "begun: has no checkpoint yet"]),
    "no weights": (["--init-from", "./nowhere"], {}, ["./nowhere", "no such directory"]),
}


@pytest.mark.parametrize("case", PRETRAIN)
def test_pretrain_refuses(tiny, tmp_path, refused, monkeypatch, case):
    argv, config, say = PRETRAIN[case]
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", **config)
    tiny.pretrain_yaml(tmp_path / "begun" / "config.yaml")  # the workdir of a run that was killed before it saved
    (tmp_path / "text.txt").write_text("A line of text.\n")
    monkeypatch.chdir(tmp_path)
    refused("pretrain", path, "--workdir", tmp_path / "run", *argv, say=say)


CORPORA = {
    "missing": (None, ["no such file"]),
    "empty": (b"", ["is empty", "give a file with text"]),
    "blank": (b" \n\n \n", ["holds no text"]),
    "not UTF-8": (b"A line.\nCaf\xe9 au lait.\n", ["byte 11 is not UTF-8", "convert it"]),
    "UTF-16": ("A line of text.".encode("utf-16"), ["byte 0 is not UTF-8", "convert it"]),
    "one document": (b"A single document. It has two sentences.\n", ["document", "too few"]),
}


@pytest.mark.parametrize("case", CORPORA)
def test_prepare_refuses_a_corpus(tiny, tmp_path, refused, case):
    content, say = CORPORA[case]
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    config = {"sources": [{"kind": "local", "path": str(corpus)}], "tokenizer": {"train_size": 200}}
    path = tiny.prepare_yaml(tmp_path / "c.yaml", **config)
    named = [] if case == "one document" else [str(corpus)]
    refused("prepare", path, "--workdir", tmp_path / "out" / "data", say=[*named, *say])


def test_prepare_refuses_another_config_in_the_same_place(tiny, tmp_path, refused):
    before = outside(tiny.data)
    argv = ["prepare", tiny.prepare_yaml(tmp_path / "c.yaml"), "--workdir", tiny.data]
    refused(*argv, "--seed", 1, "--seq-len", 64, say=[str(tiny.data), "seed", "seq_len", "choose another directory"])
    assert outside(tiny.data) == before


@pytest.fixture
def weights(pretrained, tmp_path):
    """A Hugging Face directory of a tiny BERT."""
    return shutil.copytree(pretrained / "hf", tmp_path / "weights")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
def test_finetune_refuses_a_label_outside_the_task(tiny, tmp_path, weights, refused):
    glue = shutil.copytree(tiny.glue, tmp_path / "glue")
    lines = (glue / "SST-2" / "dev.tsv").read_text().splitlines()
    lines[4] = lines[4][:-1] + "7"
    (glue / "SST-2" / "dev.tsv").write_text("\n".join(lines) + "\n")
    path = tiny.finetune_yaml(tmp_path / "c.yaml", glue=str(glue), init_from=str(weights))
    say = [str(glue / "SST-2" / "dev.tsv"), "row 5", "7", "0", "1"]
    refused("finetune", path, "--workdir", tmp_path / "run", say=say)


FINETUNE = {
    "unknown task": (["--tasks", "SST2"], ["'SST2'", "did you mean 'SST-2'?"]),
    "tasks with commas": (["--tasks", "MRPC,SST-2"], ["'MRPC,SST-2'", "write MRPC SST-2, apart"]),
    "seeds with commas": (["--seeds", "0,1"], ["--seeds", "'0,1'"]),
    "begun by others": (
        ["--workdir", "WEIGHTS"],
        ["holds README.md, config.json", "no config.yaml", "new or empty directory"],
    ),
    "no such glue": (["--glue", "./none"], ["./none", "no such folder"]),
    "too long": (["--max-len", "64"], ["max_len = 64", "32 positions"]),
    "no start": (["--init-from", ""], ["init_from is empty"]),
    "bad rate": (["--learning-rates", "0"], ["learning_rates: 0", "above 0"]),
    "bad seed": (["--seeds", "0", "-1"], ["seeds: -1"]),
    "include is no regex": (["--prune.include", "(kernel"], ["prune.include: '(kernel'", "no regular expression"]),
    "a dense run's exclude matches nothing": (
        ["--masks", "none", "--prune.exclude", "encodr/.*"],
        ["prune.exclude: 'encodr/.*'", "matches no parameter path", "the nearest is 'encoder/"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FINETUNE)
def test_finetune_refuses(tiny, tmp_path, weights, refused, case):
    argv, say = FINETUNE[case]
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(weights))
    argv = [weights if word == "WEIGHTS" else word for word in argv]
    refused("finetune", path, "--workdir", tmp_path / "run", *argv, say=say)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "finetune", "prune"])
@pytest.mark.parametrize("wrong", ["architecture", "weights cut", "weights missing"])
def test_other_weights_are_refused(tiny, tmp_path, weights, refused, command, wrong):
    if wrong == "architecture":
        change(weights / "config.json", model_type="electra", architectures=["ElectraForMaskedLM"])
        say = ["config.json", "electra", "bert, distilbert, roberta, xlm-roberta"]
    elif wrong == "weights cut":
        path = weights / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        say = ["model.safetensors", "fetch it again"]
    else:
        (weights / "model.safetensors").unlink()
        say = [str(weights), "no weights"]
    out = tmp_path / "out"
    argv = {
        "pretrain": [tiny.pretrain_yaml(tmp_path / "p.yaml", init_from=str(weights)), "--workdir", out],
        "finetune": [tiny.finetune_yaml(tmp_path / "f.yaml", init_from=str(weights)), "--workdir", out],
        "prune": [weights, out, "--sparsity", "0.5"],
    }
    refused(command, *argv[command], say=say)


@pytest.mark.slow
def test_a_start_of_another_shape_is_refused(tiny, tmp_path, weights, refused):
    """Also by a size that is the default, once it was asked for."""
    for size in (32, ModelConfig().hidden_size):
        path = tiny.pretrain_yaml(tmp_path / "p.yaml", init_from=str(weights), model={"hidden_size": size})
        refused("pretrain", path, "--workdir", tmp_path / "o", say=[f"model.hidden_size = {size}", "16", "remove"])
    plain = write_yaml(tmp_path / "plain.yaml", {"command": "pretrain", "init_from": str(weights)})
    argv = ["pretrain", plain, "--workdir", tmp_path / "o", "--data.path", tiny.data, "--model.hidden-size", "768"]
    refused(*argv, say=["model.hidden_size = 768", "16", "remove"])


def test_a_directory_of_someone_else_is_refused(tiny, tmp_path, refused):
    (tmp_path / "home").mkdir()
    for name in (".profile", "run.log"):
        (tmp_path / "home" / name).touch()
    check_own(tmp_path / "home")  # a shell writes there before a run does
    (tmp_path / "home" / "thesis.txt").touch()
    path = tiny.pretrain_yaml(tmp_path / "p.yaml")
    study = {"command": "study", "data": "x", "tasks": [{"name": "SST-2"}]}
    home = tmp_path / "home"
    for argv in (["pretrain", path], ["study", write_yaml(tmp_path / "s.yaml", study)], ["demo"]):
        refused(*argv, "--workdir", home, say=["home: holds thesis.txt and no config.yaml", "new or empty"])
    prepare = ["prepare", tiny.prepare_yaml(tmp_path / "d.yaml"), "--workdir", home]
    for argv in (prepare, [*prepare, "--dry-run"]):
        refused(*argv, say=["home: holds thesis.txt and no manifest.json", "new or empty"])


PRUNE = {
    "sparsity above 1": (["--sparsity", "70"], ["--sparsity 70", "[0, 1]: 0.7 for 70 %"]),
    "sparsity no number": (["--sparsity", "half"], ["--sparsity", "half"]),
    "sparsity missing": ([], ["--sparsity"]),
    "no such scope": (["--scope", "row"], ["--scope", "'row'", "matrix"]),
    "no gradients": (
        ["--criterion", "taylor"],
        ["--criterion = taylor", "one shot makes none", "use one of magnitude, random"],
    ),
    "include matches nothing": (["--include", "encodr/.*"], ["--include: 'encodr/.*'", "the nearest is 'encoder/"]),
    "include is no regex": (["--include", "(kernel"], ["--include: '(kernel'", "no regular expression"]),
    "exclude matches nothing": (["--exclude", "encodr/.*"], ["--exclude: 'encodr/.*'", "the nearest is 'encoder/"]),
    "all excluded": (["--exclude", ".*"], ["--exclude = ['.*']", "exclude less"]),
    "amount above 1": (["--amount", "encoder/.*", "70"], ["--amount encoder/.* 70", "[0, 1]: 0.7 for 70 %,"]),
    "blocks do not fit": (["--structure", "block(5, 5)"], ["--structure: ", "(5, 5) do not divide"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PRUNE)
def test_prune_refuses(tmp_path, weights, refused, case):
    argv, say = PRUNE[case]
    argv = argv if "--sparsity" in argv or case == "sparsity missing" else ["--sparsity", "0.5", *argv]
    refused("prune", weights, tmp_path / "out", *argv, say=say)


def test_usage_errors(tiny, tmp_path, refused):
    path = tiny.pretrain_yaml(tmp_path / "c.yaml")
    refused("pretain", path, say=["'pretain' is no command", "pretrain"])
    refused("pretrain", path, say=["--workdir is missing"])
    refused("pretrain", path, "--workdir", "", say=["--workdir is missing or empty"])
    refused("pretrain", path, "--workdir", "gs://b/run", say=["--workdir gs://b/run: pretrain does not write to gs://"])
    refused("pretrain", path, "--workdir", say=["--workdir", "expected one argument"])
    refused("pretrain", "--workdir", tmp_path / "run", say=["no config", "jaxprune pretrain --help"])
    refused("pretrain", tmp_path / "none.yaml", "--workdir", tmp_path / "run", say=["none.yaml", "no such file"])
    refused("finetune", path, "--workdir", tmp_path / "run", say=["for `jaxprune pretrain`, not `jaxprune finetune`"])
    (tmp_path / "file").write_text("x")
    refused("pretrain", path, "--workdir", tmp_path / "file" / "run", say=[f"{tmp_path}/file/run", "choose another"])
    prepare = tiny.prepare_yaml(tmp_path / "p.yaml")
    refused("prepare", prepare, "--workdir", tmp_path / "file" / "run", say=[f"{tmp_path}/file/run", "choose another"])


def test_several_errors_are_said_at_once(tiny, tmp_path, capsys):
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", stepz=1, seed=-1, prune={"sparsity": 2})
    assert main(["pretrain", str(path), "--workdir", str(tmp_path / "run")]) == EXIT_USER
    assert [re.search(r"c.yaml: ([\w.]+):", line)[1] for line in capsys.readouterr().err.splitlines()] == [
        "seed",
        "prune.sparsity",
        "stepz",
    ]
    assert not (tmp_path / "run").exists()


def test_a_defect_keeps_its_traceback(tiny, tmp_path, monkeypatch):
    """Only errors that jaxprune raises on purpose become one line: a ValueError of Python in its own frames is none."""
    monkeypatch.setattr(PretrainData, "predicted_share", "many")
    with pytest.raises(ValueError, match="Unknown format code '%'") as error:
        main(["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml")), "--dry-run"])
    assert type(error.value) is ValueError
    assert Path(error.traceback[-1].path).is_relative_to(Path(jaxprune.__file__).parent)


def test_a_mistake_of_the_user_may_be_traced(tiny, tmp_path, monkeypatch):
    argv = ["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml")), "--dry-run", "--steps", "0"]
    assert main(argv) == EXIT_USER
    monkeypatch.setenv("JAXPRUNE_TRACEBACK", "1")
    with pytest.raises(UserError, match="steps"):
        main(argv)


NOBODY_READS = ["--help", "--version", "pretrain --help", "finetune -h", "prune --help", "plan --help"]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", NOBODY_READS)
def test_a_closed_pipe_is_no_error(tiny, words, buffered):
    """As `| head -1` leaves it, or worse: nobody reads at all."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "jaxprune", *words.split()]
    environment = tiny.environment() | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_breaks_elsewhere_is_an_error(tiny, tmp_path, monkeypatch):
    """Only standard output's reader may leave; a worker's pipe that breaks is no success."""

    def lost(self):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(PretrainData, "predicted_share", property(lost))
    monkeypatch.setattr(sys, "stdout", (tmp_path / "out").open("w"))
    with sys.stdout, pytest.raises(BrokenPipeError):
        main(["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml")), "--dry-run"])


@pytest.mark.parametrize(
    ("words", "spec"),
    [
        ("--distributed c.yaml", "auto"),
        ("c.yaml --distributed", "auto"),
        ("--distributed c.yaml --seed 3", "auto"),
        ("--distributed=127.0.0.1:99,2,1 c.yaml", "127.0.0.1:99,2,1"),
        ("c.yaml --distributed 127.0.0.1:99,2,1 --seed 3", "127.0.0.1:99,2,1"),
    ],
)
def test_a_job_finds_its_config(tiny, tmp_path, monkeypatch, words, spec):
    from jaxprune import cli

    calls = []
    monkeypatch.setattr(cli, "_join", calls.append)
    monkeypatch.setattr(
        "jaxprune.experiments.pretrain.pretrain", lambda config, workdir, **_: calls.append((config.seed, workdir))
    )
    monkeypatch.chdir(tmp_path)
    tiny.pretrain_yaml(tmp_path / "c.yaml", seed=7)
    assert main(["pretrain", *words.split(), "--workdir", "run"]) == 0
    assert calls == [spec, (3 if "--seed" in words else 7, Path("run"))]


@pytest.mark.parametrize(("heard", "code"), [(True, 1), (False, EXIT_PEER)])
def test_a_lost_peer_is_known_by_whatever_call_notices_it(monkeypatch, capsys, heard, code):
    """A collective that failed, behind whatever it is wrapped in; any other defect as soon as a peer is silent."""

    def wrapped():
        try:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: barrier async_write_complete")
        except jax.errors.JaxRuntimeError as error:
            raise CheckpointError("checkpoint under /run: Timed out") from error

    def defect():
        raise TimeoutError("nobody answered")

    monkeypatch.setattr("jaxprune.experiments.environment.peer_is_lost", lambda: not heard)
    assert exit_code_of(wrapped, "jaxprune pretrain", job=True) == EXIT_PEER
    assert capsys.readouterr().err.startswith("jaxprune pretrain: a peer process was lost; run the same command on all")
    assert exit_code_of(defect, "jaxprune pretrain", job=True) == code
    assert ("Traceback" in capsys.readouterr().err) == heard


FULL = """
import resource, sys
from jaxprune.cli import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 1000, 6000])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_blocks(tiny, tmp_path, weights, limit):
    argv = ["prune", weights, tmp_path / "out", "--sparsity", "0.8"]
    before = outside(tmp_path)
    command = [sys.executable, "-c", FULL, str(limit), *map(str, argv)]
    environment = tiny.environment()
    del environment["JAX_COMPILATION_CACHE_DIR"]  # whose files meet the limit too
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (EXIT_DISK, ""), done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("jaxprune prune: "), done.stderr
    assert "File too large; make room or choose another disk, and run again" in done.stderr
    assert str(weights) not in done.stderr  # what could be read is not to blame
    assert outside(tmp_path) == before
    assert main([*map(str, argv)]) == 0 and (tmp_path / "out" / "model.safetensors").exists()


LAZY = """
import sys, time
began = time.process_time()
from jaxprune.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
heavy = [name for name in ("jax", "flax", "optax", "torch", "transformers", "datasets", "grain") if name in sys.modules]
print("\\n", code, time.process_time() - began, *heavy)
"""


@pytest.mark.parametrize("case", ["help", "help of a command", "config error", "option error", "no command"])
def test_answers_quickly_and_without_jax(tiny, tmp_path, case):
    path = tiny.pretrain_yaml(tmp_path / "c.yaml")
    argv = {
        "help": ["--help"],
        "help of a command": ["pretrain", "--help"],
        "config error": ["pretrain", path, "--workdir", tmp_path / "run", "--steps", "0"],
        "option error": ["pretrain", path, "--workdir", tmp_path / "run", "--stepz", "1"],
        "no command": ["pretain"],
    }[case]
    done = subprocess.run(
        [sys.executable, "-c", LAZY, *map(str, argv)],
        capture_output=True,
        text=True,
        env=tiny.environment() | {"COLUMNS": "100"},
        check=True,
    )
    code, seconds, *heavy = done.stdout.splitlines()[-1].split()
    if case == "help of a command":  # it lists the registries' names, whose rooms need JAX
        assert not {*heavy} & {"torch", "transformers", "datasets", "grain"}
    else:
        assert heavy == [] and float(seconds) < 1.5
    assert code == ("0" if "help" in case else "2")
    if case == "help of a command":
        assert "--prune.sparsity" in done.stdout and "Final fraction in [0, 1]" in done.stdout
    if "error" in case or case == "no command":
        assert done.stderr.count("\n") == 1


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == jaxprune.__version__
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command} " in said for command in ("demo", "prepare", "pretrain", "finetune", "prune"))
    assert main([]) == EXIT_USER


def test_dry_run_of_prepare(tiny, tmp_path, capsys):
    path = tiny.prepare_yaml(tmp_path / "c.yaml")
    before = outside(tmp_path)
    assert main(["prepare", str(path), "--workdir", str(tmp_path / "data"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "160 pieces, trained on the corpus" in said and str(tiny.corpus) in said and "32 tokens" in said
    assert outside(tmp_path) == before


def test_dry_run_of_pretrain(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path = tiny.pretrain_yaml(tmp_path / "c.yaml")
    before = outside(tmp_path)
    assert main(["pretrain", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"encoder/layer_00/attention/query/kernel +│? *16 x 16 *│? *256 *│? *yes", said), said
    # Embeddings, four attention matrices, two of the feed-forward layer, pooler.
    prunable = 160 * 16 + 4 * 16 * 16 + 2 * 16 * 32 + 16 * 16
    assert re.search(rf"the 8 prunable ones +{prunable:,} ", said)
    assert f"{12 * 8 * 32:,} (" in said  # tokens
    assert "3 between step 4 and 8, to 0.7" in said and "time, estimated" in said
    # Every example has 15 % of its own tokens predicted, rounded up or down, and at most of its 32.
    share, most = re.search(r"predicted +(\d+\.\d)% of the tokens, at most (\d+) of an example", said).groups()
    assert 13 < float(share) < 17 and most == "5"
    assert outside(tmp_path) == before


@pytest.mark.usefixtures("untimed")
def test_the_dry_run_says_the_share_that_is_predicted(tiny, tmp_path, capsys):
    """Too few predictions for the length are seen before the run, not after."""
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", data={"max_predictions": 1})
    assert main(["pretrain", str(path), "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    share, most = re.search(r"predicted (\d+\.\d)% of the tokens, at most (\d+) of an example", text).groups()
    assert 3 < float(share) < 6 and most == "1"


EXAMPLES = {"n:m": "2:4", "block(rows, columns)": "block(4, 2)"}
NAMES = {
    "criterion": [*CRITERIA],
    "scope": [
        *SCOPES,
        *dict.fromkeys(name for model in ARCHITECTURES.values() for name in model.scopes(ModelConfig())),
    ],
    "distribution": [*DISTRIBUTIONS],
    "structure": [*STRUCTURES, "heads", "neurons", "heads+neurons"],
    "method": [*METHODS],
    "schedule": [*SCHEDULES],
}


@pytest.mark.parametrize("command", ["pretrain", "finetune", "prune"])
def test_every_name_of_the_registries_is_offered(monkeypatch, capsys, command):
    assert {"layer", "head"} <= {*NAMES["scope"]} and {"movement", "taylor"} <= {*NAMES["criterion"]}
    monkeypatch.setenv("COLUMNS", "120")
    assert main([command, "--help"]) == 0
    text = " ".join(re.sub(r"[\u2500-\u257f]", " ", capsys.readouterr().out).split())
    for argument, names in NAMES.items():
        if command == "prune" and argument != "schedule":
            names = [*names, *BY_INPUTS] if argument == "criterion" else names
            assert f" --{argument} NAME one of {', '.join(names)}; default: " in text
        elif command != "prune":
            described = re.search(rf" --prune\.{argument} STR (.*?) \(default: ", text)[1]
            assert described.endswith(f". One of: {', '.join(names)}.")
    if command != "prune":
        assert f" One of: {', '.join(ARCHITECTURES)}. (default: bert)" in text
    if command == "finetune":
        assert f"here by their names. One of: {', '.join(TASKS)}. (default: SST-2 CoLA)" in text


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("argument", "name"), [(key, name) for key, names in NAMES.items() for name in names])
def test_every_name_of_the_registries_passes_a_dry_run(tiny, tmp_path, argument, name):
    prune = {argument: EXAMPLES.get(name, name), "sparsity": 0.5}
    assert main(["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml", prune=prune)), "--dry-run"]) == 0


@pytest.mark.usefixtures("untimed")
def test_a_new_criterion_is_offered_and_taken(tiny, tmp_path, monkeypatch, capsys):
    """One row from outside the package: --help, configs and errors read the registry, whatever they listed before."""
    monkeypatch.setenv("COLUMNS", "120")
    for offered in (False, True):
        if offered:
            monkeypatch.setitem(CRITERIA, "negative", CRITERIA["magnitude"])
        assert main(["pretrain", "--help"]) == 0
        assert ("obert, negative." in " ".join(capsys.readouterr().out.split())) == offered
    path = tiny.pretrain_yaml(tmp_path / "c.yaml", prune={"criterion": "negative"})
    assert main(["pretrain", str(path), "--dry-run"]) == 0
    assert main(["pretrain", str(path), "--dry-run", "--prune.criterion", "positive"]) == EXIT_USER
    assert "random, movement, taylor, fisher, obert, negative; the nearest is 'negative'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_dry_run_of_finetune(tiny, tmp_path, weights, capsys):
    path = tiny.finetune_yaml(tmp_path / "c.yaml", init_from=str(weights), learning_rates=[1e-3, 2e-3], epochs=2)
    before = outside(tmp_path)
    assert main(["finetune", str(path), "--workdir", str(tmp_path / "run"), "--dry-run"]) == 0
    line = r"SST-2: 48 train, 27 dev examples, \d+\.\d tokens on average, \d+ at most; 2 runs of 6 steps of 16 examples"
    assert re.search(line + r" in \d+ rows of \d+ tokens", capsys.readouterr().out)
    assert outside(tmp_path) == before


@pytest.mark.slow
def test_a_real_process_says_one_line(tiny, tmp_path):
    done = tiny.run("pretrain", tiny.pretrain_yaml(tmp_path / "c.yaml"), "--workdir", tmp_path / "r", "--seed", "-1")
    assert (done.code, done.out) == (EXIT_USER, "") and done.err.count("\n") == 1
    assert "seed" in done.err and "-1" in done.err and not (tmp_path / "r").exists()
