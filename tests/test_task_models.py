"""What fine-tuning leaves: models that transformers loads and agrees with, the best one marked, and starts from it."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas
import pytest
from own_tasks import paths_of, write_config, write_encoder, write_tasks
from safetensors.numpy import load_file
from workflow import Tiny

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.config.task import OwnTaskConfig
from jaxprune.data.own_task import read_task
from jaxprune.experiments import finetune
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import compile_run, first_state
from jaxprune.models.bert import BERT
from jaxprune.models.config_json import label_names
from jaxprune.training.sharding import within

pytestmark = pytest.mark.slow

RATES = (1e-3, 8e-3)
KINDS = pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression", "similarity"])


class Grid(NamedTuple):
    """A task of each kind x two learning rates, from a pruned sentence encoder."""

    root: Path
    encoder: Path
    tasks: dict[str, dict[str, Any]]
    config: Path
    workdir: Path

    def run(self, kind: str, rate: float = RATES[0]) -> Path:
        return self.workdir / self.tasks[kind]["name"] / f"lr{rate:g}-seed0"

    def dev(self, kind: str):
        return read_task(OwnTaskConfig.model_validate(self.tasks[kind]), "")[1]


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Grid:
    root = tmp_path_factory.mktemp("grid")
    encoder, tasks = write_encoder(root / "encoder"), write_tasks(root / "data")
    config = write_config(root / "c.yaml", encoder, [*tasks.values()], learning_rates=[*RATES])
    done = Tiny(root, root, root, root).run("finetune", config, "--workdir", root / "run")
    assert done.code == 0, done.err
    return Grid(root, encoder, tasks, config, root / "run")


def tokens(folder: Path, texts, other=None):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(list(texts), *([list(other)] if other else []), truncation=True, padding=True, return_tensors="pt")


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_transformers_loads_it_and_predicts_the_same(grid, kind):
    pytest.importorskip("torch")
    import transformers

    hf, dev = grid.run(kind) / "hf", grid.dev(kind)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(hf, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    logits = model.eval()(**tokens(hf, dev.first)).logits.detach().numpy()
    saved = np.load(grid.run(kind) / "dev_predictions.npz")
    np.testing.assert_allclose(saved["logits"].reshape(logits.shape), logits, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(saved["labels"], dev.labels)
    types = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    assert model.config.problem_type == types.get(kind, "regression")
    assert model.config.num_labels == len(dev.task.labels) or kind == "regression"
    if kind != "regression":
        assert model.config.id2label == dict(enumerate(dev.task.labels))
        assert model.config.label2id == {name: i for i, name in enumerate(dev.task.labels)}


@KINDS
def test_predict_gives_the_labels_of_the_dev_predictions(grid, tmp_path, kind):
    """The columns are those of the training."""
    dev, out = grid.dev(kind), tmp_path / "out.jsonl"
    table = pandas.DataFrame(dict(zip(dev.task.text, (dev.first, dev.second), strict=False)) | {"unread": 1})
    table.to_csv(tmp_path / "in.csv", index=False)
    assert main(["predict", str(grid.run(kind)), str(tmp_path / "in.csv"), "--out", str(out)]) == 0
    answers = pandas.read_json(out, lines=True)
    assert [*answers.columns[: len(dev.task.text)]] == [*dev.task.text] and [*answers[dev.task.text[0]]] == [*dev.first]
    logits = np.load(grid.run(kind) / "dev_predictions.npz")["logits"]
    if kind == "single_label":
        assert [*answers["label"]] == [dev.task.labels[i] for i in logits.argmax(1)]
    elif kind == "multi_label":
        assert [*answers["labels"]] == [[dev.task.labels[i] for i in np.flatnonzero(row > 0)] for row in logits]
    else:
        np.testing.assert_allclose(answers["score"], logits, atol=1e-5)


def vectors(folder: Path, texts, pooling: str) -> np.ndarray:
    """transformers' states of the bare encoder, pooled by hand."""
    import transformers

    inputs = tokens(folder, texts)
    states = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state.detach().numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    return states[:, 0] if pooling == "cls" else (states * mask).sum(1) / mask.sum(1)


