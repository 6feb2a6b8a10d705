"""Corpus readers, sentences and tokenizers: what comes out of every kind of source, and what bad input is told."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxprune.config import SourceConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import tokenizer
from jaxprune.data.corpus import Reader, documents
from jaxprune.data.corpus_files import size_hint
from jaxprune.data.sentences import sentences
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
TEXTS = ["The first document. It has two sentences.", "The second one.\nWith a second line."]


def read(path, **settings):
    return list(documents(SourceConfig(path=str(path), **settings)))


@pytest.fixture
def table(tmp_path):
    """A function that writes rows as Parquet."""

    def write(name, **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return write


def test_parquet(table):
    path = table("a.parquet", title=["x", "y"], text=TEXTS)
    assert read(path) == TEXTS
    assert read(path, text_field="title") == ["x", "y"]


def test_jsonl_and_gzip(tmp_path):
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    assert read(tmp_path / "a.jsonl") == TEXTS
    assert read(tmp_path) == TEXTS * 2
    assert read(tmp_path / "*.jsonl") == TEXTS


def test_text_blocks_lines_and_wikitext(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n \nthree\r\n")
    assert read(path) == ["one\ntwo", "three"]
    assert read(path, paragraphs=True) == ["one", "two", "three"]
    path.write_text(" \n = Homarus = \n \n A lobster . \n \n = = Life = = \n \n It lives . \n = Other = \n Text . \n")
    assert [d.split("\n") for d in read(path)] == [
        ["Homarus", " A lobster . ", "Life", " It lives ."],
        ["Other", " Text ."],
    ]


def test_wikiextractor(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="u" title="A &amp; B">\nA & B\n\nText of it.\n</doc>\n<doc id="2" title="C">\nMore.\n</doc>\n'
    )
    assert read(path) == ["Text of it.", "More."]
    path.write_text("\n".join(json.dumps({"title": "t", "text": text}) for text in TEXTS))
    assert read(path) == TEXTS


def test_hub_reads_what_datasets_loads(table, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = table("train.parquet", text=TEXTS).parent
    assert read(folder, kind="hub", streaming=True) == TEXTS
    with pytest.raises(UserError, match="no column text_field = 'txt'; there are text; did you mean text_field: text"):
        read(folder, kind="hub", text_field="txt")
    with pytest.raises(UserError, match="split") as error:
        read(folder, kind="hub", split="nonsense")
    assert "\n" not in str(error.value)


def test_hub_offline_is_one_clear_line(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"source hub some/name: cannot reach .*Couldn't reach it.*kind: local"):
        read("some/name", kind="hub")


def test_blank_documents_are_counted_and_dirt_is_removed(tmp_path):
    rows = ["\ufeffOne\0.", "", " \n", None, "Two \ud800."]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    reader = Reader((SourceConfig(path=str(tmp_path / "a.jsonl")),))
    assert [text for row in reader.rows() for text in row] == ["One.", "Two ."]
    assert reader.blank == 3


def test_limits(table):
    path = table("a.parquet", text=["abcd"] * 9)
    assert len(read(path, max_documents=4)) == 4
    assert len(read(path, max_chars=10)) == 3
    assert size_hint(SourceConfig(path=str(path), max_chars=10)) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: is empty"),
        ("a.txt", b" \n\n ", r"a\.txt: holds no text"),
        ("a.txt", b"good line\nbad \xe9 line", r"a\.txt: byte 14 is not UTF-8"),
        ("a.txt", "hello".encode("utf-16"), r"a\.txt: byte 0 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', r"a\.jsonl:2: holds list"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', r"a\.jsonl:2: no column .* 'text'; there are txt; did you mean"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl:1: 'text' holds int '3', not text"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: not a readable Parquet file"),
        ("a.xyz", b"text", r"a\.xyz: no \.parquet, \.jsonl"),
        ("wiki_00", b"plain", r"wiki_00:1: text outside <doc"),
        ("wiki_00", b'<doc id="1">\ntext', r"wiki_00:1: <doc> is never closed"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: cannot be read"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_bad_paths_and_columns(table, tmp_path):
    with pytest.raises(UserError, match=r"missing.*no such file, folder or glob"):
        read(tmp_path / "missing")
    path = table("a.parquet", texts=TEXTS, size=[1, 2])
    with pytest.raises(UserError, match=r"there are size, texts; did you mean text_field: texts\?"):
        read(path)
    with pytest.raises(UserError, match="holds int64, not text"):
        read(path, text_field="size")


def test_sentences():
    wrapped = "The lobster is a large animal that lives in the cold sea near\nNorway. It is blue."
    assert sentences(wrapped) == [
        "The lobster is a large animal that lives in the cold sea near Norway.",
        "It is blue.",
    ]
    assert sentences("A heading\nIts text by Mr. Smith  goes on.\n\nNext") == [
        "A heading",
        "Its text by Mr. Smith goes on.",
        "Next",
    ]
    assert sentences(" \n ") == []


# Tokenizers

WORDS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "[", "]", "mask", "Hello"]


def write_vocab(folder, words, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_vocab_txt_takes_its_casing_from_the_config(tmp_path):
    lower = tokenizer.load(write_vocab(tmp_path / "a", WORDS, do_lower_case=True), special=BERT)
    cased = tokenizer.load(write_vocab(tmp_path / "b", WORDS, do_lower_case=False), special=BERT)
    assert lower.encode(["Hello worlds"]) == [[6, 7, 8]]
    assert cased.encode(["Hello worlds"]) == [[12, 7, 8]]
    assert lower.special == {"pad": 0, "unk": 2, "cls": 3, "sep": 4, "mask": 5}
    assert (lower.size, lower.prefix) == (13, "##")
    written = [json.loads(tokenizer.files(vocab)["tokenizer_config.json"]) for vocab in (lower, cased)]
    assert [settings["do_lower_case"] for settings in written] == [True, False]


def test_special_tokens_in_text_stay_text(tmp_path):
    vocab = tokenizer.load(write_vocab(tmp_path / "a", WORDS), special=BERT)
    assert vocab.encode(["hello [MASK]"]) == [[6, 9, 11, 10]]


def test_bad_tokenizers(tmp_path):
    with pytest.raises(UserError, match=r"11 tokens lack \[CLS\], \[MASK\]; use a .* or set train_size"):
        tokenizer.load(write_vocab(tmp_path / "a", [w for w in WORDS if w not in ("[CLS]", "[MASK]")]), special=BERT)
    with pytest.raises(UserError, match="no such directory"):
        tokenizer.load(str(tmp_path / "missing"), special=BERT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.txt"):
        tokenizer.load(str(tmp_path / "empty"), special=BERT)
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        tokenizer.load(str(tmp_path / "empty"), special=BERT)


def test_a_trained_vocabulary_is_reproducible_and_loads_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    texts = [f"The lobster number {i} walks quietly under the Élan walls, walking and walked." for i in range(50)]

    def train():
        return tokenizer.train(lambda: texts, 120, lowercase=True, special=BERT)

    vocab = train()
    assert vocab.pieces[:5] == BERT and vocab.size <= 120
    assert all(train().pieces == vocab.pieces for _ in range(3))
    for name, content in tokenizer.files(vocab).items():
        (tmp_path / name).write_bytes(content)
    again = tokenizer.load(str(tmp_path), special=BERT)
    assert again.sha256 == vocab.sha256
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    a, b = "Walking quietly, élan!", "The unknown ☃"
    ours = again.encode([a, b])
    cls, sep = vocab.special["cls"], vocab.special["sep"]
    assert theirs(a, b).input_ids == [cls, *ours[0], sep, *ours[1], sep]
    assert theirs.mask_token_id == vocab.special["mask"] and theirs.pad_token_id == 0
    with pytest.raises(UserError, match="train_size = 20"):
        tokenizer.train(lambda: texts, 20, lowercase=True, special=BERT)
