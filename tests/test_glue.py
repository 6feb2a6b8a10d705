"""GLUE: every task's files, and every bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data.examples import Examples, subset
from jaxprune.data.glue_examples import load
from jaxprune.data.metrics import METRICS, Metric, score
from jaxprune.data.task_batches import encode
from jaxprune.data.tasks import TASKS, Task
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.data.tokenizer import load as load_vocabulary
from jaxprune.errors import UserError

BERT = SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
# The order of ClassLabel in the hub's nyu-mll/glue.
CLASSES = {
    "CoLA": ("unacceptable", "acceptable"),
    "SST-2": ("negative", "positive"),
    "MRPC": ("not_equivalent", "equivalent"),
    "STS-B": (),
    "QQP": ("not_duplicate", "duplicate"),
    "MNLI": ("entailment", "neutral", "contradiction"),
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
    "WNLI": ("not_entailment", "entailment"),
    "sts": (),
}

# task: (header, rows, first texts, second texts, labels), as in the official files.
FILES: dict[str, tuple[str, list[str], list[str], list[str] | None, list[float]]] = {
    "CoLA": ("", ["gj04\t1\t\tthe cat sat", "gj04\t0\t*\tcat the"], ["the cat sat", "cat the"], None, [1, 0]),
    "SST-2": ("sentence\tlabel", ['the " cat \t1', "a dog \t0"], ['the " cat ', "a dog "], None, [1, 0]),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ["1\t7\t8\tthe cat\ta dog", "0\t9\t10\tthe\ta"],
        ["the cat", "the"],
        ["a dog", "a"],
        [1, 0],
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        ["0\tg\tf\ty\t0\tn\tn\tthe cat\ta cat\t5.000", "1\tg\tf\ty\t1\tn\tn\tthe\tdog\t0.25"],
        ["the cat", "the"],
        ["a cat", "dog"],
        [5.0, 0.25],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ['1\t2\t3\t"the ""cat\tdog\t0', "4\t5\t6\ta line break", "in a question\t1", "7\t8\t9\tthe\ta\t1"],
        ['"the ""cat', "the"],
        ["dog", "a"],
        [0, 1],
    ),
    "MNLI": (
        "index\tgenre\tsentence1\tsentence2\tgold_label",
        ["0\tg\tthe cat\tcat\tentailment", "1\tg\tthe\ta\tcontradiction", "2\tg\ta\tthe\tneutral"],
        ["the cat", "the", "a"],
        ["cat", "a", "the"],
        [0, 2, 1],
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        ["0\tcat\tthe cat\tentailment", "1\tdog\tthe cat\tnot_entailment"],
        ["cat", "dog"],
        ["the cat", "the cat"],
        [0, 1],
    ),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        ["0\tthe cat\tcat\tnot_entailment", "1\tthe\ta\tentailment"],
        ["the cat", "the"],
        ["cat", "a"],
        [1, 0],
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel",
        ["0\tthe cat\tcat\t1", "1\tthe\ta\t0"],
        ["the cat", "the"],
        ["cat", "a"],
        [1, 0],
    ),
}


def file_name(name: str, split: str) -> str:
    return {"train": "train.tsv", "dev": "dev_matched.tsv" if name == "MNLI" else "dev.tsv"}[split]


def write(root: Path, name: str, data: str | bytes, split: str = "train") -> Path:
    path = root / name / file_name(name, split)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def word_level() -> tokenizers.Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(50)), *(f"v{i}" for i in range(50)), "[MASK]"]
    made = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(word_level(), BERT, "made up")


def examples(lengths: list[int], second: list[int] | None = None, labels: list[int] | None = None) -> Examples:
    first = [" ".join(f"w{i}" for i in range(n)) for n in lengths]
    other = None if second is None else [" ".join(f"v{i}" for i in range(n)) for n in second]
    marks = np.array(labels if labels is not None else [i % 2 for i in range(len(lengths))], np.int32)
    return Examples(TASKS["CoLA" if second is None else "RTE"], "made up", first, other, marks)


def test_table_matches_the_hub() -> None:
    assert {name: row.labels for name, row in TASKS.items()} == CLASSES
    assert len(TASKS) == 10  # `sts` is STS-B by cosine
    assert TASKS["STS-B"].regression and TASKS["STS-B"].num_labels == 1 and TASKS["MNLI"].num_labels == 3
    assert TASKS["CoLA"].metric == "matthews"
    assert len({row.hub for row in TASKS.values()}) == 9


def test_a_task_of_ones_own_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: Vocabulary) -> None:
    """And a metric of one's own another; the files lie where those of GLUE's tasks do."""
    row = Task("Tweets", "", ("one", "two"), "mood", ("glum", "gay"), ("share", "accuracy"), coded=False)
    monkeypatch.setitem(TASKS, row.name, row)
    monkeypatch.setitem(METRICS, "share", Metric(lambda predictions, labels: float(predictions.mean())))
    write(tmp_path, "Tweets", "mood\tone\ttwo\ngay\tw0\tw1\nglum\tw2\tw3 w4\n", "dev")
    encoded = encode(load("Tweets", str(tmp_path), "dev"), vocabulary, 16)
    assert encoded.task is row and encoded.labels.tolist() == [1, 0]
    assert encoded.ids[:5].tolist() == [2, 4, 3, 5, 3]
    values = score("Tweets", np.array([1, 1]), encoded.labels)
    assert (values["share"], values["accuracy"], row.metric) == (1.0, 0.5, "share")


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_local_files(tmp_path: Path, name: str, end: str, split: str) -> None:
    header, rows, first, second, labels = FILES[name]
    write(tmp_path, name, end.join([*([header] if header else []), *rows, ""]), split)
    got = load(name, str(tmp_path), split)
    assert list(got.first) == first
    assert got.second == second
    assert got.labels.tolist() == labels
    assert got.labels.dtype == (np.float32 if name == "STS-B" else np.int32)
    assert got.skipped == (2 if name == "QQP" else 0)


def test_mnli_mismatched_and_no_test_split(tmp_path: Path) -> None:
    header, rows, *_ = FILES["MNLI"]
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "dev_mismatched.tsv").write_text("\n".join([header, *rows]))
    assert len(load("MNLI", str(tmp_path), "dev_mismatched")) == 3
    with pytest.raises(UserError, match="no split 'test'; GLUE publishes no test labels"):
        load("MNLI", str(tmp_path), "test")
    with pytest.raises(UserError, match=r"Use one of train, dev$"):
        load("RTE", str(tmp_path), "dev_mismatched")


def test_mrpc_from_the_original_file(tmp_path: Path) -> None:
    header, rows, *_ = FILES["MRPC"]
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC" / "msr_paraphrase_train.txt").write_text("\r\n".join([header, *rows, ""]), newline="")
    with pytest.raises(UserError, match=r"dev_ids\.tsv: no such file"):
        load("MRPC", str(tmp_path), "dev")
    (tmp_path / "MRPC" / "dev_ids.tsv").write_text("9\t10\n")
    assert load("MRPC", str(tmp_path), "train").labels.tolist() == [1]
    assert load("MRPC", str(tmp_path), "dev").labels.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("SST-2", "sentence\tlabel\nthe cat\t7\n", "row 2: label '7' is not one of 0 (negative), 1 (positive)"),
        ("SST-2", "sentence\tlabel\na\t1\nthe\t-1\n", "row 3: label '-1' (-1 marks a test set without labels)"),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n", "row 2: label '0' is not one of entailment"),
        ("MNLI", FILES["MNLI"][0] + "\n0\tg\ta\tb\t-\n", "row 2: label '-'"),
        ("STS-B", FILES["STS-B"][0] + "\n0\tg\tf\ty\t0\tn\tn\ta\tb\tnan\n", "row 2: score 'nan' is not a number in [0"),
        ("STS-B", FILES["STS-B"][0] + "\n0\tg\tf\ty\t0\tn\tn\ta\tb\t5.1\n", "row 2: score '5.1'"),
        ("STS-B", FILES["STS-B"][0] + "\n0\tg\tf\ty\t0\tn\tn\ta\tb\thigh\n", "row 2: score 'high'"),
        ("SST-2", "text\tlabel\na\t1\n", "row 1: no column 'sentence'; it has text, label"),
        ("SST-2", "sentence\tgold\na\t1\n", "row 1: no column 'label'; it has sentence, gold"),
        ("SST-2", "", "empty, 0 rows"),
        ("SST-2", "sentence\tlabel\n", "empty, 1 rows"),
        ("CoLA", "\n\n", "empty, 0 rows"),
        ("QQP", FILES["QQP"][0] + "\nshort\trow\n", "no usable rows (1 too short)"),
        ("SST-2", "sentence\tlabel\nfine\t1\nno label here\n", "row 3: 1 tab-separated columns, expected 2: 'no label"),
        ("SST-2", "sentence\tlabel\na\tb\t1\n", "row 2: 3 tab-separated columns, expected 2"),
        ("CoLA", "gj04\t1\tthe cat\n", "row 1: 3 tab-separated columns, expected 4"),
        ("SST-2", b"sentence\tlabel\nfine\t1\nna\xefve\t1\n", "row 3: not UTF-8 (byte 0xef)"),
        ("SST-2", "sentence\tlabel\nfine\t1\n".encode("utf-16"), "row 1: not UTF-8 (UTF-16)"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(UserError) as error:
        load(name, str(tmp_path), "train")
    assert str(error.value).startswith(str(path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown GLUE task 'sst2': did you mean 'SST-2'\? Tasks are CoLA, SST-2"):
        load("sst2", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"unknown GLUE task 'zzz': Tasks are CoLA"):
        load("zzz", str(tmp_path), "train")
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(UserError, match=r"RTE: no such folder\. glue = .* holds CoLA; add RTE/"):
        load("RTE", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"train\.tsv: no such file\. The train split of CoLA is read from it"):
        load("CoLA", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"no such folder\. Give a folder that holds CoLA/"):
        load("CoLA", str(tmp_path / "missing"), "train")
    with pytest.raises(UserError, match="revision = 'abc' pins a hub dataset"):
        load("CoLA", str(tmp_path), "train", "abc")


class Hub:
    """Stands in for `datasets.load_dataset`."""

    def __init__(self, columns: dict[str, list[Any]], names: tuple[str, ...] | None) -> None:
        self.columns, self.names, self.calls = columns, names, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import datasets

        self.calls.append((args, kwargs))
        label = datasets.Value("float32") if self.names is None else datasets.ClassLabel(names=list(self.names))
        features = {column: datasets.Value("string") for column in self.columns if column != "label"}
        return datasets.Dataset.from_dict(self.columns, features=datasets.Features({**features, "label": label}))


@pytest.mark.parametrize("name", TASKS)
def test_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row = TASKS[name]
    text = row.hub_text or row.text
    hub = Hub({**{c: [f"{c} one", f"{c} two"] for c in text}, "label": [0, 1]}, CLASSES[name] or None)
    monkeypatch.setattr("datasets.load_dataset", hub)
    got = load(name, "nyu-mll/glue", "dev", "abc123")
    split = "validation_matched" if name == "MNLI" else "validation"
    assert hub.calls == [(("nyu-mll/glue", row.hub), {"split": split, "revision": "abc123"})]
    assert list(got.first) == [f"{text[0]} one", f"{text[0]} two"]
    assert (got.second is None) == (len(text) == 1)
    assert got.labels.tolist() == [0, np.float32(0.2) if name == "sts" else 1]
    assert got.source == f"nyu-mll/glue/{row.hub}/{split}@abc123"


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"sentence": ["a"], "label": [-1]}, CLASSES["SST-2"], "row 0: label -1 (-1 marks a test set"),
        ({"text": ["a"], "label": [0]}, CLASSES["SST-2"], "no column 'sentence'; it has text, label"),
        ({"sentence": ["a"], "label": [0]}, ("positive", "negative"), "expected negative, positive in this order"),
        ({"sentence": ["a", None], "label": [0, 1]}, CLASSES["SST-2"], "row 1: column 'sentence' holds None"),
        ({"sentence": [], "label": []}, CLASSES["SST-2"], "empty, 0 rows"),
    ],
)
def test_bad_hub(monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[Any]], names: Any, message: str) -> None:
    monkeypatch.setattr("datasets.load_dataset", Hub(columns, names))
    with pytest.raises(UserError) as error:
        load("SST-2", "nyu-mll/glue", "train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError, match=r"'glue_data' is no local folder, and the hub gave no .*: no route\. Check"):
        load("SST-2", "glue_data", "train")


def test_subset() -> None:
    made = examples(list(range(1, 11)), list(range(1, 11)))
    some = subset(made, 4, 3)
    assert len(some) == 4 and [len(a.split()) for a in some.first] == [len(b.split()) for b in some.second or ()]
    assert subset(made, 6, 3).first[:4] == some.first
    assert subset(made, 6, 4).first[:4] != some.first
    assert subset(made, 0, 3) is made and subset(made, 10, 3) is made


ROWS = {  # (train, dev) rows of the folders
    "CoLA": (8551, 1043),
    "SST-2": (67349, 872),
    "MNLI": (50319, 9815),
    "QNLI": (11803, 5463),
    "QQP": (31580, 20206),
    "RTE": (2490, 277),
    "STS-B": (5749, 1500),
}


@pytest.mark.data
@pytest.mark.parametrize("name", ROWS)
def test_real_data(name: str, real_data: Path) -> None:
    train, dev = (load(name, str(real_data / "glue"), split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == ROWS[name]
    assert train.skipped == dev.skipped == 0
    if not TASKS[name].regression:
        assert set(np.unique(train.labels)) == set(np.unique(dev.labels)) == set(range(TASKS[name].num_labels))
    if name == "CoLA":
        assert dev.labels.mean() == pytest.approx(0.691, abs=5e-4)  # Table 1 of the paper: the majority class
    vocabulary = load_vocabulary(str(real_data / "vocab"), special=BERT)
    encoded = encode(subset(train, 500, 0), vocabulary, 128)
    assert (encoded.ids[[0, *encoded.ends[:-1]]] == 101).all() and (encoded.ids[encoded.ends - 1] == 102).all()
    assert (encoded.ids != 100).mean() > 0.99 and encoded.lengths.max() <= 128 and (encoded.ids != 0).all()