def assert_cosines(run: Path, dev, pooling: str) -> None:
    a, b = (vectors(run / "hf", texts, pooling) for texts in (dev.first, dev.second))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(np.load(run / "dev_predictions.npz")["logits"], cosines, atol=1e-5)


@pytest.mark.parity
def test_a_sentence_encoder_stays_one_and_compares_as_transformers_does(grid):
    pytest.importorskip("torch")
    run = grid.run("similarity")
    assert_cosines(run, grid.dev("similarity"), "mean")
    for name in ("modules.json", "1_Pooling/config.json", "LICENSE"):
        assert (run / "hf" / name).read_bytes() == (grid.encoder / name).read_bytes()


@pytest.fixture(scope="module")
def first_tokens(grid) -> Path:
    """The grid of one run that scores an encoder which is pooled by its first token, as it is."""
    encoder = write_encoder(grid.root / "cls", pooling="cls")
    config = write_config(grid.root / "cls.yaml", encoder, [grid.tasks["similarity"]], epochs=0)
    assert main(["finetune", str(config), "--workdir", str(grid.root / "cls_run")]) == 0
    return grid.root / "cls_run"


@pytest.mark.parity
def test_the_folders_own_pooling_is_honoured(grid, first_tokens):
    pytest.importorskip("torch")
    assert_cosines(first_tokens / "alike" / "lr0.001-seed0", grid.dev("similarity"), "cls")
    trained, source = (load_file(path / "model.safetensors") for path in (first_tokens / "best" / "hf", grid.encoder))
    assert {*trained} == {*source} and all((trained[name] == source[name]).all() for name in source)


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    """The bits of `masks.safetensors`, in the shapes of their tensors."""
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    packed = load_file(folder / "masks.safetensors")
    return {
        name: np.unpackbits(bits)[: np.prod(shapes[name])].reshape(shapes[name]).astype(bool)
        for name, bits in packed.items()
    }


