"""`jaxprune inspect` and `jaxprune diff` on a workdir and its Hugging Face directory, against the files themselves."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxprune.analysis.paths import flat
from jaxprune.cli import main
from jaxprune.experiments.inspect import load
from jaxprune.experiments.weights import stored_config
from jaxprune.models.bert import bert
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow
QUERY = "encoder/layer_00/attention/query/kernel"


def write(place, like, **changes):
    """Fresh weights of the shape of a workdir, or of another, as a Hugging Face directory."""
    model = stored_config(like).model.model_copy(update=changes)
    params = jax.jit(bert(model, head="pretraining").init)(jax.random.key(7))
    write_folder(place, model, jax.device_get(params), head="pretraining")
    return place


@pytest.fixture(scope="module")
def dense(tiny, pretrained):
    return write(tiny.root / "unpruned", pretrained)


def run(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def test_inspect_prints_what_the_run_recorded(pretrained, capsys):
    found = json.loads(run(capsys, "inspect", pretrained, "--json"))
    last = read_records(pretrained / "prunes.jsonl")[-1]
    assert {row["path"]: row["sparsity"] for row in found["matrices"]} == pytest.approx(last["leaves"])
    assert found["sparsity"] == pytest.approx(last["sparsity"], abs=1e-12)
    heads = np.array(found["heads"]["encoder/layer_00"])
    attention = [path for path in last["leaves"] if "/attention/" in path]
    assert heads.shape == (2,) and heads.mean() == pytest.approx(np.mean([last["leaves"][path] for path in attention]))
    tensors = load_file(pretrained / "hf" / "model.safetensors")
    query = tensors["bert.encoder.layer.0.attention.self.query.weight"]
    row = next(row for row in found["matrices"] if row["path"] == QUERY)
    assert (row["mean"], row["std"]) == pytest.approx((query.mean(), query.std()), rel=1e-4)
    assert row["kept"] == np.count_nonzero(query)
    assert sum(part["weights"] for part in found["memory"]) == sum(
        x.size for name, x in tensors.items() if name != "cls.predictions.decoder.weight" and "decoder.bias" not in name
    )


def test_workdir_and_its_directory_are_the_same(pretrained, capsys):
    one, two = (json.loads(run(capsys, "inspect", place, "--json")) for place in (pretrained, pretrained / "hf"))
    assert one["matrices"] == two["matrices"] and one["heads"] == two["heads"] and one["memory"] == two["memory"]
    for row in json.loads(run(capsys, "diff", pretrained, pretrained / "hf", "--json"))["matrices"]:
        assert row["hamming"] == 0 and row["iou"] == 1 and row["movement"] == 0 and row["cosine"] == pytest.approx(1)


def test_diff_against_the_dense_start(pretrained, dense, capsys):
    found = json.loads(run(capsys, "diff", dense, pretrained, "--json"))
    rows = {r["path"]: r for r in found["matrices"]}
    before, after = flat(read_folder(dense, head="pretraining").params), load(str(pretrained))
    for path, kept in after.masks.items():
        row, x, y = rows[path], before[path].ravel(), after.params[path].ravel()
        assert row["hamming"] == pytest.approx(1 - kept.mean()) and row["iou"] == pytest.approx(kept.mean())
        assert row["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
        assert 0 < row["movement"] < 0.4
    total = sum(kept.size for kept in after.masks.values())
    pruned = sum(np.count_nonzero(~kept) for kept in after.masks.values())
    assert (found["regrown"], found["newly_pruned"]) == (0, pruned)
    back = json.loads(run(capsys, "diff", pretrained, dense, "--json"))
    assert (back["regrown"], back["newly_pruned"]) == (pruned, 0)
    assert rows["all"]["size"] == total and len(rows) == len(after.masks) + 1
    mean = sum(rows[path]["movement"] * kept.size for path, kept in after.masks.items()) / total
    assert rows["all"]["movement"] == pytest.approx(mean)


def test_tables_are_printed_whole(pretrained, dense, capsys):
    text = run(capsys, "inspect", pretrained)
    assert QUERY in text and "sparsity per attention head" in text and "word embeddings" in text and "…" not in text
    text = run(capsys, "diff", dense, pretrained)
    assert QUERY in text and "hamming" in text and "random: 0.333" in text and "…" not in text


def test_a_narrow_terminal_gets_short_names_not_cut_ones(pretrained, dense, capsys, monkeypatch):
    for name, value in {"TTY_COMPATIBLE": "1", "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    for argv in (["inspect", pretrained], ["diff", dense, pretrained]):
        lines = run(capsys, *argv).splitlines()
        table = [line for line in lines if not line.startswith((str(pretrained), "a = "))]
        assert max(map(len, table)) <= 80 and not any("…" in line for line in lines)
        names = [line[:20].strip() for line in table if line.startswith(("00 ", "word embeddings ", "pooler "))]
        assert {"00 query", "00 attention output", "pooler"} <= {*names}


@pytest.mark.parametrize("absent", ["bert.pooler.", "cls."])
def test_what_is_not_in_the_file_is_not_counted(dense, tmp_path, capsys, caplog, absent):
    folder = shutil.copytree(dense, tmp_path / "folder")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith(absent)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = json.loads(run(capsys, "inspect", folder, "--json"))
    pooler = "bert.pooler.dense.weight" in tensors
    assert ("pooler/kernel" in {row["path"] for row in found["matrices"]}) == pooler
    assert len(found["matrices"]) == 7 + pooler and found["sparsity"] == 0
    assert sum(part["weights"] for part in found["memory"]) == sum(x.size for x in tensors.values())
    shapes = {row["path"]: row["size"] for row in found["matrices"]}
    assert sum(shapes.values()) == sum(
        x.size
        for name, x in tensors.items()
        if name.endswith("weight") and (".layer." in name or "word_embeddings" in name or "pooler" in name)
        if "LayerNorm" not in name
    )
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == (0 if pooler else 1) and all("pooler/kernel" in line for line in lines)


def test_what_does_not_fit_is_one_line(pretrained, dense, tmp_path, capsys):
    wide = write(tmp_path / "wide", pretrained, hidden_size=32)
    assert main(["diff", str(dense), str(wide)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith("compare two models of one shape") and error.count("\n") == 0
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
