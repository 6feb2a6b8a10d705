"""Tokenizers of folders as users make them: ids equal transformers' own, and what is written loads there as it was."""

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, BertTokenizer, XLMRobertaTokenizer

from jaxprune.config.sections import DataConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import tokenizer
from jaxprune.data.examples import Examples
from jaxprune.data.masking import Masking
from jaxprune.data.task_batches import encode
from jaxprune.data.tasks import TASKS
from jaxprune.data.tokenizer_plain import is_plain
from jaxprune.data.tokenizer_pool import tokenize, tokenize_chunks
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
ROBERTA = SpecialTokens(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")
LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters that str.splitlines() splits at and a vocabulary does not."""
LETTERS = (
    "abcdeABDE"
    + "éÉçßİıñ"
    + "\u0301\u0308\u0327"
    + "中文字日本"
    + "αΩжЙ"
    + "①ﬁ½Ⅳ"
    + "\u200d\u00ad\ufeff🙂"
    + ".,-'_[]#<>/!"
    + "019"
)
SPACES = " \t\n\r\u00a0\u3000" + LINE_ENDS
TEXTS = [
    "Hello wörld, HELLO World! naïve café",
    "a [MASK] b [SEP] c <mask>d </s> <s>e",
    "中文字 and 日本, mixed中文x",
    " lead\u2028line\x85end\x0bof\r\nall  ",
    "e\u0301E\u0301 ﬁ ½ \u200d\ufeff",
    "",
    " ",
]


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def same(folder: Path, special: SpecialTokens, texts: list[str], **how) -> tokenizer.Vocabulary:
    """The folder's vocabulary, whose ids and special tokens are those of transformers, also of what it writes."""
    ours, theirs = tokenizer.load(str(folder), special=special), AutoTokenizer.from_pretrained(folder, **how)
    agree(ours, theirs, texts)
    split = AutoTokenizer.from_pretrained(folder, split_special_tokens=True, **how)
    assert ours.encode(texts) == split(texts, add_special_tokens=False).input_ids
    out = write(folder.parent / f"{folder.name}-out", tokenizer.files(ours, max_length=77))
    agree(ours, AutoTokenizer.from_pretrained(out), texts)
    again = tokenizer.load(str(out), special=special)
    assert again.sha256 == ours.sha256 and again.special_tokens == ours.special_tokens
    assert again.encode(texts) == ours.encode(texts)
    for path in folder.iterdir():
        if path.name not in ("config.json", "tokenizer_config.json"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    return ours


def agree(ours: tokenizer.Vocabulary, theirs, texts: list[str]) -> None:
    assert ours.encode(texts, names_as_ids=True) == theirs(texts, add_special_tokens=False).input_ids
    roles = {role: getattr(theirs, f"{role}_token_id") for role in ours.special}
    assert {role: number for role, number in roles.items() if number is not None} == {
        role: number for role, number in ours.special.items() if roles[role] is not None
    }
    pieces = {number: piece for piece, number in sorted(theirs.get_vocab().items())}
    assert list(ours.pieces) == [pieces.get(number, "") for number in range(max(pieces) + 1)]
    if theirs.num_special_tokens_to_add(True):
        first, second = "Hello, bé [MASK]", "e 中文 x"
        a, b = ours.encode([first, second], names_as_ids=True)
        cls, sep = [ours.special["cls"]], [ours.special["sep"]]
        assert theirs(first, second).input_ids == [*cls, *a, *sep * ours.separators, *b, *sep]
        for length in (12, 9):  # a tokenizer that tells nothing of segments leaves all to type 0
            made = (Examples(TASKS["RTE"], "", [first], b, np.zeros(1, np.int32)) for b in ([second], None))
            pair, one = (encode(each, ours, length) for each in made)
            how = {"truncation": "longest_first", "max_length": length, "verbose": False}
            wanted = theirs(first, second, **how)
            assert pair.ids.tolist() == wanted.input_ids and one.ids.tolist() == theirs(first, **how).input_ids
            assert pair.types.tolist() == wanted.get("token_type_ids", [0] * len(pair.ids))


def vocab_txt(draw: random.Random) -> bytes:
    """A vocabulary with pieces in any order, some of them not for the faint-hearted."""
    pieces = {*LETTERS, *("##" + c for c in LETTERS if draw.random() < 0.7)}
    pieces |= {"".join(draw.choices(LETTERS.lower(), k=draw.randint(2, 4))) for _ in range(60)}
    pieces |= {"##" + "".join(draw.choices(LETTERS, k=2)) for _ in range(40)}
    pieces |= {draw.choice(LETTERS) + c + draw.choice(LETTERS) for c in LINE_ENDS} | {"a b"}
    if draw.random() < 0.3:  # the end of these lines is lost, and with it some pieces
        pieces |= {"", "x\u2028", "\u2028"}
    ordered = sorted(pieces)
    draw.shuffle(ordered)
    at = draw.randrange(len(ordered))
    ends = ["\r\n" if draw.random() < 0.02 else "\n" for _ in range(len(ordered) + 5)]
    return "".join(map("".join, zip([*ordered[:at], *BERT, *ordered[at:]], ends))).encode()


def texts_of(draw: random.Random, names: list[str], count: int = 60) -> list[str]:
    def word() -> str:
        if draw.random() < 0.2:
            return draw.choice(names)
        return "".join(draw.choices(LETTERS, k=draw.randint(1, 6)))

    return [
        "".join(word() + (draw.choice(SPACES) if draw.random() < 0.8 else "") for _ in range(draw.randint(0, 12)))
        for _ in range(count)
    ]


def drawn(draw: random.Random) -> tuple[dict[str, Any], list[str]]:
    """Files of a BERT tokenizer with settings, and tokens added in one of the layouts; names to put into texts."""
    files: dict[str, Any] = {"vocab.txt": vocab_txt(draw)}
    settings: dict = {"do_lower_case": draw.choice([True, False]), "strip_accents": draw.choice([None, True, False])}
    settings |= {"tokenize_chinese_chars": draw.choice([True, False])}
    settings = {key: value for key, value in settings.items() if draw.random() < 0.8}
    names = [*BERT, "[unk]", "new york", "ab"]
    known = len(files["vocab.txt"].decode().replace("\r\n", "\n").split("\n")) - 1
    added = {name: known + i for i, name in enumerate(draw.sample(["new york", "ab", "É-x", "[ENT]", " z", "中文"], 4))}
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    listed = {
        str(number): {"content": name} | {flag: draw.random() < 0.4 for flag in flags} for name, number in added.items()
    }
    layout = draw.choice(["none", "added_tokens.json", "added_tokens_decoder", "tokenizer.json", "additional"])
    if layout == "added_tokens.json":
        files[layout] = added
    elif layout == "added_tokens_decoder":
        settings[layout] = listed
    elif layout == "additional":
        settings["additional_special_tokens"] = [*added][:2]
        files["special_tokens_map.json"] = {"mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False}}
    names += added
    if draw.random() < 0.8 or layout == "added_tokens_decoder":
        files["tokenizer_config.json"] = settings | {
            "tokenizer_class": draw.choice(["BertTokenizer", "BertTokenizerFast"])
        }
    return files, names


@pytest.mark.parametrize("seed", range(12))
def test_ids_are_transformers_own_over_drawn_vocabularies(tmp_path, seed):
    draw = random.Random(seed)
    files, names = drawn(draw)
    folder = write(tmp_path / "model", files | {"config.json": {"model_type": "bert"}})
    texts = texts_of(draw, names) + TEXTS
    same(folder, BERT, texts)
    # the same tokenizer as save_pretrained writes it, with settings that no longer agree with tokenizer.json
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    settings = json.loads((saved / "tokenizer_config.json").read_bytes())
    settings["do_lower_case"] = draw.choice([True, False])
    write(saved, {"tokenizer_config.json": settings})
    same(saved, BERT, texts)
    write(saved, {"vocab.txt": "\n".join(BERT), "config.json": {"model_type": "distilbert"}})
    same(saved, BERT, texts)  # both: tokenizer.json wins
    (saved / "tokenizer_config.json").unlink()
    same(saved, BERT, texts)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A folder with a cased vocab.txt alone."""
    words = [*BERT, "Hello", "hello", "wo", "##rld", "wörld", "##s", "[", "]", "mask", *"eE!,中文"]
    return write(tmp_path_factory.mktemp("bert") / "vocab", {"vocab.txt": "\n".join(words)})


def test_vocab_txt_alone_is_berts(tmp_path, bert):
    """Without settings transformers lower-cases, capitals in the vocabulary or not."""
    ours = tokenizer.load(str(bert), special=BERT)
    theirs = BertTokenizer.from_pretrained(bert)
    agree(ours, theirs, TEXTS)
    assert ours.encode(["Hello"]) == [[6]]
    out = write(tmp_path / "out", tokenizer.files(ours))
    agree(ours, AutoTokenizer.from_pretrained(out), TEXTS)
    with_config = write(
        tmp_path / "model", {"vocab.txt": (bert / "vocab.txt").read_bytes(), "config.json": {"model_type": "bert"}}
    )
    assert same(with_config, BERT, TEXTS).sha256 == ours.sha256


def test_pieces_keep_their_ids_whatever_their_characters(tmp_path):
    """Lines end at \\n alone; readlines() and splitlines() find others."""
    words = [*BERT, *(f"a{c}b" for c in LINE_ENDS), "last"]
    ours = same(
        write(tmp_path / "m", {"vocab.txt": "\n".join(words), "config.json": {"model_type": "bert"}}), BERT, TEXTS
    )
    assert ours.pieces == tuple(words) and ours.encode(["last"]) == [[len(words) - 1]]


def test_tokenizer_json_alone_needs_no_transformers(tmp_path, bert):
    BertTokenizer.from_pretrained(bert, do_lower_case=False).save_pretrained(tmp_path / "saved")
    whole = (tmp_path / "saved" / "tokenizer.json").read_bytes()
    folder = write(tmp_path / "alone", {"tokenizer.json": whole})
    code = (
        "import sys; from jaxprune.data.tokenizer import load, SpecialTokens;"
        f"v = load({str(folder)!r}, special=SpecialTokens(*{tuple(BERT)!r})); v.encode(['Hello'], names_as_ids=True);"
        "assert not {'transformers', 'jax', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    names = [
        "input_ids",
        "token_type_ids",
        "attention_mask",
    ]  # without settings its template says whether there are types
    ours = same(folder, BERT, TEXTS, model_input_names=names)
    assert ours.encode(["Hello"]) == [[5]]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "alone-out")
    assert theirs("a", "b").token_type_ids == [0, 0, 0, 1, 1]
    # nor does what save_pretrained wrote, whose settings say the same; with other settings they win, as in transformers
    for name, lower in (("saved", False), ("other", True)):
        settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_bytes()) | {"do_lower_case": lower}
        write(tmp_path / name, {"tokenizer.json": whole, "tokenizer_config.json": settings})
        assert is_plain(json.loads(whole), settings, BERT) == (not lower)
        same(tmp_path / name, BERT, TEXTS)
    # beside a config.json transformers builds BERT's own, which lower-cases unless told
    assert same(
        write(tmp_path / "model", {"tokenizer.json": whole, "config.json": {"model_type": "bert"}}), BERT, TEXTS
    )


CHANGES: dict[str, tuple[str, str, Any]] = {
    "nothing": ("settings", "", None),
    "accents": ("settings", "strip_accents", False),
    "chinese": ("settings", "tokenize_chinese_chars", False),
    "one more token": ("settings", "additional_special_tokens", ["[ENT]"]),
    "a token of its own": ("settings", "entity_token", "[ENT]"),
    "another mask": ("settings", "mask_token", "Hello"),
    "an unnamed mask": ("settings", "mask_token", None),
    "names are text": ("settings", "split_special_tokens", True),
    "flags": ("special_tokens_map", "mask_token", {"content": "[MASK]", "lstrip": True}),
    "no normalizer": ("whole", "normalizer", None),
    "other pre-tokens": ("whole", "pre_tokenizer", {"type": "Whitespace"}),
    "no template": ("whole", "post_processor", None),
    "nothing added": ("whole", "added_tokens", []),
    "short words": ("model", "max_input_chars_per_word", 3),
    "other marks": ("model", "continuing_subword_prefix", "@@"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_json_is_run_as_it_is_only_where_transformers_would_build_the_same(tmp_path, bert, change):
    """Whatever differs between it and the settings, ids stay those of transformers."""
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "m")
    files = {
        name: json.loads((tmp_path / "m" / f"{name}.json").read_bytes()) for name in ("tokenizer", "tokenizer_config")
    }
    whole, settings = files.values()
    where, key, value = CHANGES[change]
    parts = {"settings": settings, "whole": whole, "model": whole["model"], "special_tokens_map": {}}
    parts[where].pop(key, None)
    if value is not None:
        parts[where][key] = value
    write(tmp_path / "m", {"tokenizer.json": whole, "tokenizer_config.json": settings})
    write(tmp_path / "m", {"special_tokens_map.json": parts["special_tokens_map"]})
    texts = [*TEXTS, "Hello [ENT] Hello", "hello [MASK]  [MASK]wo", *texts_of(random.Random(3), [*BERT, "[ENT]"], 20)]
    assert is_plain(whole, settings | parts["special_tokens_map"], BERT) == (change in ("nothing", "no template"))
    if value is True:  # the settings say what `encode` does unasked
        ours, theirs = tokenizer.load(str(tmp_path / "m"), special=BERT), AutoTokenizer.from_pretrained(tmp_path / "m")
        agree(ours, theirs, texts)
        assert ours.encode(texts) == ours.encode(texts, names_as_ids=True)
    else:
        same(tmp_path / "m", BERT, texts)


@pytest.mark.parametrize("cls", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("left", ["settings", "tokenizer.json"])
def test_texts_are_cut_on_the_folders_own_side(tmp_path, bert, cls, left):
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "m")
    whole, settings = (
        json.loads((tmp_path / "m" / f"{name}.json").read_bytes()) for name in ("tokenizer", "tokenizer_config")
    )
    settings["tokenizer_class"] = cls
    if left == "settings":
        settings["truncation_side"] = "left"
    else:
        whole["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    write(tmp_path / "m", {"tokenizer.json": whole, "tokenizer_config.json": settings})
    assert same(tmp_path / "m", BERT, TEXTS).cuts_left
    assert not tokenizer.load(str(bert), special=BERT).cuts_left


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A byte-level BPE as vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("roberta") / "vocab"
    folder.mkdir()
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [*TEXTS, *LETTERS] * 3, 400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    bpe.save_model(str(folder))
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"add_prefix_space": True, "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}}],
)
@pytest.mark.parametrize("saved", [False, True])
def test_byte_level_bpe(tmp_path, roberta, settings, saved):
    files = {path.name: path.read_bytes() for path in roberta.iterdir()}
    folder = write(
        tmp_path / "m", files | {"config.json": {"model_type": "roberta"}, "tokenizer_config.json": settings}
    )
    if saved:
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
        folder = tmp_path / "saved"
        (folder / "vocab.json").unlink(missing_ok=True)
        (folder / "merges.txt").unlink(missing_ok=True)
    draw = random.Random(0)
    ours = same(folder, ROBERTA, texts_of(draw, [*ROBERTA, " <mask> "], 200) + TEXTS)
    assert ours.separators == 2 and ours.special == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}


def test_byte_level_bpe_without_a_config(roberta):
    ours = tokenizer.load(str(roberta), special=ROBERTA)
    agree(ours, AutoTokenizer.from_pretrained(roberta, tokenizer_type="roberta"), TEXTS)


PIECES = [(c, -5.0 - i / 9) for i, c in enumerate("▁abcdeéHlo中文.,w[]M")] + [
    ("▁a", -2.0),
    ("▁He", -2.5),
    ("llo", -3.0),
]


def test_sentencepiece_as_tokenizer_json(tmp_path):
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    theirs = XLMRobertaTokenizer(vocab=[*special, *PIECES, ("<mask>", 0.0)])
    theirs.save_pretrained(tmp_path / "saved")
    ours = same(tmp_path / "saved", ROBERTA, texts_of(random.Random(1), [*ROBERTA], 100) + TEXTS)
    assert ours.encode(["Hello a"]) == theirs(["Hello a"], add_special_tokens=False).input_ids
    assert ours.separators == 2 and ours.prefix == ""
    whole = {"tokenizer.json": (tmp_path / "saved" / "tokenizer.json").read_bytes()}
    same(write(tmp_path / "model", whole | {"config.json": {"model_type": "xlm-roberta"}}), ROBERTA, TEXTS)


def test_sentencepiece_model_alone(tmp_path):
    """Converted by transformers where its packages are there; else one line says which."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto: Any = import_protobuf().ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.trainer_spec.model_type, proto.trainer_spec.unk_id = 1, 0
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in PIECES:
        proto.pieces.add(piece=piece, score=score, type=1)
    folder = write(
        tmp_path / "m",
        {"sentencepiece.bpe.model": proto.SerializeToString(), "config.json": {"model_type": "xlm-roberta"}},
    )
    if importlib.util.find_spec("sentencepiece") is None:
        with pytest.raises(UserError, match=r"pip install sentencepiece protobuf.*tokenizer\.json"):
            tokenizer.load(str(folder), special=ROBERTA)
    else:
        same(folder, ROBERTA, TEXTS)


def test_the_folders_own_names_of_special_tokens(tmp_path):
    words = ["<p>", "<u>", "<c>", "<e>", "<m>", "a", "b", "##b", "[PAD]"]
    named = {"pad_token": "<p>", "unk_token": "<u>", "cls_token": "<c>", "sep_token": "<e>", "mask_token": "<m>"}
    files = {"vocab.txt": "\n".join(words), "special_tokens_map.json": named, "config.json": {"model_type": "bert"}}
    ours = same(write(tmp_path / "m", files), BERT, ["a <m> bb", "<c> ab"])
    assert ours.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert ours.special_tokens == SpecialTokens("<p>", "<u>", "<c>", "<e>", "<m>")
    del files["special_tokens_map.json"]
    with pytest.raises(UserError, match=r"its 9 tokens lack \[UNK\], \[CLS\], \[SEP\], \[MASK\]; use a vocabulary"):
        tokenizer.load(str(write(tmp_path / "unnamed", files)), special=BERT)
    theirs = SpecialTokens("<p>", "<u>", "<c>", "<e>", "<m>")  # of an architecture that spells them so
    assert tokenizer.load(str(tmp_path / "unnamed"), special=theirs).special["mask"] == 4
    del files["config.json"]
    assert tokenizer.load(str(write(tmp_path / "bare", files)), special=theirs).encode(["bb"]) == [[6, 7]]


def test_a_text_names_special_tokens_only_where_asked(bert):
    vocab = tokenizer.load(str(bert), special=BERT)
    mask = vocab.special["mask"]
    assert vocab.encode(["hello [MASK]"]) == [[6, *vocab.encode(["[mask]"])[0]]]
    assert vocab.encode(["hello [MASK]"], names_as_ids=True) == [[6, mask]]
    assert mask not in vocab.encode(["hello [MASK]"])[0]  # the switch leaves nothing behind


def test_other_processes_encode_alike(tmp_path):
    """Added tokens and flags survive the way to the pool."""
    draw = random.Random(5)
    files, names = drawn(draw)
    vocab = tokenizer.load(str(write(tmp_path / "m", files)), special=BERT)
    texts = texts_of(draw, names)
    ((chunk, _),) = tokenize_chunks(iter([(texts, None)]), vocab, 2)
    assert (chunk.tokens_T == tokenize(texts, vocab).tokens_T).all() and len(chunk.tokens_T)


def test_sentences_of_a_document_keep_the_space_between_them(tmp_path, roberta, bert):
    """Where a tokenizer sees it: cut into sentences, a text has the ids that it has as a whole."""
    text = "Hello world. A café is here.  Hello again."
    xlm = XLMRobertaTokenizer(vocab=[(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + PIECES)
    xlm.save_pretrained(tmp_path)
    for folder, special in ((roberta, ROBERTA), (bert, BERT), (tmp_path, ROBERTA)):
        vocab = tokenizer.load(str(folder), special=special)
        chunk = tokenize([text, text], vocab)
        whole = vocab.encode([" ".join(text.split())])[0]
        assert chunk.tokens_T.tolist() == 2 * whole and len(chunk.lengths_S) == 6


def test_model_max_length_is_written_where_none_is(tmp_path, bert):
    vocab = tokenizer.load(str(bert), special=BERT)
    theirs = AutoTokenizer.from_pretrained(write(tmp_path / "a", tokenizer.files(vocab, max_length=9)))
    assert theirs.model_max_length == 9
    assert len(theirs("hello " * 50, truncation=True).input_ids) == 9
    files = {"vocab.txt": (bert / "vocab.txt").read_bytes()}
    whole = {"tokenizer_class": "BertTokenizer", "model_max_length": 5}
    set_already = tokenizer.load(str(write(tmp_path / "b", files | {"tokenizer_config.json": whole})), special=BERT)
    assert tokenizer.files(set_already, max_length=9) == set_already.files
    assert json.loads(set_already.files["tokenizer_config.json"]) == whole
    endless = whole | {"model_max_length": int(1e30)}  # what save_pretrained writes for none
    vocab = tokenizer.load(str(write(tmp_path / "c", files | {"tokenizer_config.json": endless})), special=BERT)
    assert json.loads(tokenizer.files(vocab, max_length=9)["tokenizer_config.json"])["model_max_length"] == 9
    trained = tokenizer.train(lambda: TEXTS, 300, lowercase=True, special=BERT)
    theirs = AutoTokenizer.from_pretrained(write(tmp_path / "d", tokenizer.files(trained, max_length=12)))
    assert theirs.model_max_length == 12
    agree(trained, theirs, TEXTS)


def test_whole_words_need_wordpiece(roberta):
    vocab = tokenizer.load(str(roberta), special=ROBERTA)
    with pytest.raises(UserError, match="whole_word = true needs a WordPiece tokenizer"):
        Masking(DataConfig(whole_word=True), vocab, 16)
    assert Masking(DataConfig(), vocab, 16).mask_id == 4


def test_damaged_files_are_named(tmp_path, bert):
    vocab = (bert / "vocab.txt").read_bytes()
    cases: dict[str, tuple[dict, str]] = {
        "settings": ({"vocab.txt": vocab, "tokenizer_config.json": "{"}, r"tokenizer_config\.json is damaged"),
        "list": ({"vocab.txt": vocab, "added_tokens.json": "[]"}, r"added_tokens\.json is damaged \(not a JSON object"),
        "latin": ({"vocab.txt": b"[PAD]\n\xe9\n"}, "not a readable tokenizer"),
        "half": ({"tokenizer.json": "{}", "config.json": {"model_type": "bert"}}, "not a readable tokenizer"),
        "merges": ({"vocab.json": {"a": 0}}, "not a readable tokenizer|lack"),
        "none": ({"merges.txt": ""}, r"neither tokenizer\.json nor vocab\.txt, nor"),
    }
    for name, (files, said) in cases.items():
        with pytest.raises(UserError, match=said) as raised:
            tokenizer.load(str(write(tmp_path / name, files)), special=BERT)
        assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.real
def test_a_real_sentence_encoder(minilm):
    folder = minilm
    ours, theirs = tokenizer.load(str(folder), special=BERT), AutoTokenizer.from_pretrained(folder)
    agree(ours, theirs, texts_of(random.Random(2), [*BERT], 100) + TEXTS)
    names = {path.name for path in folder.iterdir()}
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    assert is_plain(json.loads((folder / "tokenizer.json").read_bytes()), settings, BERT)
    assert all(content == (folder / name).read_bytes() for name, content in ours.files.items() if name in names)