@KINDS
def test_masks_are_zeros_of_the_file_and_the_card_counts_them(grid, kind):
    hf = grid.run(kind) / "hf"
    tensors, masks, before = load_file(hf / "model.safetensors"), masks_of(hf), masks_of(grid.encoder)
    pruned = 0
    for name, mask in masks.items():
        assert (tensors[name].view(np.uint32)[~mask] == 0).all()
        if name in before:
            np.testing.assert_array_equal(mask, before[name])
        pruned += int((~mask).sum())
    matrices = [name for name in masks if ".layer." in name]
    bases = {
        "the prunable weights": sum(mask.size for mask in masks.values()),
        "the encoder's matrices": sum(masks[name].size for name in matrices),
        "all weights": sum(tensor.size for tensor in tensors.values()),
    }
    inner = sum(int((~masks[name]).sum()) for name in matrices)
    card, result = (hf / "README.md").read_text(), json.loads((grid.run(kind) / "result.json").read_text())
    for base, size in bases.items():
        zeros = inner if "matrices" in base else pruned
        assert f"| {base} | {zeros / size:.4f} | {size:,} |" in card
    assert result["sparsity"] == pytest.approx(pruned / bases["the prunable weights"]) and pruned
    assert f"| {result['metric']} | {result['score']:.4f} |" in card
    assert f"name: {grid.tasks[kind]['name']}" in card and "{{" not in card
    settings = json.loads((hf / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 40


# --- the best -------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@KINDS
def test_the_best_run_is_marked_and_its_model_copied(grid, kind):
    """By dev score; an error's best is the least."""
    table = pandas.read_csv(grid.workdir / "results.csv")
    mine = table[table["task"] == grid.tasks[kind]["name"]]
    assert table["best"].dtype == bool and mine["best"].sum() == 1 and len(mine) == 2
    best = mine["score"].idxmin() if kind == "regression" else mine["score"].idxmax()
    assert mine["best"][best]
    if kind == "regression":
        assert mine["score"].nunique() == 2 and (mine["metric"] == "mean_squared_error").all()
    copied = content(grid.workdir / "best" / grid.tasks[kind]["name"] / "hf")
    assert copied == content(grid.run(kind, mine["learning_rate"][best]) / "hf") and "model.safetensors" in copied


def test_a_finished_grid_changes_nothing_when_run_again(grid):
    before, table = content(grid.workdir), pandas.read_csv(grid.workdir / "results.csv")
    assert main(["finetune", str(grid.config), "--workdir", str(grid.workdir)]) == 0
    after = content(grid.workdir)
    changed = {Path(name).name for name in after.keys() | before.keys() if after.get(name) != before.get(name)}
    assert changed <= {".lock"}
    pandas.testing.assert_frame_equal(pandas.read_csv(grid.workdir / "results.csv"), table)


def test_a_finished_grid_whose_models_were_deleted(grid, caplog):
    """The best run's is copied back; of another run one line says how to have it again."""
    argv = ["finetune", str(grid.config), "--workdir", str(grid.workdir)]
    table = pandas.read_csv(grid.workdir / "results.csv")
    (rate,) = table["learning_rate"][(table["task"] == "topics") & table["best"]]
    best, other = (grid.run("single_label", one) / "hf" for one in (rate, sum(RATES) - rate))
    before = content(best)
    shutil.rmtree(best)
    other.rename(other.with_name("aside"))
    caplog.set_level(logging.INFO, "jaxprune")
    assert main(argv) == 0
    assert content(best) == before and not other.exists()
    lines = [line for line in caplog.messages if str(other.parent) in line and "run the grid again" in line]
    assert len(lines) == 1 and "hf" in lines[0] and f"delete {other.parent} and" in lines[0], caplog.messages
    other.with_name("aside").rename(other)
    pandas.testing.assert_frame_equal(pandas.read_csv(grid.workdir / "results.csv"), table)


def test_a_best_run_without_any_copy_of_its_model_is_one_line(grid, first_tokens, capsys):
    run = first_tokens / "alike" / "lr0.001-seed0"
    models = (run / "hf", first_tokens / "best" / "hf")
    table = (first_tokens / "results.csv").read_bytes()
    for model in models:
        model.rename(model.with_name("aside"))
    assert main(["finetune", str(grid.root / "cls.yaml"), "--workdir", str(first_tokens)]) == 2
    err = capsys.readouterr().err
    assert f"delete {run} and run again, which trains that run anew" in err and err.count("\n") == 1, err
    for model in models:
        model.with_name("aside").rename(model)
    assert (first_tokens / "results.csv").read_bytes() == table


# --- starts ---------------------------------------------------------------------------------------------------------


def started(grid: Grid, source: Path, kind: str, tmp_path: Path, **changes: Any):
    """Params and masks before the first step of a run from `source`, by path."""
    path = write_config(tmp_path / "s.yaml", source, [grid.tasks[kind] | changes.pop("task", {})], **changes)
    command = finetune.tuning()
    cfg = validate(FinetuneConfig, read_yaml(path), str(path))
    ready = compile_run(command.open(command.resolve(cfg, None), Shelf()), Shelf())
    with within(ready.program.mesh):
        state = jax.device_get(first_state(ready.opened, ready.program))
    return paths_of(state.params), paths_of(state.masks)


@pytest.mark.parametrize("source", ["run", "run/hf", "best/hf"])
def test_a_fine_tuned_model_starts_with_its_head(grid, tmp_path, caplog, source):
    run = grid.run("single_label")
    if source == "best/hf":
        run = grid.workdir / "best" / "topics"
    place = run if source == "run" else run / "hf"
    caplog.set_level(logging.INFO, "jaxprune")
    params, masks = started(grid, place, "single_label", tmp_path)
    tensors, kept = load_file(run / "hf" / "model.safetensors"), masks_of(run / "hf")
    np.testing.assert_array_equal(params["classifier/kernel"], tensors["classifier.weight"].T)
    np.testing.assert_array_equal(params["pooler/kernel"], tensors["bert.pooler.dense.weight"].T)
    np.testing.assert_array_equal(masks["pooler/kernel"], kept["bert.pooler.dense.weight"].T)
    assert [line for line in caplog.messages if "its head" in line] == [
        f"{place}: its head for other, bug, billing is kept"
    ]
    assert not any("drawn at random" in line for line in caplog.messages)


OTHERS = {
    "another order": ("single_label", {"labels": ["bug", "other", "billing"]}, "about bug, other, billing"),
    "another kind": ("multi_label", {}, "about help, thanks"),
    "a score": ("regression", {}, "about a score"),
}


def test_the_head_of_another_class_is_not_taken_for_ours(grid, tmp_path, caplog):
    """A token classifier's has the same names, shapes and here labels; another's tensors are left behind."""
    from safetensors.numpy import save_file

    source = shutil.copytree(grid.run("single_label") / "hf", tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"architectures": ["BertForTokenClassification"]}
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    extra = {"qa_outputs.weight": np.ones((2, 32), np.float32), "qa_outputs.bias": np.ones(2, np.float32)}
    save_file(tensors | extra, source / "model.safetensors", {"format": "pt"})
    caplog.set_level(logging.INFO, "jaxprune")
    params, _ = started(grid, source, "single_label", tmp_path)
    assert params["classifier/kernel"].shape == (32, 3) and params["classifier/kernel"].shape[::-1] == (
        tensors["classifier.weight"].shape
    )
    assert (params["classifier/kernel"] != tensors["classifier.weight"].T).all()
    assert f"{source}: its head is that of a BertForTokenClassification; a new one is drawn" in caplog.messages
    assert f"{source}: left behind: qa_outputs; this run trains another head" in caplog.messages
    caplog.clear()
    started(grid, source, "similarity", tmp_path)
    assert caplog.messages == [f"{source}: left behind: classifier, qa_outputs; this run trains another head"]


@pytest.mark.parametrize("case", OTHERS)
def test_for_other_labels_a_new_head_is_drawn_which_one_line_says(grid, tmp_path, caplog, case):
    kind, task, words = OTHERS[case]
    caplog.set_level(logging.INFO, "jaxprune")
    params, _ = started(grid, grid.run("single_label"), kind, tmp_path, task=task)
    tensors = load_file(grid.run("single_label") / "hf" / "model.safetensors")
    kernel = tensors["classifier.weight"].T
    assert params["classifier/kernel"].shape != kernel.shape or (params["classifier/kernel"] != kernel).all()
    np.testing.assert_array_equal(params["pooler/kernel"], tensors["bert.pooler.dense.weight"].T)
    (line,) = [line for line in caplog.messages if "its head" in line]
    assert "is for other, bug, billing, this task is " + words in line and line.endswith("; a new one is drawn")


def test_the_files_of_a_fine_tuned_start_do_not_keep_its_labels(grid, tmp_path):
    config = write_config(tmp_path / "c.yaml", grid.run("single_label"), [grid.tasks["regression"]], epochs=0)
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "run")]) == 0
    written = json.loads((tmp_path / "run" / "best" / "hf" / "config.json").read_text())
    assert written["problem_type"] == "regression" and "billing" not in json.dumps(written)
    assert "fine-tuned from" in (tmp_path / "run" / "best" / "hf" / "README.md").read_text()


