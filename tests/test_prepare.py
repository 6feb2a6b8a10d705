"""Packing and preparing: BERT's statistics, no lost text, and files that can be trusted."""

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxprune.config import DataConfig, PrepareConfig, SourceConfig, TokenizerConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import data_manifest, packing, split_writer
from jaxprune.data import prepare as preparing
from jaxprune.data.example_shards import ExampleShards
from jaxprune.data.mlm import PretrainData
from jaxprune.data.packing import Documents, Packing, gather, pack, plan_pairs, plan_singles, split_long, truncate
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")


def prepare(cfg, out):
    return preparing.prepare(cfg, out, BERT)


def toy_documents(count=400, seed=0):
    """Documents of 1-30 sentences of 3-40 tokens; token i of the flat array has id i, so every token is unique."""
    rng = np.random.default_rng(seed)
    bounds = np.concatenate([[0], np.cumsum(rng.integers(1, 31, count))])
    starts = np.concatenate([[0], np.cumsum(rng.integers(3, 41, bounds[-1]))])
    return Documents(np.arange(starts[-1], dtype=np.uint32), starts, bounds, np.arange(count, dtype=np.uint64))


def spans(docs):
    """Token span of every document."""
    return docs.sentences_S[docs.documents_D]


PAIRS = Packing(128, True, 0.1, 0.5)
SINGLES = Packing(128, False, 0.1, 0.5)


def test_pairs_lose_no_text_and_follow_the_document():
    docs = toy_documents()
    plan = plan_pairs(docs, PAIRS, "s")
    edges = spans(docs)
    at = 0
    for i in range(len(plan.a_len)):  # A, and B where it follows, tile every document in order
        assert plan.a_start[i] == at
        at += plan.a_len[i]
        if not plan.is_random[i]:
            assert plan.b_start[i] == at and plan.doc_a[i] == plan.doc_b[i]
            at += plan.b_len[i]
        for start, length, doc in (
            (plan.a_start[i], plan.a_len[i], plan.doc_a[i]),
            (plan.b_start[i], plan.b_len[i], plan.doc_b[i]),
        ):
            assert length > 0 and edges[doc] <= start and start + length <= edges[doc + 1]
    assert at == docs.tokens_T.size


def test_random_next_is_never_the_same_document_or_text():
    docs = toy_documents()
    docs = docs._replace(text_hash_D=docs.text_hash_D // np.uint64(4))  # four documents of each text
    plan = pack(docs, PAIRS, "s")
    chosen = plan.is_random == 1
    assert not (docs.text_hash_D[plan.doc_a] == docs.text_hash_D[plan.doc_b])[chosen].any()
    # Again from the tokens alone: find the document of each segment's tokens.
    owner = np.searchsorted(spans(docs), np.arange(docs.tokens_T.size), side="right") - 1
    ids = gather(docs.tokens_T + 3, plan, 128, 0, 1, 2)
    for row, a, b, r in zip(ids, plan.a_len, plan.b_len, plan.is_random):
        docs_a, docs_b = set(owner[row[1 : 1 + a] - 3]), set(owner[row[2 + a : 2 + a + b] - 3])
        assert len(docs_a) == len(docs_b) == 1
        assert (docs_a != docs_b) == r
    # Partners are spread over the documents, not drawn from neighbours.
    assert np.bincount(plan.doc_b[chosen], minlength=400).max() < 0.02 * chosen.sum()


@pytest.mark.parametrize("prob", [0.0, 0.3, 0.5, 1.0])
def test_fraction_of_random_pairs(prob):
    docs = toy_documents(count=900)
    plan = plan_pairs(docs, Packing(128, True, 0.1, prob), "s")
    last = np.isin(plan.a_start + plan.a_len, spans(docs))  # a lone last sentence has nothing to follow it
    drawn = plan.is_random[~last]
    assert abs(drawn.mean() - prob) < 4 * math.sqrt(prob * (1 - prob) / drawn.size) + 1e-9
    assert plan.is_random[last].all()


def test_fraction_of_short_examples_and_lengths():
    docs = toy_documents(count=900)
    plan = pack(docs, PAIRS, "s")
    total = plan.a_len + plan.b_len
    assert total.max() == 125 and plan.a_len.min() >= 1 and plan.b_len.min() >= 1
    full = pack(docs, Packing(128, True, 0.0, 0.5), "s")
    ends = spans(docs)

    def inner(p):  # neither segment was cut short by the end of its document
        return ~np.isin(p.a_start + p.a_len, ends) & ~np.isin(p.b_start + p.b_len, ends)

    assert (full.a_len + full.b_len)[inner(full)].min() == 125
    short = (total < 125)[inner(plan)].mean()
    assert 0.06 < short < 0.11  # 10 % are drawn; whole sentences carry some of them to the full length
    half = Packing(128, True, 1.0, 0.5)
    aims = pack(docs, half, "s")
    assert 55 < np.median(aims.a_len + aims.b_len) < 95  # a target uniform in [2, 125], then whole sentences


def test_truncation_is_berts_loop():
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 200, (2, 3000))
    zero = np.zeros_like(a)
    cut = truncate(packing.Plan(zero, a, zero + 1000, b, zero, zero, zero), 125, seed=7)
    for i in range(len(a)):
        x, y = int(a[i]), int(b[i])
        while x + y > 125:
            if x > y:
                x -= 1
            else:
                y -= 1
        assert (cut.a_len[i], cut.b_len[i]) == (x, y)
        assert 0 <= cut.a_start[i] <= a[i] - x and 0 <= cut.b_start[i] - 1000 <= b[i] - y
    removed = int((a - cut.a_len).sum())
    assert abs(int(cut.a_start.sum()) - removed / 2) < 4 * math.sqrt(removed) / 2  # front or back with equal chance


