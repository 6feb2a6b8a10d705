"""Input made to exhaust time or memory: refused in one line within seconds and 500 MB."""

import ast
import gzip
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optax
import pyarrow
import pyarrow.parquet as pq
import pytest
import tokenizers

import jaxprune
from jaxprune.cli import EXIT_USER, main
from jaxprune.config import PretrainConfig
from jaxprune.config.sections import SourceConfig
from jaxprune.config.task import OwnTaskConfig
from jaxprune.data import resume_point, tokenizer
from jaxprune.data.corpus import documents
from jaxprune.data.data_manifest import read_manifest, special_tokens
from jaxprune.data.own_task import read_task
from jaxprune.data.resume_point import RESUME_POINT
from jaxprune.data.text_lines import MAX_BYTES
from jaxprune.errors import UserError
from jaxprune.exit_code import exit_code_of
from jaxprune.experiments.matrix import Job
from jaxprune.experiments.study import select
from jaxprune.models import architecture_named
from jaxprune.pruning import init_masks
from jaxprune.training.checkpoint import step_damage
from jaxprune.training.manifest import is_damaged
from jaxprune.training.manifest import read_manifest as workdir_manifest
from jaxprune.training.optimizer import but_frozen
from jaxprune.training.workdir import Workdir, read_records

SECONDS, BYTES = 5, 500 << 20
"""Of CPU time, and of memory."""
PATHS = {"encoder": {f"layer_{n:02d}": {"attention": {"query": {"kernel": np.zeros((4, 4))}}} for n in range(12)}}


@contextmanager
def limits():
    """A block that may take some seconds and 500 MB: of address space, so that nothing is taken and given back."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < SECONDS


ENDLESS = ["([a-z_0-9/]+)+X", "(.|[a-z])*X"]


@pytest.mark.parametrize("regex", ENDLESS)
def test_a_regex_that_backtracks_for_ever(regex):
    with limits(), pytest.raises(UserError, match=r"include: '.*' takes too long to match"):
        init_masks(PATHS, [regex])


def test_every_regex_of_a_user_is_bounded():
    jobs = [Job("sst-2/pruned-s0.7-seed0/" + "a" * 40, PretrainConfig())]
    for call in (
        lambda: init_masks(PATHS, [".*kernel"], [ENDLESS[0]]),
        lambda: but_frozen(optax.identity(), [ENDLESS[0]]).init(PATHS),
        lambda: select(jobs, ENDLESS[0], ""),
    ):
        with limits(), pytest.raises(UserError, match="takes too long to match"):
            call()


@pytest.mark.parametrize("regex", ["(" * 100_000, "a{99999999999999999999}", "[a"])
def test_a_regex_that_is_none(regex):
    with limits(), pytest.raises(UserError, match=r"include: .* is no regular expression"):
        init_masks(PATHS, [regex])


def sources(tmp_path, name, content):
    """A corpus of one file."""
    (tmp_path / name).write_bytes(content)
    return SourceConfig(kind="local", path=str(tmp_path / name))


MEMBER = gzip.compress(bytes(MAX_BYTES // 4), 1)
CORPORA = {
    "one line of 1 GB in a gz file": ("a.txt.gz", MEMBER * 256, "line 1: longer than 16 MiB"),
    "a word of 20 MB": ("a.txt", b"a" * 20_000_000, "line 1: longer than 16 MiB"),
    "a cell that never ends": (
        "a.csv",
        b'text\n"' + (b"a" * 999 + b"\n") * 20_000,
        "a.csv:2: a value longer than 16 MiB",
    ),
    "an integer of 5,000 digits": (
        "a.jsonl",
        b'{"text": ' + b"9" * 5000 + b"}",
        "a.jsonl:1: not JSON (Exceeds the limit",
    ),
    "lists in lists": ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl:1: not JSON (maximum recursion depth"),
}


@pytest.mark.parametrize("case", CORPORA)
def test_a_corpus(tmp_path, case):
    name, content, message = CORPORA[case]
    source = sources(tmp_path, name, content)
    with limits(), pytest.raises(UserError) as error:
        for _ in documents(source):
            pass
    assert message in str(error.value)


def table_of(path, texts, **options):
    """A Parquet file of these texts."""
    pq.write_table(pyarrow.table({"text": texts}), path, compression="zstd", **options)
    return SourceConfig(kind="local", path=str(path))


def test_a_table_of_one_long_text_many_times(tmp_path):
    once = pyarrow.DictionaryArray.from_arrays(np.zeros(300, np.int32), ["a" * (MAX_BYTES // 2)])
    source = table_of(tmp_path / "a.parquet", once)  # a batch of 256 would be 2 GB
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    with limits():
        assert [len(text) for text in itertools.islice(documents(source), 9)] == [MAX_BYTES // 2] * 9


def test_a_table_that_unpacks_to_gigabytes(tmp_path):
    texts = [f"{number}" + "a" * (MAX_BYTES // 2) for number in range(34)]
    source = table_of(tmp_path / "a.parquet", texts, use_dictionary=False)
    with limits(), pytest.raises(UserError, match=r"a\.parquet: [\d,]+ bytes unpack to [\d,]+ at once; write"):
        next(iter(documents(source)))


def test_many_lines_in_a_small_file_take_no_memory(tmp_path):
    """They are a corpus like any other: `max_chars` and `max_documents` bound it."""
    member = gzip.compress(b"some words and an end.\n\n" * 400_000)
    source = sources(tmp_path, "a.txt.gz", member * 30)  # 300 MB
    assert (tmp_path / "a.txt.gz").stat().st_size < 2 << 20
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(1 for _ in itertools.islice(documents(source), 1_500_000))
    assert count == 1_500_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 50_000


def own(path, **more):
    """A task of one's own that is read from a file."""
    return OwnTaskConfig(name="mine", train=str(path), dev=str(path), text="text", label="label", **more)


