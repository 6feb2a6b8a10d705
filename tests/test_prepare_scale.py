"""Preparing a large corpus: killed and resumed to the same bytes, in bounded memory, on many cores, in a bucket."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.config import DataConfig, PrepareConfig, SourceConfig, TokenizerConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import bucket, data_manifest, mlm, resume_point, split_writer, tokenizer_pool, written_names
from jaxprune.data import prepare as preparing
from jaxprune.data.bucket import any_path
from jaxprune.data.corpus import Reader, documents
from jaxprune.data.example_shards import ExampleShards
from jaxprune.data.resume_point import RESUME_POINT
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
WORDS = [f"word{i}" for i in range(500)]
VOCAB = [*BERT, ".", *WORDS]


def prepare(cfg, out):
    return preparing.prepare(cfg, out, BERT)


def texts(count, seed=0, sentences=(1, 12)):
    """Documents of random words."""
    rng = random.Random(seed)
    return [
        " ".join(
            " ".join(rng.choices(WORDS, k=rng.randint(3, 14))).capitalize() + "."
            for _ in range(rng.randint(*sentences))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sources of every kind: two parquet files, lines of a text file, a folder for `datasets`; and a vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "table").mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        rows = [*texts(90, seed), "", None, *texts(30, seed + 10)]
        pq.write_table(pa.table({"text": rows}), folder / "table" / f"{name}.parquet", row_group_size=40)
    (folder / "lines.txt").write_text("\n\n".join("\n".join(texts(5, seed)) for seed in range(20, 40)))
    (folder / "vocab").mkdir()
    (folder / "vocab" / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder


def config(corpus, **changes):
    settings = {
        "sources": (
            SourceConfig(path=str(corpus / "table")),
            SourceConfig(path=str(corpus / "lines.txt"), paragraphs=True, max_documents=93),
            SourceConfig(kind="hub", path=str(corpus / "table"), max_chars=40_000),
            SourceConfig(kind="hub", path=str(corpus / "table"), streaming=False),
        ),
        "tokenizer": TokenizerConfig(path=str(corpus / "vocab")),
        "seq_len": 32,
        "dev_fraction": 0.2,
        "shard_examples": 150,
        "duplicates": 2,
        "processes": 1,
    }
    return PrepareConfig(**{**settings, **changes})


@pytest.fixture
def small(monkeypatch):
    """Tiny buffers and chunks, so that a small corpus has many."""
    monkeypatch.setattr(split_writer, "_BUFFER_TOKENS", 3000)
    monkeypatch.setattr(preparing, "_CHUNK_CHARS", 4000)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def fail_at(monkeypatch, count):
    """Make the `count`-th file written from now on fail half-way."""
    write, left = bucket.write, [count]

    def failing(path, content):
        left[0] -= 1
        if left[0] == 0:
            if isinstance(path, Path):
                path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(bucket, "write", failing)


# Sources


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_reader_goes_on_from_any_row(corpus, at):
    """Also through JSON, as a file holds it; rows of the sources before are not read again."""
    sources = config(corpus).sources[at : at + 2]
    whole = Reader(sources)
    rows, states = [], [whole.state()]
    for row in whole.rows():
        rows.append(row)
        states.append(json.loads(json.dumps(whole.state())))
    assert [text for row in rows for text in row] == [text for source in sources for text in documents(source)]
    for place in [*sorted(random.Random(at).sample(range(len(states)), 12)), len(rows)]:
        rest = Reader(sources, states[place])
        assert list(rest.rows()) == rows[place:], place
        assert rest.blank == whole.blank


def test_sources_in_a_bucket(corpus):
    fs, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    fs.put(str(corpus / "table"), f"/{name}/table", recursive=True)
    fs.put(str(corpus / "lines.txt"), f"/{name}/lines.txt")
    for there, here in ((f"memory://{name}/table", "table"), (f"memory://{name}/*.txt", "lines.txt")):
        assert list(documents(SourceConfig(path=there))) == list(documents(SourceConfig(path=str(corpus / here))))
    with pytest.raises(UserError, match=f"source local memory://{name}/none.txt: no such file"):
        next(documents(SourceConfig(path=f"memory://{name}/none.txt")))
    with pytest.raises(UserError, match=r"nosuch://a: Protocol not known: nosuch; use gs:// or a local path"):
        next(documents(SourceConfig(path="nosuch://a")))


# Interruptions


@pytest.mark.parametrize("next_sentence", [True, False])
def test_interrupted_anywhere_ends_in_the_same_bytes(corpus, tmp_path, monkeypatch, small, next_sentence):
    """Stopped in the middle of every few writes, by Ctrl-C and with half a file left, then gone on."""
    cfg = config(corpus, next_sentence=next_sentence)
    prepare(cfg, tmp_path / "whole")
    want = tree(tmp_path / "whole")
    assert len(want) > 40 and not any("progress" in name or name.endswith(".tmp") for name in want)
    out, rng, stops, went_on = tmp_path / "out", random.Random(0), 0, 0
    while True:
        with monkeypatch.context() as patch:
            fail_at(patch, rng.randint(4, 30))
            try:
                prepare(cfg, out)
            except KeyboardInterrupt:
                stops += 1
                went_on += (out / RESUME_POINT).exists()
                continue
        break
    assert stops > 3 and went_on > 3
    assert tree(out) == want


def test_going_on_does_not_start_over(corpus, tmp_path, monkeypatch, small, caplog):
    cfg = config(corpus)
    fail_at(monkeypatch, 60)
    with pytest.raises(KeyboardInterrupt):
        prepare(cfg, tmp_path / "out")
    begun = resume_point.load(tmp_path / "out")
    assert begun is not None and begun["counts"]["documents"] > 100
    tokenize, seen = tokenizer_pool.tokenize, []
    spy = lambda texts, vocab: (seen.extend(texts), tokenize(texts, vocab))[1]  # noqa: E731
    monkeypatch.setattr(tokenizer_pool, "tokenize", spy)
    with caplog.at_level("INFO", "jaxprune"):
        manifest = prepare(cfg, tmp_path / "out")
    total = sum(manifest["splits"][split]["documents"] for split in ("train", "dev"))
    assert len(seen) == total - begun["counts"]["documents"]
    assert f"going on after {begun['counts']['documents']} documents" in caplog.text


def test_another_config_or_version_does_not_go_on(corpus, tmp_path, monkeypatch, small, caplog):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, 60)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(corpus), out)
    before = tree(out)
    shutil.copytree(out, tmp_path / "begun")
    with pytest.raises(UserError, match=r"begun with another config: seed \(0 there, 1 here\)"):
        prepare(config(corpus, seed=1), out)
    assert tree(out) == before
    shard = next(out.glob("train-*.ids.npy"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{shard.name}: damaged, \d+ bytes instead of"):
        prepare(config(corpus), out)
    monkeypatch.setattr(resume_point, "versions", lambda: {"jaxprune": "9"})
    prepare(config(corpus), out)
    assert "starting over with the versions of now" in caplog.text
    monkeypatch.undo()
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "begun", out)
    (out / RESUME_POINT).write_bytes(b"PK")
    caplog.clear()
    prepare(config(corpus), out)
    assert "progress.npz is damaged" in caplog.text and not (out / RESUME_POINT).exists()


KILLED = """
import os, random, signal, subprocess, sys, threading
from pathlib import Path
from jaxprune.config import PrepareConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import bucket, prepare, split_writer
children = []
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        children.append(self)
subprocess.Popen = Popen
split_writer._BUFFER_TOKENS, prepare._CHUNK_CHARS = 3000, 4000
cfg, out, count = PrepareConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
write = bucket.write
def dying(path, content):
    global count
    count -= 1
    if count == 0:
        print(*(child.pid for child in children if child.poll() is None), flush=True)
        threading.Timer(random.random() * 0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    write(path, content)
bucket.write = dying
prepare.prepare(cfg, out, SpecialTokens("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
"""


def gone(pid):
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_many_times_ends_in_the_same_bytes(corpus, tmp_path, small, processes):
    """kill -9 a few milliseconds after a random write: no process stays behind, and the end result is the same."""
    cfg = config(corpus, sources=config(corpus).sources[:2])  # those of `datasets` take seconds to import it
    prepare(cfg, tmp_path / "whole")
    out, rng, kills, pooled = tmp_path / "out", random.Random(processes), 0, 0
    said = cfg.model_copy(update={"processes": processes}).model_dump_json()
    while True:
        at = rng.randint(6, 12) if kills < 4 else 0  # 0: never
        arguments = [sys.executable, "-c", KILLED, said, str(out), str(at)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        children = done.stdout.split()
        assert len(children) in (0, processes)
        pooled += len(children) > 0
        limit = time.monotonic() + 10
        while not all(map(gone, children)):
            assert time.monotonic() < limit, "tokenising processes outlive the one that started them"
            time.sleep(0.05)
    assert kills >= 3 and (pooled > 0) == (processes > 1)
    assert tree(out) == tree(tmp_path / "whole")


# Cores and memory


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(corpus, tmp_path, monkeypatch, small):
    prepare(config(corpus), tmp_path / "one")
    prepare(config(corpus, processes=2), tmp_path / "two")
    monkeypatch.setattr(tokenizer_pool.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(tokenizer_pool, "tokenize", None)  # with 0, a corpus of so many chunks is left to others
    prepare(config(corpus, processes=0), tmp_path / "auto")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "auto")
    prepare(config(corpus, processes=7), tmp_path / "two")  # finished: how many there were does not matter


@pytest.mark.parametrize("at", ["now", "later"])
def test_a_process_that_dies_is_a_clear_error(corpus, tmp_path, monkeypatch, small, at):
    class Killed(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(["sh", "-c", "head -c 9000 > /dev/null"] if at == "later" else ["false"], **options)

    monkeypatch.setattr(subprocess, "Popen", Killed)
    with pytest.raises(UserError, match="a tokenising process died.*set processes lower"):
        prepare(config(corpus, processes=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


MEMORY = """
import resource, sys
from pathlib import Path
from jaxprune.config import PrepareConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import prepare, split_writer
split_writer._BUFFER_TOKENS = 1 << 17
special = SpecialTokens("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
prepare.prepare(PrepareConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), special)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(corpus, tmp_path):
    """Ten times the text, about the same peak; the dev split has no full buffer in either."""
    peaks = []
    some = texts(2000, sentences=(10, 30))
    for megabytes in (3, 30):
        path, size, turn = tmp_path / f"{megabytes}.jsonl", 0, 0
        with path.open("w") as file:
            while size < megabytes << 20:
                for text in some:
                    size += file.write(json.dumps({"text": f"word{turn % 500} {text}"}) + "\n")
                turn += 1
        cfg = config(
            corpus, sources=(SourceConfig(path=str(path)),), seq_len=128, dev_fraction=0.01, duplicates=1,
            shard_examples=1024,
        )  # fmt: skip
        arguments = [sys.executable, "-c", MEMORY, cfg.model_dump_json(), str(tmp_path / f"out{megabytes}")]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] < peaks[0] + 25, peaks  # MiB; the files written differ by 10 times that


# Buckets


def test_a_bucket_holds_what_a_disk_holds(corpus, tmp_path, monkeypatch, small):
    """memory:// stands for gs://: stopped, gone on, prepared once more, then copied back and read."""
    url, cfg = f"memory://{uuid.uuid4().hex}/data", config(corpus)
    prepare(cfg, tmp_path / "disk")
    with monkeypatch.context() as patch:
        fail_at(patch, 60)
        with pytest.raises(KeyboardInterrupt):
            prepare(cfg, url)
    fs = fsspec.filesystem("memory")
    written_names.note(any_path(url), "train-99999.ids.npy")
    fs.pipe_file(f"{url}/train-99999.ids.npy", b"left over")
    manifest = prepare(cfg, Path(url))  # as the command line gives it, with one slash lost
    fs.get(url, str(tmp_path / "copy"), recursive=True)
    assert tree(tmp_path / "copy") == tree(tmp_path / "disk")
    assert prepare(cfg, url) == manifest
    with pytest.raises(UserError, match="prepared with another config: seed"):
        prepare(config(corpus, seed=1), url)


def test_training_from_a_bucket_is_refused_in_one_line():
    said = r"data.path gs://b/data: .*local disk; copy them there \(gcloud storage cp -r gs://b/data DIRECTORY\)"
    with pytest.raises(UserError, match=said) as error:
        mlm.PretrainData("gs://b/data", DataConfig(path="gs://b/data"), "train", 4, 0)
    assert "\n" not in str(error.value)


def test_a_file_url_is_a_path(corpus, tmp_path):
    manifest = prepare(config(corpus), (tmp_path / "out").as_uri())
    data_manifest.verify(tmp_path / "out", manifest["files"], hashes=True)
    rows = ExampleShards(tmp_path / "out", manifest, "dev")
    assert rows.take(np.arange(3))[0].shape == (3, 32)