def test_coin_flips_are_binomial():
    flips = np.repeat([0, 1, 5, 64, 130], 4000)
    heads = packing._coin_flips(flips, 3, 0)
    for n in (0, 1, 5, 64, 130):
        got = heads[flips == n]
        assert got.min() >= 0 and got.max() <= n
        assert abs(got.mean() - n / 2) < 4 * math.sqrt(n / 4 / 4000) + 1e-9
        assert abs(got.var() - n / 4) < 0.1 * n / 4 + 1e-9


def test_gather_matches_a_plain_loop():
    docs = toy_documents(40)
    for shape in (PAIRS, SINGLES):
        plan = pack(docs, shape, "s")
        tokens = docs.tokens_T + 3
        rows = []
        for a, n, b, m in zip(plan.a_start, plan.a_len, plan.b_start, plan.b_len):
            row = [0, *tokens[a : a + n], 1] + ([*tokens[b : b + m], 1] if m else [])
            rows.append(row + [2] * (128 - len(row)))
        np.testing.assert_array_equal(gather(tokens, plan, 128, 0, 1, 2), rows)


def test_singles_lose_nothing_at_all():
    docs = toy_documents()
    plan = plan_singles(docs, SINGLES, "s")
    assert (np.cumsum(plan.a_len) - plan.a_len == plan.a_start).all() and plan.a_len.sum() == docs.tokens_T.size
    assert plan.a_len.max() <= 126 and not plan.b_len.any()
    assert np.isin(plan.a_start, docs.sentences_S).all()
    assert (plan.a_start + plan.a_len <= spans(docs)[plan.doc_a + 1]).all()


def test_long_sentences_are_cut_not_lost():
    assert split_long(np.array([3, 300, 125, 126]), 125).tolist() == [3, 125, 125, 50, 125, 125, 1]
    assert split_long(np.array([3]), 125).tolist() == [3]


def test_packing_is_a_function_of_the_seed():
    docs = toy_documents(60)
    same, again, other = pack(docs, PAIRS, "a"), pack(docs, PAIRS, "a"), pack(docs, PAIRS, "b")
    assert all((x == y).all() for x, y in zip(same, again))
    assert len(same.a_len) != len(other.a_len) or (same.a_len != other.a_len).any()


def test_equal_texts_cannot_be_paired():
    docs = toy_documents(5)
    with pytest.raises(UserError, match="2 different documents"):
        plan_pairs(docs._replace(text_hash_D=np.zeros(5, np.uint64)), PAIRS, "s")