TABLES = {
    "a TSV line of 100 MB": ("a.tsv", None, {}, "a.tsv, line 2: longer than 16 MiB"),
    "a JSON line of 100 MB": ("a.jsonl", None, {}, "a.jsonl, line 2: longer than 16 MiB"),
    "a label of 5,000 digits": ("a.csv", b"text,label\na b,1\n", {"labels": ("1", "2")}, "is not one of labels 1, 2"),
    "a number of 5,000 digits": ("a.jsonl", b'{"text": "a", "label": %d}\n', {}, "line 2: not JSON (Exceeds the limit"),
    "a score of 5,000 digits": ("a.csv", b"text,label\n", {"kind": "regression"}, "is not a number. Repair or remove"),
    "a score of 50 digits": ("a.csv", b"text,label\n", {"kind": "regression"}, "is not a number. Repair or remove"),
    "a score of 400 digits": ("a.jsonl", b"", {"kind": "regression"}, "is not a number. Repair or remove the row"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_a_task(tmp_path, case, capsys):
    name, begin, more, message = TABLES[case]
    digits = b"9" * next((count for count in (50, 400) if f" {count} " in case), 5000)
    path = tmp_path / name
    if begin is None:
        path.write_bytes(b"text\tlabel\n" if name.endswith("tsv") else b'{"text": "a", "label": 1}\n')
        with path.open("r+b") as file:
            file.truncate(100 << 20)  # zeros, which no disk holds
    elif name.endswith("csv"):
        path.write_bytes(begin + b"c d," + digits + b"\n")
    else:
        path.write_bytes(b'{"text": "a", "label": 1}\n{"text": "b", "label": %s}\n' % digits)

    def read():
        read_task(own(path, **more), "")
        return 0

    with limits():
        assert exit_code_of(read, "jaxprune finetune") == EXIT_USER
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and len(err) < 2500


def test_classes_called_by_numbers_of_5000_digits(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + f"a,{'9' * 5000}\nb,{'8' * 5000}\n" * 2)
    with limits():
        train, _ = read_task(own(tmp_path / "a.csv"), "")
    assert train.labels.tolist() == [1, 0, 1, 0]


def bert_json(**changes):
    """A tokenizer.json with parts of it replaced."""
    special = architecture_named("bert").special_tokens
    bert = tokenizers.BertWordPieceTokenizer({piece: n for n, piece in enumerate([*special, "a", "b"])})
    made = json.loads(bert.to_str())
    for key, value in changes.items():
        made[key] = made[key] | value if isinstance(made[key], dict) and key == "model" else value
    return json.dumps(made).encode()


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


SPECIAL = [*architecture_named("bert").special_tokens]
BOMBS = {
    "ids of 10^8": (
        {"model": {"vocab": {p: n for n, p in enumerate(SPECIAL)} | {"a": 10**8}}},
        "largest id is 100,000,000",
    ),
    "a replacement": ({"normalizer": replace("a", "a" * 100_000)}, "normalizer makes a few characters very many"),
    "a replacement by regex": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a?"}, "content": "b" * 100}},
        "normalizer makes a few characters very many",
    ),
    "forty doublings": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "aa")] * 40}},
        "normalizer makes a few characters very many",
    ),
    "text before each": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "normalizer makes a few"),
    "a prefix": ({"model": {"continuing_subword_prefix": "#" * 10**6}}, "prefix has 1,000,000 characters"),
    "words without end": ({"model": {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word is 1,000,000,000"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_tokenizer(case):
    changes, message = BOMBS[case]
    content = bert_json(**changes)
    with limits(), pytest.raises(UserError, match=message):
        tokenizer.parse(content, architecture_named("bert").special_tokens, "there")


def test_a_tokenizer_file_of_100_mb(tmp_path, tiny):
    (tmp_path / "vocab.txt").touch()
    with (tmp_path / "vocab.txt").open("r+b") as file:
        file.truncate(100 << 20)
    config = tiny.prepare_yaml(tmp_path / "c.yaml", tokenizer={"path": str(tmp_path), "train_size": 0})
    with limits():
        assert main(["prepare", str(config), "--workdir", str(tmp_path / "out")]) == EXIT_USER
    assert not (tmp_path / "out").exists()


def packed(**arrays):
    """An .npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def bomb():
    """An .npz file of an array of zeros, 4 GB as it says, packed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (4 << 30,)})
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("text.npy", "w", force_zip64=True) as part,
    ):
        part.write(header.getvalue())
        for _ in range(20):
            part.write(bytes(1 << 20))
    return content.getvalue()


