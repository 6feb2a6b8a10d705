"""Corpus readers, sentences and tokenizers: what comes out of every kind of source, and what bad input is told."""

import bz2
import gzip
import json
import lzma
import random

import pandas
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import sentencex

from jaxprune.cli import main
from jaxprune.config import SourceConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import corpus_files, tokenizer
from jaxprune.data import sentences as segmentation
from jaxprune.data.corpus import Reader, documents
from jaxprune.data.corpus_files import FORMATS, size_hint, unread_files
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


def test_parquet_text_types(table):
    """Text is text in every type that Arrow has for it, in Parquet and in Arrow files."""
    columns = {
        "view": pa.array([*TEXTS, None], pa.string_view()),
        "coded": pa.array([*TEXTS, None]).dictionary_encode(),
        "large": pa.array([*TEXTS, None], pa.large_string()).dictionary_encode(),
        "bytes": pa.array([b"a", b"b", None]).dictionary_encode(),
    }
    path = table("a.parquet", **columns)
    with pa.ipc.new_file(path.with_suffix(".arrow"), pa.table(columns).schema) as file:
        file.write_table(pa.table(columns))
    for each in (path, path.with_suffix(".arrow")):
        for field in ("view", "coded", "large"):
            assert read(each, text_field=field) == TEXTS
        with pytest.raises(UserError, match=r"'bytes' holds dictionary<values=binary.*, not text; set text_field"):
            read(each, text_field="bytes")


def test_arrow_and_feather_and_what_datasets_saves(tmp_path):
    import datasets

    rows = pa.table({"id": [1, 2], "text": TEXTS})
    pa.feather.write_feather(rows, tmp_path / "a.feather")
    with pa.ipc.new_stream(tmp_path / "b.arrow", rows.schema) as stream:
        for _ in range(3):
            stream.write_table(rows)
    assert read(tmp_path / "a.feather") == TEXTS and read(tmp_path / "b.arrow") == TEXTS * 3
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}).save_to_disk(str(saved))
    assert (saved / "dataset_dict.json").is_file()
    assert read(saved) == TEXTS and unread_files(SourceConfig(path=str(saved))) == ""
    with pytest.raises(UserError, match=r"no column text_field = 'txt'; there are id, text; did you mean text_field:"):
        read(tmp_path / "b.arrow", text_field="txt")


def test_csv_and_tsv(tmp_path):
    rows = pandas.DataFrame({"id": [1, 2, 3], "text": [*TEXTS, 'He said "a, b".\tSo.']})
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbftext,id\r\none,1\r\n\r\ntwo,2\r\n")
    assert read(tmp_path / "a.csv") == read(tmp_path / "b.tsv") == list(rows["text"])
    assert read(tmp_path / "c.csv") == ["one", "two"]