# prepare


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """80 documents in which no word occurs twice, and a vocabulary of whole words."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, words, docs = random.Random(0), [], []
    for _ in range(80):
        lines = []
        for _ in range(rng.randint(2, 12)):
            new = [f"w{len(words) + i}" for i in range(rng.randint(3, 14))]
            words += new
            lines.append("W" + " ".join(new)[1:] + ".")
        docs.append("\n".join(lines))
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n\n".join(docs))
    (folder / "vocab").mkdir()
    (folder / "vocab" / "vocab.txt").write_text("\n".join([*BERT, ".", *words]) + "\n")
    return folder


def config(corpus, **changes):
    settings = {
        "sources": (SourceConfig(path=str(corpus / "text")),),
        "tokenizer": TokenizerConfig(path=str(corpus / "vocab")),
        "seq_len": 32,
        "dev_fraction": 0.2,
        "shard_examples": 50,
    }
    return PrepareConfig(**{**settings, **changes})


def load(out, manifest):
    """ids and info of each split."""
    found = {}
    for split in manifest["splits"]:
        rows = ExampleShards(out, manifest, split)
        found[split] = rows.take(np.arange(len(rows)))
    return found


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_prepare_end_to_end(corpus, tmp_path):
    manifest = prepare(config(corpus, duplicates=3), tmp_path / "out")
    data_manifest.verify(tmp_path / "out", manifest["files"], hashes=True)
    data = load(tmp_path / "out", manifest)
    text = (corpus / "text" / "a.txt").read_text().lower()
    owner = {word.strip("."): d for d, doc in enumerate(text.split("\n\n")) for word in doc.split()}
    vocab = (corpus / "vocab" / "vocab.txt").read_text().split("\n")
    docs_of = {}
    for split, (ids, info) in data.items():
        docs_of[split] = set(info["doc_a"])
        assert ids.dtype == np.uint16 and ids.shape == (manifest["splits"][split]["examples"], 32)
        for row, fields in zip(ids, info):
            a, b = int(fields["a_len"]), int(fields["b_len"])
            assert row[0] == 2 and row[a + 1] == 3 and row[a + b + 2] == 3 and (row[a + b + 3 :] == 0).all()
            assert not np.isin(row[1 : a + 1], [0, 1, 2, 3, 4]).any()
            from_a = {owner[vocab[i]] for i in row[1 : a + 1] if i > 5}
            from_b = {owner[vocab[i]] for i in row[a + 2 : a + b + 2] if i > 5}
            assert from_a <= {fields["doc_a"]} and from_b <= {fields["doc_b"]}
            assert fields["is_random"] == (fields["doc_a"] != fields["doc_b"])
    assert not docs_of["train"] & docs_of["dev"] and len(docs_of["train"] | docs_of["dev"]) == 80
    counts = manifest["splits"]
    assert counts["train"]["documents"] + counts["dev"]["documents"] == 80
    assert counts["train"]["tokens"] + counts["dev"]["tokens"] == len(owner) + text.count(".")
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"manifest.json", "tokenizer", "train-00001.ids.npy"}


def test_every_token_is_in_some_single(corpus, tmp_path):
    manifest = prepare(config(corpus, next_sentence=False), tmp_path / "out")
    ids = np.concatenate([ids for ids, _ in load(tmp_path / "out", manifest).values()])
    assert set(np.unique(ids)) == {0, 2, 3} | set(range(5, manifest["vocab_size"]))
    assert (np.bincount(ids.ravel())[6:] == 1).all()


def test_pairs_lose_little(corpus, tmp_path):
    """With pairs, what is missing was cut off by truncation; three packings cut in different places."""
    manifest = prepare(config(corpus, duplicates=3, seq_len=64), tmp_path / "out")
    ids = np.concatenate([ids for ids, _ in load(tmp_path / "out", manifest).values()])
    assert len(np.unique(ids)) > 0.97 * manifest["vocab_size"]


def test_small_buffers_keep_the_rules(corpus, tmp_path, monkeypatch):
    """A corpus of many buffers: every document is packed once, partners may come over from the last buffer."""
    monkeypatch.setattr(split_writer, "_BUFFER_TOKENS", 100)
    manifest = prepare(config(corpus), tmp_path / "out")
    for _, info in load(tmp_path / "out", manifest).values():
        assert (info["is_random"] == (info["doc_a"] != info["doc_b"])).all()
    assert len({d for _, info in load(tmp_path / "out", manifest).values() for d in info["doc_a"]}) == 80


def test_same_config_same_bytes_and_second_prepare_does_nothing(corpus, tmp_path):
    first = prepare(config(corpus), tmp_path / "a")
    prepare(config(corpus), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    assert prepare(config(corpus), tmp_path / "a") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before
    prepare(config(corpus, seed=1), tmp_path / "c")
    assert tree(tmp_path / "c")["train-00000.ids.npy"] != tree(tmp_path / "a")["train-00000.ids.npy"]


def test_another_config_or_corpus_is_refused(corpus, tmp_path):
    prepare(config(corpus), tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match=r"another config: duplicates \(1 there, 2 here\), sources\.0\.max_chars"):
        prepare(
            config(corpus, duplicates=2, sources=(SourceConfig(path=str(corpus / "text"), max_chars=9),)),
            tmp_path / "out",
        )
    (corpus / "text" / "b.txt").write_text("New text.")
    try:
        with pytest.raises(UserError, match="corpus files have changed"):
            prepare(config(corpus), tmp_path / "out")
    finally:
        (corpus / "text" / "b.txt").unlink()
    assert tree(tmp_path / "out") == before


def test_leftovers_are_replaced(corpus, tmp_path):
    prepare(config(corpus), tmp_path / "whole")
    out = tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    ours = ["train-00009.ids.npy", "train-00000.ids.npy", "tokenizer/old"]
    (out / ".prepare.files").write_text("\n".join([*ours, "dev-00000.ids.npy"]))
    for name in (*ours, ".dev-00000.ids.npy.tmp", "tokenizer/.old.tmp", "notes.md"):
        (out / name).write_text("old")
    prepare(config(corpus), out)
    assert tree(out).pop("notes.md") == b"old"
    assert {k: v for k, v in tree(out).items() if k != "notes.md"} == tree(tmp_path / "whole")


@pytest.mark.parametrize("name", ["tokenizer/vocab.txt", "tokenizer/my notes", "train-00007.ids.npy", "progress.npz"])
@pytest.mark.parametrize("fails", [True, False])
def test_what_no_prepare_wrote_is_never_removed(corpus, tmp_path, name, fails):
    """Also where the command is refused for something else, and beside what an interrupted one left."""
    out = tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    (out / name).write_text("mine")
    (out / ".prepare.files").write_text("train-00000.ids.npy\n")
    (out / "train-00000.ids.npy").write_text("left")
    before = tree(out)
    change = {"sources": (SourceConfig(path=str(tmp_path / "missing")),)} if fails else {}
    message = "no such file" if fails else f"out/{name}: is there, and no prepare wrote it; choose another directory"
    with pytest.raises(UserError, match=message):
        prepare(config(corpus, **change), out)
    assert {key: value for key, value in tree(out).items() if key in before} == before


def test_a_prepare_that_finds_another_has_finished_meanwhile_keeps_its_data(corpus, tmp_path, monkeypatch):
    """The other one began and ended between this one's look at the directory and its lock."""
    claimed, states = preparing.claimed, []

    def late(folder):
        monkeypatch.setattr(preparing, "claimed", claimed)
        prepare(config(corpus), folder)
        states.append(tree(folder))
        return claimed(folder)

    monkeypatch.setattr(preparing, "claimed", late)
    manifest = prepare(config(corpus), tmp_path / "out")
    assert [tree(tmp_path / "out")] == states and manifest["files"].keys() <= states[0].keys()