def test_names_that_transformers_leaves_out():
    assert label_names({}) == ("LABEL_0", "LABEL_1") and label_names({"num_labels": 3})[2] == "LABEL_2"
    assert label_names({"id2label": {"1": "b", "0": "a", "10": "c"}}) == ("a", "b", "c")
    assert label_names({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}) == ()


@pytest.fixture(scope="module")
def nothing_kept(grid) -> Path:
    config = write_config(
        grid.root / "none.yaml", grid.encoder, [grid.tasks["similarity"]], epochs=0, keep_weights=False
    )
    assert main(["finetune", str(config), "--workdir", str(grid.root / "none")]) == 0
    assert not (grid.root / "none" / "best").exists() and not [*(grid.root / "none").rglob("hf")]
    return grid.root / "none"


@pytest.mark.parametrize("case", ["a run", "its grid", "a grid of several tasks"])
def test_a_start_without_weights_is_one_line(grid, nothing_kept, tmp_path, capsys, case):
    run = nothing_kept / "alike" / "lr0.001-seed0"
    source, words = {
        "a run": (run, "kept no weights; fine-tune with keep_weights: true"),
        "its grid": (nothing_kept, "kept no weights; fine-tune with keep_weights: true"),
        "a grid of several tasks": (grid.workdir, "holds several models; name one of "),
    }[case]
    config = write_config(tmp_path / "c.yaml", source, [grid.tasks["similarity"]])
    for argv in (["finetune", config, "--workdir", tmp_path / "run"], ["predict", source, tmp_path / "x.csv"]):
        assert main([*map(str, argv)]) == 2
        err = capsys.readouterr().err
        assert f"{source}: {words}" in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_a_grid_of_one_task_is_its_best_model(grid, first_tokens, tmp_path):
    params, _ = started(grid, first_tokens, "similarity", tmp_path)
    tensors = load_file(first_tokens / "best" / "hf" / "model.safetensors")
    words = "embeddings/word_embeddings/embedding"
    np.testing.assert_array_equal(params[words], tensors["bert.embeddings.word_embeddings.weight"])