def _zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_text_format_is_read_packed(tmp_path, suffix):
    pack = PACKERS[suffix]
    plain = {
        "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "b.txt": "\n\n".join(TEXTS),
        "c.csv": pandas.DataFrame({"text": TEXTS}).to_csv(index=False),
        "d.tsv": pandas.DataFrame({"text": TEXTS}).to_csv(index=False, sep="\t"),
        "wiki_00": "".join(f'<doc id="1" title="T">\n{text}\n</doc>\n' for text in TEXTS),
    }
    for name, content in plain.items():
        (tmp_path / (name + suffix)).write_bytes(pack(content.encode()))
    assert read(tmp_path) == TEXTS * len(plain)
    # Two packed files one after the other are one, as those tools have it.
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(b"one\n\ntw") + pack(b"o"))
    assert read(tmp_path / f"b.txt{suffix}") == ["one", "two"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_packed_files(tmp_path, suffix, capsys):
    rng = random.Random(0)
    packed = PACKERS[suffix]("\n\n".join(str(rng.random()) for _ in range(9000)).encode())
    middle = len(packed) // 2
    broken = [packed[:middle], b"plain text " * 9]
    if suffix != ".zst":  # pyarrow writes it without a checksum
        broken.append(packed[:middle] + bytes(64) + packed[middle + 64 :])
    path = tmp_path / f"a.txt{suffix}"
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.txt{suffix}: cannot be read \(.+\); give a whole copy") as error:
            read(path)
        assert "\n" not in str(error.value)
    config = tmp_path / "c.yaml"
    config.write_text(f"command: prepare\nsources: [{{path: {path}}}]\ntokenizer: {{train_size: 100}}\n")
    assert main(["prepare", str(config), "--workdir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert path.name in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_files_that_no_reader_knows_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    assert unread_files(SourceConfig(path=str(tmp_path))) == ""
    for name in ("b.pdf", "c.docx", "d", ".hidden", "e.parquet.gz"):
        (tmp_path / name).write_text("Other.")
    source = SourceConfig(path=str(tmp_path))
    assert unread_files(source).endswith("4 file(s) of a format that no reader knows are not read: b.pdf, c.docx, d, "
                                         "e.parquet.gz")  # fmt: skip
    for at in range(9):
        (tmp_path / f"b{at}.pdf").write_text("Other.")
    assert unread_files(source).endswith("13 file(s) of a format that no reader knows are not read: b.pdf, b0.pdf, "
                                         "b1.pdf, b2.pdf, b3.pdf, ...")  # fmt: skip
    assert read(tmp_path) == ["Text."]
    assert read(tmp_path / "*.pdf", format="text") == ["Other."] * 10
    with pytest.raises(UserError, match=r"unknown format = 'jsnl'; did you mean 'jsonl'\?"):
        read(tmp_path, format="jsnl")
    with pytest.raises(UserError, match=f"unknown format = 'pdf'; one of: auto, {', '.join(FORMATS)}"):
        read(tmp_path, format="pdf")


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


@pytest.mark.parametrize("name", ["a.txt", "wiki_00"])
def test_a_document_without_end_is_cut_between_lines(tmp_path, monkeypatch, name):
    """So that memory has a bound; nothing is lost, and what is shorter stays whole."""
    lines = [f"Line {number} of it." for number in range(60)]
    head, end = ("<doc>\n", "</doc>\n") if name == "wiki_00" else ("", "")
    (tmp_path / name).write_text(head + "".join(line + "\n" for line in lines) + end)
    whole, single = read(tmp_path / name), read(tmp_path / name, paragraphs=True)
    assert whole == ["\n".join(lines)] and single == lines
    monkeypatch.setattr(corpus_files, "MAX_CHARS", 100)
    parts = read(tmp_path / name)
    assert "\n".join(parts) == whole[0] and 80 < max(map(len, parts)) <= 100 and len(parts) < 15
    assert read(tmp_path / name, paragraphs=True) == lines
    monkeypatch.setattr(corpus_files, "MAX_CHARS", len(whole[0]) + 1)
    assert read(tmp_path / name) == whole
    monkeypatch.setattr(corpus_files, "MAX_CHARS", 5)  # a longer line stays whole
    assert read(tmp_path / name) == lines


def test_wikiextractor(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="u" title="A &amp; B">\nA & B\n\nText of it.\n</doc>\n<doc id="2" title="C">\nMore.\n</doc>\n'
    )
    assert read(path) == ["Text of it.", "More."]
    path.write_text("\n".join(json.dumps({"title": "t", "text": text}) for text in TEXTS))
    assert read(path) == TEXTS


@pytest.mark.parametrize(
    ("attribute", "line"),
    [
        ("The &quot;A&quot; Team", 'The "A" Team'),
        ("The &quot;A&quot; Team", "The &quot;A&quot; Team"),
        ('The "A" Team', 'The "A" Team'),
        ('"Heroes"', '"Heroes"'),
        ('"', '"'),
        ("Q&amp;A", "Q&A"),
        ("A &lt; B > C", "A < B > C"),
        ("L&#39;Élan", "L'Élan"),
    ],
)
def test_wikiextractor_titles(tmp_path, attribute, line):
    path = tmp_path / "wiki_00"
    heads = (f'id="1" url="u?a=1&b" title="{attribute}"', f'title="{attribute}" id="1"')
    path.write_text("".join(f"<doc {head}>\n{line}\n\nText of it.\n</doc>\n" for head in heads))
    assert read(path) == ["Text of it."] * 2
    path.write_text(f"<doc {heads[0]}>\nNot {line}\nText.\n</doc>\n")
    assert read(path) == [f"Not {line}\nText."]


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
        ("a.xyz", b"text", r"a\.xyz: no \.parquet, \.arrow, .*\.jsonl, .*; set format"),
        ("wiki_00", b"plain", r"wiki_00:1: text outside <doc"),
        ("wiki_00", b'<doc id="1">\ntext', r"wiki_00:1: <doc> is never closed"),
        ("a.csv", b"text,id\na,1\nb\n", r"a\.csv:3: 1 values for 2 columns"),
        ("a.csv", b'text,id\na,1\n"b,2\n', r'a\.csv:3: unexpected end of data; a value with a quote'),
        ("a.csv", b"A long text that is no header, " * 9, r"a\.csv: no column text_field = 'text'; there are "),
        ("a.tsv", b"text\n\xe9\n", r"a\.tsv: byte 5 is not UTF-8"),
        ("a.arrow", b"ARROW1 no", r"a\.arrow: not a readable Arrow file"),
        ("a.feather", b"no arrow at all", r"a\.feather: not a readable Arrow file"),
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
    assert sentences("Vitamin B\u00a0. It is.\u2028Good.") == ["Vitamin B .", "It is.", "Good."]


ENGLISH = [
    *(
        "The cat sat down. ",
        "It was Mr. Smith's! ",
        "I don't know who (he? him.) is. ",
        "no stop here ",
        "“One. Two.” ",
    ),
    *('She said "Go. Now!" and went. ', "At 3.5 km, e.g. here, it stops. ", "Is it? Yes... ", "see [1. and 2.] too "),
]
CHINESE = [
    *("今天天气很好。", "我们去公园玩，", "他说：“今天很好。走吧！”", "真的吗？", "《红楼梦》是小说！", "（见下文。）"),
    *("「好。」", "价格是3.5元。", "用Python写。"),
]


@pytest.mark.parametrize("phrases", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_windows_leave_sentences_as_they_are(phrases, monkeypatch):
    """As sentencex parts the whole text, in windows whose size, and the sum of them, are bounded."""
    handed = []

    def segment(language, text):
        handed.append(len(text))
        return whole(language, text)

    whole = sentencex.segment
    monkeypatch.setattr(segmentation.sentencex, "segment", segment)
    for seed in range(25):
        rng = random.Random(seed)
        text = "".join(
            rng.choice(phrases) + "\n\n" * (rng.random() < 0.02 * (seed % 3)) for _ in range(rng.randint(300, 1200))
        )
        expected = [sentence for each in whole("en", text) if (sentence := " ".join(each.split()))]
        handed.clear()
        assert [" ".join(each.split()) for each in segmentation._segments(text) if each.strip()] == expected
        assert max(handed) <= segmentation.WINDOW and sum(handed) < 3 * len(text)


@pytest.mark.parametrize(
    "unit", ["没有句号的一行字", "aGVsbG8gd29ybGQ", "no stop at all ", '他说"好。', "“Open. ", "x. ", "\n"]
)
def test_one_long_line_loses_nothing_in_linear_work(unit, monkeypatch):
    handed = []
    whole = sentencex.segment
    monkeypatch.setattr(
        segmentation.sentencex, "segment", lambda language, text: handed.append(len(text)) or whole(language, text)
    )
    text = unit * (60_000 // len(unit))
    assert "".join(sentences(text)).replace(" ", "") == "".join(text.split())
    assert max(handed, default=0) <= segmentation.WINDOW and sum(handed) < 3 * len(text)


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
