"""`jaxprune predict`: the labels and scores of transformers' pipeline, to CSV and JSON Lines, and its errors."""

import json
import shutil

import numpy as np
import pandas
import pytest
from own_tasks import WORDS, rows, write_encoder, write_model
from safetensors.numpy import load_file, save_file

from jaxprune.cli import main

NAMES = {"0": "calm", "1": "glad", "2": "sad, or so"}
LONG = " ".join(WORDS * 4)  # more tokens than positions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories by what their head learns."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "single_label": write_model(root / "single", "classification", labels=3, id2label=NAMES),
        "unnamed": write_model(root / "unnamed", "classification", labels=2),
        "multi_label": write_model(root / "multi", "multi_label", labels=3, id2label=NAMES),
        "regression": write_model(root / "score", "regression"),
        "similarity": write_encoder(root / "encoder"),
        "pretraining": write_model(root / "mlm", "pretraining"),
    }
    for folder in made.values():
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    return made


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file with texts of all lengths, names of special tokens and signs that CSV quotes among them."""
    made = [{"text": row["body"], "other": row["other"]} for row in rows(40, 5)]
    made += [
        {"text": text, "other": "thanks"} for text in (LONG, "help [SEP] me", 'a "b", c', "ünknown wörds", "now\nhelp")
    ]
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    pandas.DataFrame(made).to_csv(path, index=False)
    return path


def predicted(model, texts, out, *more):
    """What is written to `out`."""
    assert main(["predict", str(model), str(texts), "--out", str(out), *more]) == 0
    return pandas.read_csv(out) if out.suffix == ".csv" else pandas.read_json(out, lines=True)


def pipeline(model, texts, **options):
    """transformers' answers, a list of {label, score} per text."""
    import transformers

    pipe = transformers.pipeline("text-classification", str(model), device="cpu")
    return pipe([*pandas.read_csv(texts)["text"]], truncation=True, batch_size=8, **options)


@pytest.mark.parity
@pytest.mark.parametrize("model", ["single_label", "unnamed"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_and_scores_are_those_of_the_pipeline(models, texts, tmp_path, model, suffix):
    pytest.importorskip("torch")
    config = models[model] / "config.json"
    if model == "unnamed":  # as transformers writes it
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if "label" not in k}))
    ours = predicted(models[model], texts, tmp_path / f"out{suffix}")
    theirs = pipeline(models[model], texts)
    assert [*ours.columns] == ["text", "label", "score"]
    assert [*ours["text"]] == [*pandas.read_csv(texts)["text"]]
    assert [*ours["label"]] == [one["label"] for one in theirs] and ours["label"].nunique() > 1
    np.testing.assert_allclose(ours["score"], [one["score"] for one in theirs], atol=1e-5)


@pytest.mark.parity
def test_several_labels_are_those_above_a_half(models, texts, tmp_path):
    pytest.importorskip("torch")
    theirs = pipeline(models["multi_label"], texts, top_k=None)
    above = [{one["label"] for one in row if one["score"] > 0.5} for row in theirs]
    assert {len(names) for names in above} > {1}
    written = predicted(models["multi_label"], texts, tmp_path / "out.jsonl")
    assert [{*names} for names in written["labels"]] == above
    as_text = predicted(models["multi_label"], texts, tmp_path / "out.csv")["labels"].fillna("")
    assert [{*filter(None, names.split("|"))} for names in as_text] == above


@pytest.mark.parity
def test_a_score_is_the_pipelines(models, texts, tmp_path):
    pytest.importorskip("torch")
    theirs = [one["score"] for one in pipeline(models["regression"], texts)]
    ours = predicted(models["regression"], texts, tmp_path / "out.csv")
    assert [*ours.columns] == ["text", "score"]
    np.testing.assert_allclose(ours["score"], theirs, atol=1e-5)