# --- the dry run and bad input --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untimed")
def test_a_dry_run_says_the_shape_of_batches_and_writes_nothing(grid, tmp_path, capsys):
    before = content(grid.root)
    for workdir in ([], ["--workdir", str(tmp_path / "run")], ["--workdir", str(grid.workdir)]):
        assert main(["finetune", str(grid.config), *workdir, "--dry-run"]) == 0
        out = capsys.readouterr().out
        *lines, total = out.splitlines()
        assert [line.split(":")[0] for line in lines] == [task["name"] for task in grid.tasks.values()]
        assert re.fullmatch(r"\d+ runs, about \d+ s in all on this machine as busy as it is now", total)
        assert "topics: 24 train, 8 dev examples, 10.0 tokens on average, 15 at most; " in out
        assert "; 2 runs of 3 steps of 8 examples in 8 rows of 16 tokens, " in out
    assert content(grid.root) == before and not (tmp_path / "run").exists()


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown column": ("single_label", {"text": "bodi"}, "no column 'bodi'; did you mean 'body'?"),
    "label outside the set": ("single_label", {"labels": ["other", "bug"]}, "label 'billing' is not one of labels"),
    "empty class": ("single_label", {"labels": ["other", "bug", "billing", "spam"]}, "no training example of class"),
    "a pair without a second text": ("single_label", {"text": ["body", "reply"]}, "no text in column 'reply'"),
    "unequal label sets": ("single_label", {"label": "mood", "labels": [], "dev": "dev", "dev_fraction": 0}, "'odd'"),
    "no number": ("regression", {"label": "topic"}, "is not a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_line_before_anything_is_written(grid, tmp_path, capsys, case):
    kind, changes, words = BAD[case]
    for split in ("train", "dev"):
        table = pandas.read_csv(grid.root / "data" / f"{split}.csv")
        table["reply"] = ["x", *[None] * (len(table) - 1)]
        table["mood"] = ["odd" if split == "dev" and i == 3 else ("glad", "sad")[i % 2] for i in range(len(table))]
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    task = grid.tasks[kind] | {"train": str(tmp_path / "train.csv")} | changes
    if "dev" in task:
        task["dev"] = str(tmp_path / "dev.csv")
    config = write_config(tmp_path / "c.yaml", grid.encoder, [task])
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and ".csv, line" in err.replace(":", ", line"), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", ["architecture", "vocabulary", "length"])
def test_a_model_that_does_not_fit_is_one_line_before_anything_is_written(grid, tmp_path, capsys, case):
    source, changes = shutil.copytree(grid.encoder, tmp_path / "source"), {}
    if case == "architecture":
        (source / "config.json").write_text(json.dumps({"model_type": "electra"}))
        words = "model_type = 'electra'; supported are bert, distilbert, roberta, xlm-roberta"
    elif case == "vocabulary":
        (source / "vocab.txt").write_text("\n".join([*BERT.special_tokens, *(f"word{i}" for i in range(50))]) + "\n")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (source / name).unlink(missing_ok=True)
        words = "55 pieces do not fit the"
    else:
        changes, words = {"max_len": 41}, "max_len = 41 is above the 40 positions"
    config = write_config(tmp_path / "c.yaml", source, [grid.tasks["single_label"]], **changes)
    assert main(["finetune", str(config), "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
