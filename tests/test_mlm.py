"""Masked batches: BERT's statistics, and the same rows on any number of hosts, in any epoch, after any restart."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune.config import DataConfig, PrepareConfig, SourceConfig, TokenizerConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data.masking import Masking, mask
from jaxprune.data.mlm import PretrainData
from jaxprune.data.permutation import permute
from jaxprune.data.prepare import prepare
from jaxprune.data.random_bits import below, random_bits, uniform
from jaxprune.data.tokenizer import load
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
VOCAB = [*BERT, ".", *(f"w{i}" for i in range(700)), *(f"##s{i}" for i in range(300))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared data: 60 documents of words of one to four pieces."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    docs = []
    for _ in range(60):
        lines = []
        for _ in range(rng.integers(4, 15)):
            pieces = rng.integers(0, 300, (12, 3))
            words = [f"w{rng.integers(700)}" + "".join(f"s{p}" for p in row[: rng.integers(0, 4)]) for row in pieces]
            lines.append("W" + " ".join(words)[1:] + ".")
        docs.append("\n".join(lines))
    (root / "a.txt").write_text("\n\n".join(docs))
    (root / "vocab").mkdir()
    (root / "vocab" / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tokenizer = TokenizerConfig(path=str(root / "vocab"))
    for name, pairs in (("pairs", True), ("singles", False)):
        source = SourceConfig(path=str(root / "a.txt"))
        cfg = PrepareConfig(
            sources=(source,), tokenizer=tokenizer, seq_len=64, dev_fraction=0.2, next_sentence=pairs, shard_examples=70
        )
        prepare(cfg, root / name, BERT)
    return root


def data(folder, name="pairs", *, split="train", batch_size=16, seed=3, **changes):
    placed = {key: changes.pop(key) for key in ("rows", "verify") if key in changes}
    return PretrainData(folder / name, DataConfig(**changes), split, batch_size, seed, **placed)


@pytest.fixture(scope="module")
def how(folder):
    """Masking settings by DataConfig fields, over VOCAB."""
    vocab = load(str(folder / "vocab"), special=BERT)
    return lambda **changes: Masking(DataConfig(**changes), vocab, 128)


def examples(rows, length=128, seed=0):
    """Random examples [CLS] ... [SEP] [PAD]: ids (rows, length) and their lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, len(VOCAB), (rows, length))
    ids[rng.random(ids.shape) < 0.01] = 1  # unknown words
    size = np.where(rng.random(rows) < 0.5, length, rng.integers(4, length, rows))
    ids[:, 0] = 2
    ids[np.arange(rows), size - 1] = 3
    ids[np.arange(rows), size // 2] = 3
    ids[np.arange(length) >= size[:, None]] = 0
    return ids.astype(np.uint16), size


def near(count, total, prob):
    return abs(count - total * prob) < 4.5 * math.sqrt(total * prob * (1 - prob))


@pytest.mark.parametrize("whole_word", [False, True])
def test_masking_statistics(how, whole_word):
    ids, size = examples(6000)
    row = np.arange(len(ids))
    out = mask(ids, size, how(whole_word=whole_word), 1, np.zeros_like(row), row)
    used = out.weights_BP == 1
    count = used.sum(1)
    special = np.isin(ids, range(5))
    budget = [min(20, max(1, round(0.15 * int(n)))) for n in size]
    if whole_word:
        assert (count <= budget).all() and count.sum() > 0.97 * sum(budget)
    else:
        assert (count == np.minimum(budget, (~special).sum(1))).all()
        assert abs(count[size == 128].mean() / 128 - 0.15) < 0.005  # round(0.15 * 128) = 19
    r, p = np.nonzero(used)
    at = out.positions_BP[r, p]
    assert not special[r, at].any()
    assert (out.targets_BP[used] == ids[r, at]).all()
    assert not out.positions_BP[~used].any() and not out.targets_BP[~used].any()
    shown = out.ids_BL[r, at]
    hidden, kept = shown == 4, shown == ids[r, at]
    assert near(hidden.sum(), len(r), 0.8)
    assert near(kept.sum(), len(r), 0.1 + 0.1 / (len(VOCAB) - 5))
    other = shown[~hidden & ~kept]
    assert other.min() >= 5 and len(np.unique(other)) > 0.9 * len(VOCAB)  # uniform over all but special tokens
    assert near((other < len(VOCAB) // 2).sum(), len(other), (len(VOCAB) // 2 - 5) / (len(VOCAB) - 5))
    changed = out.ids_BL != ids
    changed[r, at] = False
    assert not changed.any()  # nothing else is touched
    for i in range(200):
        assert (np.diff(out.positions_BP[i, : count[i]]) > 0).all()
    if not whole_word:  # every free position is equally likely, the first as the last
        full = size == 128
        hits = np.zeros(ids.shape, bool)
        hits[r, at] = True
        free = ~special[full]
        first, last = hits[full][:, 1:20][free[:, 1:20]], hits[full][:, 100:127][free[:, 100:127]]
        assert abs(first.mean() - last.mean()) < 0.01


def test_whole_words_go_together(how):
    ids, size = examples(500)
    row = np.arange(len(ids))
    out = mask(ids, size, how(whole_word=True), 1, 0 * row, row)
    for i in range(len(ids)):
        chosen = set(out.positions_BP[i][out.weights_BP[i] == 1].tolist())
        words: list[list[int]] = []
        for p in range(int(size[i])):
            if ids[i, p] < 5:
                words.append([])
            elif VOCAB[ids[i, p]].startswith("##") and words and words[-1]:
                words[-1].append(p)
            else:
                words.append([p])
        assert all(len(chosen & set(word)) in (0, len(word)) for word in words)


def reference(ids, form, whole_word, score, kind, draw):
    """create_masked_lm_predictions of google-research/bert, line by line, and what ours changes; random numbers given.

    Returns the tokens shown, and {position: token hidden}.
    """
    tokens = [VOCAB[i] for i in ids]
    cand_indexes: list[list[int]] = []
    for i, token in enumerate(tokens):
        if token in ("[CLS]", "[SEP]") or (form == "known" and token in BERT):
            continue
        goes_on = len(cand_indexes) >= 1 and (form == "published" or cand_indexes[-1][-1] == i - 1)
        if whole_word and goes_on and token.startswith("##"):
            cand_indexes[-1].append(i)
        else:
            cand_indexes.append([i])
    cand_indexes.sort(key=lambda index_set: score[index_set[0]])
    vocab_words = VOCAB if form == "published" else VOCAB[5:]
    output, masked = list(tokens), {}
    num_to_predict = min(20, max(1, int(round(len(tokens) * 0.15))))
    for index_set in cand_indexes:
        if len(masked) >= num_to_predict:
            break
        if len(masked) + len(index_set) > num_to_predict:
            continue
        for index in index_set:
            masked[index] = tokens[index]
            if kind[index] < 0.8:
                output[index] = "[MASK]"
            elif kind[index] < 0.9:
                output[index] = vocab_words[int(draw[index] * len(vocab_words))]
    return output, masked


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("form", ["known", "published"])
def test_both_forms_follow_the_published_code(how, form, whole_word):
    ids, size = examples(300)
    ids[:, 5] = 1  # an unknown word in most
    ids[np.arange(300), size // 2 + 1] = VOCAB.index("##s3")  # a piece right after the first [SEP]
    ids[np.arange(300), size - 1] = 3
    row, epoch, seed = np.arange(300), 2, 7
    out = mask(ids, size, how(masking=form, whole_word=whole_word), seed, 0 * row + epoch, row)
    split = 0
    for i in range(300):
        length = np.arange(size[i])
        score = random_bits(seed, 1, epoch, i, length)
        kind = uniform(random_bits(seed, 2, epoch, i, 2 * length))
        draw = (random_bits(seed, 2, epoch, i, 2 * length + 1) >> np.uint64(32)) / 2.0**32
        shown, masked = reference(ids[i, : size[i]], form, whole_word, score, kind, draw)
        assert [VOCAB[t] for t in out.ids_BL[i, : size[i]]] == shown
        used = out.weights_BP[i] == 1
        assert out.positions_BP[i, used].tolist() == sorted(masked)
        assert [VOCAB[t] for t in out.targets_BP[i, used]] == [masked[p] for p in sorted(masked)]
        split += int(size[i]) // 2 - 1 in masked and int(size[i]) // 2 + 1 in masked
    assert (out.targets_BP == 1).any() == (form == "published")
    assert split > 0 or not whole_word


def test_published_masking_statistics(how):
    ids, size = examples(6000)
    row = np.arange(len(ids))
    out = mask(ids, size, how(masking="published"), 1, 0 * row, row)
    used = out.weights_BP == 1
    assert (used.sum(1) == np.minimum([min(20, max(1, round(0.15 * int(n)))) for n in size], size - 3)).all()
    r, p = np.nonzero(used)
    at = out.positions_BP[r, p]
    original = ids[r, at]
    assert not np.isin(original, [0, 2, 3, 4]).any()
    free = (np.arange(128) < size[:, None]) & ~np.isin(ids, [2, 3])
    share = (ids[free] == 1).mean()
    assert 0.008 < share < 0.012 and near((original == 1).sum(), len(r), share)  # an unknown word as any other
    shown = out.ids_BL[r, at]
    other = shown[(shown != 4) & (shown != original)]
    assert {0, 1, 2, 3} <= set(other.tolist()) and len(np.unique(other)) > 0.9 * len(VOCAB)
    assert near(np.isin(other, [0, 1, 2, 3]).sum(), len(other), 4 / len(VOCAB))  # any piece, special ones too
    assert near((shown == 4).sum(), len(r), 0.8 + 0.1 / len(VOCAB))


@pytest.mark.parametrize(("length", "predictions"), [(64, 10), (128, 20), (512, 77)])
def test_predictions_follow_the_length(folder, length, predictions):
    vocab = load(str(folder / "vocab"), special=BERT)
    assert Masking(DataConfig(), vocab, length).predictions == predictions
    assert Masking(DataConfig(masked_prob=0.3), vocab, length).predictions == math.ceil(0.3 * length)
    assert Masking(DataConfig(masked_prob=0), vocab, length).predictions == 1
    assert Masking(DataConfig(max_predictions=20), vocab, length).predictions == 20
    ids, size = examples(100, length)
    row = np.arange(100)
    all_of_them = mask(ids, size, Masking(DataConfig(), vocab, length), 1, row, row)
    assert all_of_them.weights_BP.sum(1)[size == length].tolist() == [round(0.15 * length)] * (size == length).sum()


def test_masks_differ_between_epochs_examples_and_seeds_and_repeat(how):
    ids, size = examples(64)
    row, zero = np.arange(64), np.zeros(64, np.int64)

    def run(seed, epoch, rows):
        return mask(ids, size, how(), seed, zero + epoch, rows).positions_BP

    base = run(1, 0, row)
    assert (run(1, 0, row) == base).all()
    for other in (run(1, 1, row), run(2, 0, row), run(1, 0, row + 64)):
        assert (other != base).any(1).mean() > 0.9
    backwards = mask(ids[::-1], size[::-1], how(), 1, zero, row[::-1]).positions_BP
    assert (backwards[::-1] == base).all()  # a row's mask does not depend on its neighbours


def test_masking_edges(how):
    ids, size = examples(50)
    row = np.arange(50)
    assert mask(ids, size, how(masked_prob=0), 1, row, row).weights_BP.sum() == 0
    everything = mask(ids, size, how(masked_prob=1, max_predictions=128), 1, row, row).weights_BP
    assert (everything.sum(1) == (~np.isin(ids, range(5))).sum(1)).all()
    wide = mask(ids, size, how(max_predictions=200), 1, row, row)
    assert wide.positions_BP.shape == (50, 200)
    blank = np.zeros((3, 16), np.uint16)
    blank[:, :3] = [2, 1, 3]
    for whole_word in (False, True):
        empty = mask(blank, np.full(3, 3), how(whole_word=whole_word), 1, row[:3], row[:3])
        assert not empty.weights_BP.any() and (empty.ids_BL == blank).all()


def test_random_bits():
    x = random_bits(1, 2, np.arange(200_000))
    assert len(np.unique(x)) == x.size
    share = np.unpackbits(x.view(np.uint8)).mean()
    assert abs(share - 0.5) < 0.001
    counts = np.bincount(below(x, 10), minlength=10)
    assert abs(counts - 20_000).max() < 4.5 * math.sqrt(20_000)
    assert abs(np.corrcoef(uniform(x[1:]), uniform(x[:-1]))[0, 1]) < 0.01
    assert random_bits(0, 0)[0] != random_bits(0)[0]
    # Pinned: a resumed run must get the batches it would have got.
    assert random_bits(1, 2, 3).tolist() == [2869315087210772132]
    assert permute(np.arange(5), 1000, 1, 2).tolist() == [543, 766, 125, 630, 361]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_permute_is_a_permutation(size, seed, epoch):
    assert sorted(permute(np.arange(size), size, seed, epoch).tolist()) == list(range(size))


def test_permute_mixes():
    size = 20_000
    order = permute(np.arange(size), size, 5, 0)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    assert (order == permute(np.arange(size), size, 5, 1)).sum() < 10  # a fixed point or two is chance
    assert permute(np.array([2**40 - 1]), 2**40, 1, 2)[0] < 2**40


# Batches


def test_batch_fields(folder):
    source = data(folder)
    batch = source.batch(0)
    shapes = {k: (v.shape, str(v.dtype)) for k, v in batch.items()}
    assert shapes == {
        "input_ids": ((16, 64), "int32"),
        "token_type_ids": ((16, 64), "int32"),
        "attention_mask": ((16, 64), "int32"),
        "masked_positions": ((16, 10), "int32"),
        "masked_ids": ((16, 10), "int32"),
        "masked_weights": ((16, 10), "float32"),
        "next_sentence_label": ((16,), "int32"),
    }
    assert (source.seq_len, source.vocab_size, source.next_sentence) == (64, len(VOCAB), True)
    assert (batch["attention_mask"] == (batch["input_ids"] != 0)).all()
    ids = batch["input_ids"].copy()
    rows = np.arange(16)[:, None]
    kept = batch["masked_weights"] == 1
    ids[np.broadcast_to(rows, kept.shape)[kept], batch["masked_positions"][kept]] = batch["masked_ids"][kept]
    for row, types in zip(ids, batch["token_type_ids"]):
        first, last = np.flatnonzero(row == 3)
        assert types.tolist() == [0] * (first + 1) + [1] * (last - first) + [0] * (63 - last)


def test_without_pairs(folder):
    batch = data(folder, "singles").batch(0)
    assert "next_sentence_label" not in batch and not batch["token_type_ids"].any()
    assert ((batch["input_ids"] == 3).sum(1) == 1).all()


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("how", ["runs", "interleaved"])
def test_global_batch_is_the_same_on_any_number_of_hosts(folder, hosts, how):
    alone = data(folder)
    rows = np.arange(alone.batch_size)
    deal = {"runs": rows.reshape(hosts, -1), "interleaved": rows.reshape(-1, hosts).T}[how]
    parts = [data(folder, rows=mine) for mine in deal]
    for step in (0, 7, 1000):
        whole = alone.batch(step)
        split = [part.batch(step) for part in parts]
        for mine, batch in zip(deal, split, strict=True):
            same(batch, {key: value[mine] for key, value in whole.items()})
    assert len({part.fingerprint for part in (alone, *parts)}) == 1


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 400), epoch=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_holds_each_example_once(folder, batch_size, epoch, seed):
    source = data(folder, batch_size=batch_size, seed=seed, verify=False)
    size = source.examples
    seen = []
    source._shards.__class__.take, take = spy(seen), source._shards.__class__.take
    try:
        for step in range(epoch * size // batch_size, -(-(epoch + 1) * size // batch_size)):
            source.batch(step)
    finally:
        source._shards.__class__.take = take
    start = epoch * size - epoch * size // batch_size * batch_size
    rows = np.concatenate(seen)[start : start + size]
    assert sorted(rows.tolist()) == list(range(size))


def spy(seen):
    from jaxprune.data.example_shards import ExampleShards

    original = ExampleShards.take

    def take(self, index_B):
        seen.append(index_B)
        return original(self, index_B)

    return take


def test_iterator_saves_and_restores(folder):
    source = data(folder)
    iterator = source.iterator(start_step=5, prefetch=3)
    for step in (5, 6, 7):
        assert iterator.get_state() == {"next_index": step}
        same(next(iterator), source.batch(step))
    state = iterator.get_state()
    following = next(iterator)
    other = data(folder, rows=np.arange(8, 16)).iterator(start_step=0, prefetch=1)
    other.set_state(state)  # another number of hosts goes on in the same place
    np.testing.assert_array_equal(next(other)["input_ids"], following["input_ids"][8:])
    iterator.set_state({"next_index": 2})
    same(next(iterator), source.batch(2))


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_evaluation_sees_every_example_once_and_repeats(folder):
    source = data(folder, split="dev", batch_size=7)
    batches = list(source.eval_batches())
    assert len(batches) == -(-source.examples // 7)
    assert sum(b["example_weights"].sum() for b in batches) == source.examples
    assert all(b["example_weights"].all() for b in batches[:-1])
    last = batches[-1]
    assert not last["masked_weights"][last["example_weights"] == 0].any()
    for a, b in zip(batches, data(folder, split="dev", batch_size=7, seed=99).eval_batches()):
        same(a, b)
    assert len(list(source.eval_batches(2))) == 2
    unmasked = []
    for b in batches:
        ids = b["input_ids"].copy()
        r, p = np.nonzero(b["masked_weights"])
        ids[r, b["masked_positions"][r, p]] = b["masked_ids"][r, p]
        unmasked.append(ids[b["example_weights"] == 1])
    stored, _ = source._shards.take(np.arange(source.examples))
    assert sorted(map(bytes, np.concatenate(unmasked).astype(np.uint16))) == sorted(map(bytes, stored))


def test_fingerprint_tells_what_matters(folder):
    base = data(folder).fingerprint
    assert data(folder).fingerprint == base
    others = [
        data(folder, seed=4),
        data(folder, batch_size=8),
        data(folder, masked_prob=0.2),
        data(folder, whole_word=True),
        data(folder, "singles"),
        data(folder, split="dev"),
        data(folder, masking="published"),
        data(folder, max_predictions=9),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 9
    assert data(folder, max_predictions=10).fingerprint == base  # what the length gives


def test_predicted_share_is_that_of_the_examples(folder):
    for limit, split in ((None, "train"), (3, "train"), (None, "dev")):
        source = data(folder, split=split, max_predictions=limit)
        assert source.predictions == (limit or 10) and source.examples < 1024
        batches = list(source.eval_batches())
        length = np.concatenate([b["attention_mask"].sum(1)[b["example_weights"] == 1] for b in batches])
        expected = sum(min(limit or 10, max(1, round(0.15 * int(n)))) for n in length) / length.sum()
        assert source.predicted_share == pytest.approx(expected)
    assert data(folder).predicted_share == pytest.approx(0.15, abs=0.01)
    assert data(folder, max_predictions=3).predicted_share < 0.06


def test_damage_is_noticed(folder, tmp_path):
    import shutil

    copy = tmp_path / "pairs"
    shutil.copytree(folder / "pairs", copy)
    data(tmp_path)
    name = copy / "train-00001.ids.npy"
    raw = bytearray(name.read_bytes())
    raw[-5] ^= 1
    name.write_bytes(raw)
    with pytest.raises(UserError, match=r"train-00001\.ids\.npy: damaged, its SHA-256 .* `jaxprune prepare` again"):
        data(tmp_path)
    data(tmp_path, verify=False)
    name.write_bytes(raw[:-2])
    with pytest.raises(UserError, match=r"train-00001\.ids\.npy: damaged, \d+ bytes instead of \d+"):
        data(tmp_path, verify=False)
    name.unlink()
    with pytest.raises(UserError, match=r"train-00001\.ids\.npy: missing"):
        data(tmp_path)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        data(tmp_path)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="raw text or an unfinished prepare"):
        data(tmp_path)
    with pytest.raises(UserError, match=r"no such directory; run `jaxprune prepare` first"):
        data(tmp_path / "nowhere")


def test_bad_arguments(folder):
    with pytest.raises(UserError, match="batch_size = 0 is below 1"):
        data(folder, batch_size=0)
    with pytest.raises(UserError, match=r"rows \[5 6\] are not of a batch of batch_size = 6"):
        data(folder, batch_size=6, rows=np.array([5, 6]))
    with pytest.raises(UserError, match="no split 'test'; there are train, dev"):
        data(folder, split="test")