@pytest.mark.parity
def test_a_sentence_encoder_compares_two_columns(models, texts, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(models["similarity"])
    model = transformers.AutoModel.from_pretrained(models["similarity"]).eval()
    vectors = []
    for column in ("text", "other"):
        inputs = tokenizer([*pandas.read_csv(texts)[column]], truncation=True, padding=True, return_tensors="pt")
        mask = inputs["attention_mask"][..., None]
        vectors.append((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    cosines = torch.nn.functional.cosine_similarity(*vectors).detach().numpy()
    ours = predicted(models["similarity"], texts, tmp_path / "out.csv", "--text", "text", "other")
    assert [*ours.columns] == ["text", "other", "score"]
    np.testing.assert_allclose(ours["score"], cosines, atol=1e-5)


def test_without_out_it_prints_csv_and_nothing_else(models, texts, tmp_path, capsys):
    assert main(["predict", str(models["single_label"]), str(texts)]) == 0
    printed = capsys.readouterr().out
    predicted(models["single_label"], texts, tmp_path / "out.csv")
    assert printed == (tmp_path / "out.csv").read_text() and '"sad, or so"' in printed


def test_shorter_texts_by_max_len(models, texts, tmp_path):
    short = predicted(models["regression"], texts, tmp_path / "short.csv", "--max-len", "8")
    pandas.read_csv(texts)["text"].str.split().str[:6].str.join(" ").to_csv(tmp_path / "cut.csv", index=False)
    cut = predicted(models["regression"], tmp_path / "cut.csv", tmp_path / "cut_out.csv")
    np.testing.assert_allclose(short["score"][:40], cut["score"][:40], atol=1e-5)


def test_a_text_column_may_have_a_name_that_this_model_does_not_write(models, texts, tmp_path):
    expected = predicted(models["regression"], texts, tmp_path / "out.csv")
    pandas.read_csv(texts).rename(columns={"text": "label"}).to_csv(tmp_path / "in.csv", index=False)
    named = predicted(models["regression"], tmp_path / "in.csv", tmp_path / "named.csv", "--text", "label")
    pandas.testing.assert_frame_equal(named, expected.rename(columns={"text": "label"}))


def test_other_formats_give_the_same(models, texts, tmp_path):
    table = pandas.read_csv(texts)
    table.to_json(tmp_path / "in.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "in.parquet")
    expected = predicted(models["single_label"], texts, tmp_path / "csv.csv")
    for name in ("in.jsonl", "in.parquet"):
        got = predicted(models["single_label"], tmp_path / name, tmp_path / f"{name}.csv")
        pandas.testing.assert_frame_equal(got, expected)


def test_the_file_that_is_read_is_not_written_over(models, texts, tmp_path, capsys):
    file = shutil.copy(texts, tmp_path / "t.csv")
    (tmp_path / "link.csv").symlink_to(file)
    for out in (file, tmp_path / "link.csv"):
        assert main(["predict", str(models["single_label"]), str(file), "--out", str(out)]) == 2
        assert "is the file that is read; name another" in capsys.readouterr().err
    assert file.read_bytes() == texts.read_bytes()


def test_a_model_with_one_segment_type_takes_no_pairs(models, texts, tmp_path, capsys):
    folder = shutil.copytree(models["single_label"], tmp_path / "one")
    tensors = load_file(folder / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    save_file(tensors | {name: tensors[name][:1]}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"type_vocab_size": 1}
    (folder / "config.json").write_text(json.dumps(config))
    argv = ["predict", str(folder), str(texts), "--out", str(tmp_path / "out.csv")]
    assert main(argv) == 0
    assert main([*argv, "--text", "text", "other"]) == 2
    assert "has type_vocab_size = 1, so it takes no pairs of texts" in capsys.readouterr().err


BAD = {
    "no head": ("pretraining", (), "is a BertForPreTraining, which has no task; fine-tune it first"),
    "a lost head": ("lost", (), "has no classifier/bias, so nothing for a task; fine-tune it first"),
    "one column for two": ("similarity", (), "compares two texts; name two columns"),
    "unknown column": ("single_label", ("--text", "txt"), "no column 'txt'; did you mean 'text'?"),
    "bad suffix": (
        "single_label",
        ("--out", "labels.txt"),
        "--out labels.txt: name a file that ends in .csv or .jsonl",
    ),
    "too long": ("single_label", ("--max-len", "41"), "--max-len 41 is above the 40 positions"),
    "a column that the answers take": (
        "single_label",
        ("--text", "label"),
        "texts.csv: column 'label' is also what the answer is called; rename it there (--text NAME)",
    ),
    "more pieces than rows": ("pieces", (), "pieces do not fit the 22 rows of"),
    "no model": ("nowhere", (), "nowhere"),
    "no file": ("single_label", (), "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_out_stays(models, texts, tmp_path, capsys, case):
    name, more, words = BAD[case]
    model = models.get(name, tmp_path / name)
    if name == "pieces":
        model = shutil.copytree(models["single_label"], tmp_path / "lost")
        with (model / "vocab.txt").open("a") as file:
            file.write("one\nmore\n")
    if name == "lost":
        model = write_encoder(tmp_path / "lost")
        config = json.loads((model / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
        (model / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.csv"
    out.write_text("mine")
    file = tmp_path / "absent.csv" if case == "no file" else texts
    assert main(["predict", str(model), str(file), "--out", str(out), *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert out.read_text() == "mine" and {*tmp_path.iterdir()} <= {out, tmp_path / "lost"}