SCRIPT = """
import sys, time
from pathlib import Path
from jaxprune.config import PrepareConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import mlm, builtin, corpus, tokenizer, packing, masking, prepare, data_manifest
write = data_manifest.write_manifest
def slow(*args):
    print("writing", flush=True)
    time.sleep(float(sys.argv[3]))
    write(*args)
data_manifest.write_manifest = slow
cfg = PrepareConfig.model_validate_json(sys.argv[1])
prepare.prepare(cfg, Path(sys.argv[2]), SpecialTokens("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
data = mlm.PretrainData(sys.argv[2], __import__("jaxprune.config").config.DataConfig(), "train", 4, 0)
data.batch(0), next(data.eval_batches())
loaded = [name for name in ("jax", "jaxlib", "grain", "tensorflow", "torch") if name in sys.modules]
assert not loaded, loaded
"""


def start(corpus, out, wait):
    arguments = [sys.executable, "-c", SCRIPT, config(corpus).model_dump_json(), str(out), str(wait)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_prepare_starts_over_and_jax_is_never_imported(corpus, tmp_path):
    out = tmp_path / "out"
    with start(corpus, out, 60) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        with pytest.raises(UserError, match="another prepare is writing here"):
            prepare(config(corpus), out)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "manifest.json").exists() and list(out.glob("*.npy"))
    with start(corpus, out, 0) as process:
        assert process.wait(60) == 0
    prepare(config(corpus), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_bad_input_leaves_nothing(corpus, tmp_path, monkeypatch):
    out = tmp_path / "new" / "out"
    text = tmp_path / "text"
    text.mkdir()
    bad = {
        "no such file": {"sources": (SourceConfig(path=str(tmp_path / "missing")),)},
        "no such directory": {"tokenizer": TokenizerConfig(path=str(tmp_path / "missing"))},
        "too few": {"sources": (SourceConfig(path=str(corpus / "text"), max_documents=3),)},
        "not UTF-8": {"sources": (SourceConfig(path=str(text)),)},
    }
    (text / "a.txt").write_bytes((corpus / "text" / "a.txt").read_bytes() + b"\n\xff")
    for message, change in bad.items():
        with pytest.raises(UserError, match=message) as error:
            prepare(config(corpus, **change), out)
        assert "\n" not in str(error.value)
        assert not out.parent.exists(), message

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_manifest, "write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(corpus), out)
    assert not out.parent.exists()


def test_much_data_is_read_once_and_again_when_it_was_touched(corpus, tmp_path, monkeypatch):
    """Above a limit of bytes; a bit that flips with inode and times as they were would need `jaxprune check`."""
    out = tmp_path / "out"
    files = prepare(config(corpus), out)["files"]
    monkeypatch.setattr(data_manifest, "_HASH_LIMIT", 100)
    digest, read = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (read.append(file.name), digest(file, kind))[1])
    for count in (len(files), 0):
        data_manifest.verify(out, files)
        assert len(read) == count
        read.clear()
    shard = out / "train-00000.ids.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"~")
    with pytest.raises(UserError, match=f"{shard}: damaged, its SHA-256"):
        data_manifest.verify(out, files)
    assert read == [str(shard)]


