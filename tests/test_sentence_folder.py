"""What a sentence-transformers directory says of vectors is honoured as that library does, or refused in one line."""

import json

import numpy as np
import pandas
import pytest
from own_tasks import POOLING, TEXT, write_config, write_encoder

from jaxprune.cli import EXIT_USER, main
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.models.sentence_folder import vectors_in

pytestmark = pytest.mark.parity

TEXTS = [TEXT, "help", "thanks a lot " * 9, " ".join(reversed(TEXT.split())), "late app"]


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def modules(*kinds):
    """modules.json, and the directories of modules, as the library writes them."""
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    return [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]


@pytest.fixture
def folder(tmp_path):
    """A directory that is pooled by the first token, unless it says otherwise."""
    encoder = write_encoder(tmp_path / "encoder", pooling="cls")
    write(encoder / "modules.json", modules("Transformer", "Pooling", "Normalize"))
    (encoder / "2_Normalize").mkdir()
    table = pandas.DataFrame({"a": TEXTS, "b": TEXTS[1:] + TEXTS[:1]})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    return encoder


def theirs(folder):
    """Cosines by sentence-transformers, not in float16 or on another device."""
    library = pytest.importorskip("sentence_transformers")
    vectors = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    return (vectors * np.roll(vectors, -1, 0)).sum(1)


def ours(folder):
    out = folder.parent / "out.csv"
    assert main(["predict", str(folder), str(folder.parent / "pairs.csv"), "--text", "a", "b", "--out", str(out)]) == 0
    return pandas.read_csv(out)["score"]


def second_pooling(folder):
    write(folder / "modules.json", modules("Transformer", "Normalize", "Pooling"))
    (folder / "1_Pooling").rename(folder / "2_Pooling")
    (folder / "2_Normalize").rename(folder / "1_Normalize")


CASES = {
    "as it is": lambda folder: None,
    "few tokens": lambda folder: write(folder / "sentence_bert_config.json", {"max_seq_length": 8}),
    "tokens as many as there are": lambda folder: write(
        folder / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": False}
    ),
    "pooling elsewhere": second_pooling,
    "a prompt that is not the default": lambda folder: write(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "help "}, "default_prompt_name": None}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cosines_are_the_librarys(folder, case):
    CASES[case](folder)
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-6)


def test_fine_tuning_reads_as_much_of_a_text_and_leaves_its_pooling(folder, caplog):
    """Means, though the folder has the first token."""
    pytest.importorskip("sentence_transformers")
    CASES["few tokens"](folder)
    task = {"name": "alike", "train": str(folder.parent / "t.csv"), "dev": str(folder.parent / "t.csv")}
    task |= {"text": ["a", "b"], "label": "y", "kind": "similarity"}
    table = pandas.read_csv(folder.parent / "pairs.csv").assign(y=[0.1, 0.4, 0.3, 0.9, 0.5])
    table.to_csv(folder.parent / "t.csv", index=False)
    config = write_config(folder.parent / "c.yaml", folder, [task], epochs=0, pooling="mean")
    with caplog.at_level("INFO", "jaxprune"):
        assert main(["finetune", str(config), "--workdir", str(folder.parent / "run")]) == 0
    assert "reads 8 tokens of a text (max_seq_length), not max_len = " in caplog.text
    (path,) = (folder.parent / "run").glob("alike/*/dev_predictions.npz")
    np.testing.assert_allclose(np.load(path)["logits"], theirs(path.parent / "hf"), atol=2e-6)


STARTS = {
    "cls": lambda folder: None,
    "pooling elsewhere": second_pooling,
    "mean": lambda folder: write(folder / "1_Pooling" / "config.json", POOLING),
    "max": lambda folder: write(folder / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True}),
    "more modules": lambda folder: write(folder / "modules.json", modules("Transformer", "Pooling", "Dense")),
    "no list": lambda folder: write(folder / "modules.json", {"a": 1}),
    "no module": lambda folder: [(folder / name).unlink() for name in ("modules.json", "1_Pooling/config.json")],
}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("start", STARTS)
def test_the_pooling_that_a_model_was_trained_with_leaves_with_it(folder, start, pooling):
    before = read_folder(folder, head="similarity")
    STARTS[start](folder)
    said = {
        path: (folder / path).read_bytes() for path in ("modules.json", "1_Pooling/config.json") if start == pooling
    }
    out = folder.parent / "tuned"
    how = {"source": folder, "tokenizer": folder, "pooling": pooling}
    write_folder(out, before.model, before.params, head="similarity", masks=before.masks, **how)
    assert vectors_in(out).pooling == pooling
    assert all((out / path).read_bytes() == content for path, content in said.items())
    np.testing.assert_allclose(ours(out), theirs(out), atol=2e-6)


def lower_case(folder):
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    write(folder / "tokenizer_config.json", {"do_lower_case": False})


REFUSED = {
    "modules.json: the module Dense is not computed here": lambda folder: write(
        folder / "modules.json", modules("Transformer", "Pooling", "Dense")
    ),
    "modules.json: is no list of modules": lambda folder: write(folder / "modules.json", {"a": 1}),
    "do_lower_case over a tokenizer that keeps case": lower_case,
    "the prompt query is not computed here": lambda folder: write(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "help "}, "default_prompt_name": "query"}
    ),
    "max_seq_length = 'many' is no number of tokens": lambda folder: write(
        folder / "sentence_bert_config.json", {"max_seq_length": "many"}
    ),
    "pooling_mode_max_tokens; set pooling to mean or cls": lambda folder: write(
        folder / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True}
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_computed_is_refused(folder, message, capsys):
    REFUSED[message](folder)
    out = folder.parent / "out.csv"
    argv = ["predict", str(folder), str(folder.parent / "pairs.csv"), "--text", "a", "b", "--out", str(out)]
    assert main(argv) == EXIT_USER
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not out.exists()