def huge():
    """An .npz file whose array has 10^12 numbers, as its header says."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("text.npy", header.getvalue())
    return content.getvalue()


@pytest.mark.parametrize("case", ["objects", "foreign names", "wrong shapes", "packed", "huge", "nothing", "text"])
def test_a_resume_point(tmp_path, caplog, case):
    resume_point.save(tmp_path, {"counts": {"a": 1}, "tokens": np.arange(5)})
    path = tmp_path / RESUME_POINT
    assert resume_point.load(tmp_path)["tokens"].tolist() == [0, 1, 2, 3, 4]
    with np.load(path) as file:
        good = dict(file)
    path.write_bytes(
        {
            "objects": lambda: packed(text=np.array([print], object)),
            "foreign names": lambda: packed(**good, other=np.zeros(3)),
            "wrong shapes": lambda: packed(**good | {"array_0": good["array_0"].reshape(5, 1)}),
            "packed": bomb,
            "huge": huge,
            "nothing": lambda: b"",
            "text": lambda: packed(text=np.zeros(3), sha256=np.zeros(32)),
        }[case]()
    )
    with limits():
        assert resume_point.load(tmp_path) is None
    assert f"{RESUME_POINT} is damaged" in caplog.text


LONG = "/" + "x" * 5000
COMMANDS = {
    "prepare": ["{prepare}", "--workdir", LONG],
    "pretrain": ["{pretrain}", "--workdir", LONG],
    "a config": ["pretrain", LONG + ".yaml", "--workdir", "{out}"],
    "data": ["{pretrain}", "--workdir", "{out}", "--data.path", LONG],
    "init_from": ["{finetune}", "--workdir", "{out}", "--init-from", LONG],
    "a tokenizer": ["{prepare}", "--workdir", "{out}", "--tokenizer.path", LONG, "--tokenizer.train-size", "0"],
    "predict": ["predict", LONG, LONG],
    "report": ["report", LONG],
    "prune": ["prune", LONG, LONG, "--sparsity", "0.5"],
    "inspect": ["inspect", LONG],
    "diff": ["diff", LONG, LONG],
    "check": ["check", LONG],
    "doctor": ["doctor", "--workdir", LONG],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_path_of_5000_characters(tiny, tmp_path, capsys, case):
    configs = {
        "prepare": tiny.prepare_yaml(tmp_path / "prepare.yaml"),
        "pretrain": tiny.pretrain_yaml(tmp_path / "pretrain.yaml"),
        "finetune": tiny.finetune_yaml(tmp_path / "finetune.yaml"),
    }
    words = [word.format(**configs, out=tmp_path / "out") for word in COMMANDS[case]]
    words = [words[0].rpartition("/")[2].removesuffix(".yaml"), *words] if "/" in words[0] else words
    began = time.process_time()
    code, err = main(words), capsys.readouterr()
    assert time.process_time() - began < SECONDS
    if case == "doctor":  # says of each thing what is wrong
        return
    assert code == EXIT_USER and not (tmp_path / "out").exists(), err
    assert err.err.count("\n") == 1 and "x" * 200 in err.err and len(err.err) < 2500, err.err


def test_nothing_here_runs_what_it_reads():
    """No eval, exec, pickle, shell or code of a model in the package; YAML with a safe loader alone."""
    for path in Path(jaxprune.__file__).parent.rglob("*.py"):
        if path.name == "tokenizer_pool.py":  # talks to processes that it starts itself
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path
            if isinstance(node, ast.Call):
                assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")), path
                words = {word.arg: word.value for word in node.keywords}
                assert not {"shell", "trust_remote_code"} & {*words}, path
                if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "yaml.load":
                    assert ast.unparse(words["Loader"]) == "_StrictLoader", path
                assert ast.unparse(words.get("weights_only", ast.Constant(True))) == "True", path


@pytest.mark.parametrize(
    "changes",
    [
        {"model": []},
        {"model": 1.5},
        {"added_tokens": 1.5},
        {"added_tokens": ["x"]},
        {"added_tokens": [{"id": []}]},
        {"model": "[" * 100_000},
    ],
)
def test_tokenizer_files_with_values_of_another_kind(tmp_path, changes):
    special = architecture_named("bert").special_tokens
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(bert_json()) | changes))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match=r"copy (it|them) again"):
        tokenizer.load(str(tmp_path), special=special)


@pytest.mark.parametrize("number", ["inf", "\ud800", "1e5"])
def test_added_tokens_whose_numbers_are_none(tmp_path, number):
    (tmp_path / "tokenizer.json").write_bytes(bert_json())
    added = {number: {"content": "[PAD]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "added_tokens_decoder": added})
    )
    with pytest.raises(UserError, match=r"copy (it|them) again"):
        tokenizer.load(str(tmp_path), special=architecture_named("bert").special_tokens)


def deep(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" * 100_000)
    return path


def test_json_nested_too_deeply_is_damage_wherever_it_lies(tmp_path):
    record = deep(tmp_path / "checkpoints/4/integrity.json")
    assert "cannot be read" in str(step_damage(tmp_path, 4))
    for files in ([], {"a": 3}, {"a": []}, {"a": [1]}):
        record.write_text(json.dumps({"files": files}))
        (record.parent / "a").write_text("1")
        assert step_damage(tmp_path, 4)
    deep(tmp_path / "contents.json")
    assert is_damaged(workdir_manifest(tmp_path))
    settings = deep(tmp_path / "tokenizer/tokenizer_config.json")
    with pytest.raises(UserError, match=f"{settings}: does not say the special tokens"):
        special_tokens(tmp_path, {})
    files = {"tokenizer.json": bert_json(), "tokenizer_config.json": settings.read_bytes()}
    with pytest.raises(UserError, match=r"tokenizer_config.json is damaged .* copy it again"):
        tokenizer.from_files(files, architecture_named("bert").special_tokens, "there")


def test_a_token_for_the_unknown_that_is_added_and_no_piece():
    made = json.loads(bert_json())
    number = made["model"]["vocab"].pop("[UNK]")
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] != "[UNK]"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    made["added_tokens"].append({"id": number, "content": "[UNK]", "special": True} | flags)
    with pytest.raises(UserError, match=r"lack \[UNK\]"):
        tokenizer.parse(json.dumps(made).encode(), architecture_named("bert").special_tokens, "there")


def test_an_unknown_word_without_a_piece():
    content = bert_json(model={"unk_token": "[NONE]"})
    with pytest.raises(UserError, match=r"lack \[NONE\]"):
        tokenizer.parse(content, architecture_named("bert").special_tokens, "there")


def test_a_length_that_is_no_number():
    special = architecture_named("bert").special_tokens
    files = {"tokenizer.json": bert_json(), "tokenizer_config.json": b'{"model_max_length": [1]}'}
    vocab = tokenizer.from_files(files, special, "there")
    assert json.loads(tokenizer.files(vocab, max_length=32)["tokenizer_config.json"])["model_max_length"] == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {"a": 3}},
        {"files": {"a": {}}},
        {"special_tokens": ["x"]},
        {"special_tokens": {"unk": "[UNK]"}},
        {"files": {"a": {"size": "1", "sha256": "x"}}},
    ],
)
def test_a_manifest_with_values_of_another_kind(tiny, tmp_path, changes):
    good = json.loads((tiny.data / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(good | changes))
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        read_manifest(tmp_path)


def test_records_and_state_without_anything_that_vouches_for_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xee\xff\n{"step": "x"}\n[]\n{"step": 2}\n{"ste')
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
    for name, read in (("run.json", Workdir.starts), ("result.json", Workdir.result)):
        for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
            (tmp_path / name).write_bytes(content)
            with Workdir(tmp_path) as workdir, pytest.raises(UserError, match=f"{name}: damaged"):
                read(workdir)
            (tmp_path / name).unlink()
    with Workdir(tmp_path) as workdir:
        workdir.rewind("metrics.jsonl", 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_the_output_cannot_say_are_escaped(tiny, pretrained, tmp_path, encoding):
    folder = tmp_path / os.fsdecode(b"a\xff")
    shutil.copytree(pretrained / "hf", folder)
    environment = tiny.environment() | {"PYTHONIOENCODING": encoding}
    words = [sys.executable, "-m", "jaxprune", "check", str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith(b"a\\udcff: as it was written\n"), done