def test_equal_documents_fall_in_one_split(tmp_path, corpus):
    text = tmp_path / "text"
    text.mkdir()
    whole = (corpus / "text" / "a.txt").read_text()
    (text / "a.txt").write_text(whole)
    (text / "b.txt").write_text(whole)
    sources = (SourceConfig(path=str(text)),)
    manifest = prepare(config(corpus, sources=sources), tmp_path / "out")
    data = load(tmp_path / "out", manifest)
    train, dev = ({int(d) % 80 for d in data[split][1]["doc_a"]} for split in ("train", "dev"))
    assert not train & dev
    for _, info in data.values():
        assert (info["doc_a"] % 80 != info["doc_b"] % 80)[info["is_random"]].all()


def test_documents_of_one_sentence_are_warned_of(corpus, tmp_path, caplog):
    """Nothing follows their sentence, so every pair is random; said once, with the share and what to set."""
    text = tmp_path / "text"
    text.mkdir()
    lines = [line for line in (corpus / "text" / "a.txt").read_text().split("\n") if line]
    (text / "a.txt").write_text("\n\n".join(lines))
    manifest = prepare(config(corpus, sources=(SourceConfig(path=str(text)),)), tmp_path / "out")
    assert manifest["splits"]["train"]["random_next"] == 1.0
    (warning,) = [record.getMessage() for record in caplog.records if "one sentence" in record.getMessage()]
    assert f"100% of the first {len(lines)} documents" in warning
    assert "set next_sentence: false" in warning and "paragraphs" not in warning
    caplog.clear()
    source = SourceConfig(path=str(corpus / "text"), paragraphs=True)
    prepare(config(corpus, sources=(source,)), tmp_path / "lines")
    assert "set paragraphs: false, next_sentence: false" in caplog.text
    caplog.clear()
    prepare(config(corpus, sources=(source,), next_sentence=False), tmp_path / "singles")
    prepare(config(corpus), tmp_path / "whole")
    assert "one sentence" not in caplog.text


