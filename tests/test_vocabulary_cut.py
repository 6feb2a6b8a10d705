"""`jaxprune compact --vocabulary`: the pieces that a corpus does not use go, and texts that use none of them stay."""

import json
import random

import jax
import numpy as np
import pytest
import tokenizers
from test_compact import outputs, run, saved, theirs
from tiny_folders import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxprune.data import tokenizer
from jaxprune.data.vocabulary_cut import cut, kept_ids, used_ids
from jaxprune.errors import UserError
from jaxprune.models import ARCHITECTURES
from jaxprune.models.folder import read_folder

STEMS = "prun weight layer mask train recover head neuron spars matri corpus token piec small big fast slow"
WORDS = [stem + end for stem in STEMS.split() for end in ("", "e", "ed", "ing", "s", "ation", "er")]
BERT, ROBERTA, XLM = (ARCHITECTURES[name].special_tokens for name in ("bert", "roberta", "xlm-roberta"))


def sentences(seed, words=WORDS, count=200):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(count)]


def wordpiece():
    """A trained one, with its end-of-text ids out of order as in a real vocabulary."""
    return tokenizer.train(lambda: sentences(0), 160, lowercase=True, special=BERT).tokenizer


def byte_bpe():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    first = [ROBERTA.cls, ROBERTA.pad, ROBERTA.sep, ROBERTA.unk]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*first, ROBERTA.mask], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(sentences(0), trainer)
    made.post_processor = processors.RobertaProcessing((ROBERTA.sep, 2), (ROBERTA.cls, 0), add_prefix_space=False)
    return made


def unigram():
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = [XLM.cls, XLM.pad, XLM.sep, XLM.unk, XLM.mask]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token=XLM.unk, show_progress=False)
    made.train_from_iterator(sentences(0), trainer)
    pair = f"{XLM.cls} $A {XLM.sep} {XLM.sep} $B {XLM.sep}"
    made.post_processor = processors.TemplateProcessing(
        single=f"{XLM.cls} $A {XLM.sep}", pair=pair, special_tokens=[(XLM.cls, 0), (XLM.sep, 2)]
    )
    return made


KINDS = {"WordPiece": (wordpiece, BERT), "BPE": (byte_bpe, ROBERTA), "Unigram": (unigram, XLM)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_of_kept_pieces_has_the_same_encoding(kind):
    make, special = KINDS[kind]
    whole = tokenizer.parse(make().to_str().encode(), special, kind)
    corpus = sentences(1, WORDS[:40])
    kept = kept_ids(whole, used_ids(whole, [corpus[:50], corpus[50:]]))
    files = cut(whole, kept)
    small = tokenizer.parse(files["tokenizer.json"], special, kind)
    assert small.size == len(kept) < whole.size - 20
    assert list(small.pieces) == [whole.pieces[old] for old in kept]
    new = {old: number for number, old in enumerate(kept)}
    assert {role: new[old] for role, old in whole.special.items()} == small.special
    rng, letters = random.Random(2), "abcdefghinprstuw é中🙂-X"
    noise = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(1500)]
    texts = [*corpus, *sentences(3, count=1000), *sentences(4, WORDS[:44], count=1000), *noise]
    before, after = whole.encode(texts), small.encode(texts)
    unknown, compared, fell = whole.special["unk"], 0, 0
    for old, ids in zip(before, after, strict=True):
        if {*old} <= new.keys() and (unknown not in old or kind != "WordPiece"):
            assert ids == [new[number] for number in old]
            compared += 1
        else:
            fell += 1
            assert unknown in old or small.special["unk"] not in ids  # smaller pieces, not an unknown word
    assert compared > 1000 and fell > 500
    pairs = [
        each.encode("weights", "masks").ids
        for each in (make(), tokenizers.Tokenizer.from_str(small.tokenizer.to_str()))
    ]
    assert [new[number] for number in pairs[0]] == pairs[1]  # what stands around texts has new ids too


def test_a_tokenizer_of_another_kind_is_refused():
    special = {token: i for i, token in enumerate(BERT)}
    whole = tokenizers.Tokenizer(models.WordLevel(special | {"word": 9}, unk_token=BERT.unk))
    with pytest.raises(UserError, match="WordLevel pieces cannot be cut"):
        kept_ids(tokenizer.parse(whole.to_str().encode(), BERT, "here"), {9})


@pytest.mark.parametrize(("kind", "name"), [("BertForPreTraining", "WordPiece"), ("RobertaForMaskedLM", "BPE")])
def test_a_model_with_fewer_rows_computes_the_same(tmp_path, kind, name):
    make, special = KINDS[name]
    whole = make()
    source = saved(tmp_path / "whole", kind, vocab_size=whole.get_vocab_size() + 3)
    (source / "tokenizer.json").write_text(whole.to_str())
    if name == "WordPiece":
        vocabulary = tokenizer.parse(whole.to_str().encode(), special, name)
        for file, content in tokenizer.files(vocabulary).items():
            (source / file).write_bytes(content)
    else:
        roles = {f"{role}_token": token for role, token in special._asdict().items()}
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer", **roles}))
        pieces = sorted(whole.get_vocab().items(), key=lambda pair: pair[1])
        (source / "vocab.json").write_text(json.dumps(dict(pieces)))
    (tmp_path / "text.txt").write_text("\n".join(sentences(1, WORDS[:40])))
    run("compact", source, tmp_path / "small", "--vocabulary", tmp_path / "text.txt")
    text = ["pruned weights train layers", "masks recover"]
    old, new = (transformers.AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("whole", "small"))
    before, after = (each(text, padding=True)["input_ids"] for each in (old, new))
    assert [old.convert_ids_to_tokens(ids) for ids in before] == [new.convert_ids_to_tokens(ids) for ids in after]
    assert before != after
    cfg = read_folder(tmp_path / "small", head=None).model
    assert cfg.vocab_size == len(new) < len(old) and cfg.pad_token_id == new.pad_token_id
    rows = [old.convert_tokens_to_ids(new.convert_ids_to_tokens(i)) for i in range(len(new))]
    first, second = outputs(source, np.array(before)), outputs(tmp_path / "small", np.array(after))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a[..., rows] if a.shape[-1] == whole.get_vocab_size() + 3 else a, b, atol=1e-5)
    np.testing.assert_allclose(
        theirs(source, kind, np.array(before))[..., rows], theirs(tmp_path / "small", kind, np.array(after)), atol=1e-5
    )
    assert jax.tree.leaves(read_folder(tmp_path / "small", head=None).params)