def test_files_that_are_not_read_are_warned_of(corpus, tmp_path, caplog):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_bytes((corpus / "text" / "a.txt").read_bytes())
    (text / "scan.pdf").write_bytes(b"%PDF")
    manifest = prepare(config(corpus, sources=(SourceConfig(path=str(text)),)), tmp_path / "out")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"prepare: source local {text}: 1 file(s)") and warning.endswith("scan.pdf")
    assert manifest["sources"] == [[["a.txt", (text / "a.txt").stat().st_size]]]


def test_trained_vocabulary(corpus, tmp_path):
    manifest = prepare(config(corpus, tokenizer=TokenizerConfig(train_size=200)), tmp_path / "out")
    assert manifest["vocab_size"] <= 200
    assert {"tokenizer/tokenizer.json", "tokenizer/vocab.txt"} <= manifest["files"].keys()


def test_manifest_says_what_it_is(corpus, tmp_path):
    prepare(config(corpus), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"] == config(corpus).model_dump(mode="json", exclude={"processes"})
    assert manifest["splits"]["train"].keys() == {"documents", "sentences", "tokens", "examples", "random_next"}
    assert PrepareConfig.model_validate(manifest["config"]) == config(corpus)


def test_special_tokens_are_an_argument_and_are_recorded(corpus, tmp_path):
    """Names, ids and order other than BERT's; who reads the data needs no argument."""
    special = SpecialTokens(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
    words = (corpus / "vocab" / "vocab.txt").read_text().split("\n")[5:-1]
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join([*words, "<s>", "<pad>", "</s>", "<unk>", "<mask>"]) + "\n")
    cfg = config(corpus, tokenizer=TokenizerConfig(path=str(tmp_path / "vocab")))
    manifest = preparing.prepare(cfg, tmp_path / "out", special)
    assert manifest["special_tokens"] == special._asdict()
    cls, pad, sep, _, mask = range(len(words), len(words) + 5)
    batch = PretrainData(tmp_path / "out", DataConfig(), "train", 8, 0).batch(0)
    ids, tokens = batch["input_ids"], batch["attention_mask"].sum(1)
    assert (ids[:, 0] == cls).all() and (ids[np.arange(8), tokens - 1] == sep).all()
    assert (ids[batch["attention_mask"] == 0] == pad).all() and (ids == mask).any()
    with pytest.raises(UserError, match=r"lack \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"):
        prepare(cfg, tmp_path / "other")
    trained = preparing.prepare(
        config(corpus, tokenizer=TokenizerConfig(train_size=200)), tmp_path / "trained", special
    )
    settings = json.loads((tmp_path / "trained" / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["mask_token"] == "<mask>" and trained["special_tokens"]["cls"] == "<s>"


def test_data_of_the_first_version_is_read(corpus, tmp_path):
    """Its manifest holds no special tokens, and its config not the keys that came later."""
    out = tmp_path / "out"
    prepare(config(corpus), out)
    batch = PretrainData(out, DataConfig(), "train", 8, 0).batch(0)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["special_tokens"], manifest["config"]["architecture"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    again = PretrainData(out, DataConfig(), "train", 8, 0).batch(0)
    assert all((again[name] == batch[name]).all() for name in batch)
    assert prepare(config(corpus), out) == manifest
    with pytest.raises(UserError, match=r"another config: architecture \('bert' there, 'other' here\)"):
        prepare(config(corpus, architecture="other"), out)


@pytest.mark.data
def test_real_text(tmp_path, real_data):
    cfg = PrepareConfig(
        sources=(SourceConfig(path=str(real_data / "pretrain" / "*.txt")),),
        tokenizer=TokenizerConfig(path=str(real_data / "vocab")),
        dev_fraction=0.1,
    )
    begun = time.monotonic()
    manifest = prepare(cfg, tmp_path / "out")
    train = manifest["splits"]["train"]
    assert manifest["vocab_size"] == 30522 and train["documents"] > 90 and train["examples"] > 2000
    assert 0.49 < train["random_next"] < 0.53
    ids, info = load(tmp_path / "out", manifest)["train"]
    assert (ids == 100).mean() < 0.001  # the vocabulary knows this text
    assert 0.05 < (info["a_len"] + info["b_len"] < 125).mean() < 0.2
    assert time.monotonic() - begun < 60
