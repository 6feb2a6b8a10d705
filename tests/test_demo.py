"""The demo from end to end, far smaller: the page and the tables hold the numbers of the runs."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxprune.config import (
    DataConfig,
    DemoConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    PruneConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxprune.experiments.demo import demo, sized_for
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(save_every=1000, log_every=4, eval_batches=2)
TINY = DemoConfig(
    prepare=PrepareConfig(
        sources=(SourceConfig(kind="builtin", max_chars=1_000_000),),
        tokenizer=TokenizerConfig(train_size=600),
        seq_len=16,
        dev_fraction=0.3,
    ),
    dense=PretrainConfig(
        steps=8,
        batch_size=16,
        data=DataConfig(max_predictions=3),
        model=ModelConfig(
            vocab_size=600,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TRAIN,
    ),
    sparsities=(0.0, 0.75),
    recover=PretrainConfig(
        steps=8, batch_size=16, data=DataConfig(max_predictions=3), prune=PruneConfig(end=4, every=2), train=TRAIN
    ),
    finetune=FinetuneConfig(
        tasks=("package", "word order"),
        learning_rates=(1e-3,),
        seeds=(0, 1),
        epochs=1,
        max_len=16,
        train=TrainConfig(save_every=1000, log_every=4),
    ),
    train_examples=64,
    dev_examples=32,
    packages=3,
)


def run_demo(tiny, place, *model):
    """The tiny demo in a process of its own, which compiles quickly on one device."""
    command = [sys.executable, __file__, str(place), *map(str, model)]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(place / "report.html")


def test_demo(tiny, tmp_path):
    run_demo(tiny, tmp_path / "demo")
    html = (tmp_path / "demo" / "report.html").read_text()
    results = {s: json.loads((tmp_path / "demo" / f"sparsity-{s:g}" / "result.json").read_text()) for s in (0.0, 0.75)}
    assert results[0.0]["sparsity"] == 0
    assert results[0.75]["sparsity"] == pytest.approx(0.75, abs=1e-3)
    tables = {path.name: [*csv.DictReader(path.read_text().splitlines())] for path in (tmp_path / "demo").glob("*.csv")}
    cells = {cell for rows in tables.values() for row in rows for cell in row.values()}
    numbers = [float(cell) for cell in cells if re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", cell or "")]
    for result in results.values():
        assert any(number == pytest.approx(result["dev"]["loss"], rel=1e-3) for number in numbers)
    scores = [json.loads(path.read_text()) for path in (tmp_path / "demo").glob("finetune-*/*/seed*/result.json")]
    assert len(scores) == 2 * 2 * 2
    assert {(r["task"], r["seed"]) for r in scores} == {(t, s) for t in ("package", "word order") for s in (0, 1)}
    assert all(r["dev_examples"] <= 32 and 0 <= r["score"] <= 1 for r in scores)
    assert all(any(number == pytest.approx(r["score"], rel=1e-3) for number in numbers) for r in scores)
    for said in ("package", "word order", "0.75", "<svg"):
        assert said in html
    plan = [
        (line["step"], line["target"]) for line in read_records(tmp_path / "demo" / "sparsity-0.75" / "prunes.jsonl")
    ]
    assert [step for step, _ in plan] == [0, 2, 4] and plan[-1][1] == 0.75
    assert not read_records(tmp_path / "demo" / "sparsity-0" / "prunes.jsonl")

    runs = [path for path in (tmp_path / "demo").rglob("*") if path.name in ("metrics.jsonl", "dev_predictions.npz")]
    stamps = {path: path.stat().st_mtime_ns for path in runs}
    assert len(stamps) >= 3 + 8 * 2
    run_demo(tiny, tmp_path / "demo")
    assert {path: path.stat().st_mtime_ns for path in runs} == stamps
    with pytest.raises(ValueError, match="made with another config"):
        demo(tmp_path / "demo", TINY.model_copy(update={"packages": 4}))


def test_the_same_story_of_a_pre_trained_model(tiny, pretrained, tmp_path):
    """The model is one without a pruned weight."""
    folder = shutil.copytree(pretrained / "hf", tmp_path / "tiny-bert")
    (folder / "masks.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: np.where(values == 0, np.float32(0.01), values) for name, values in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    run_demo(tiny, tmp_path / "demo", folder)
    html = (tmp_path / "demo" / "report.html").read_text()
    assert "What pruning does to tiny-bert" in html and "jaxprune demo --model tiny-bert" in html
    assert not (tmp_path / "demo" / "dense").exists()
    for sparsity in (0, 0.5, 0.9):
        result = json.loads((tmp_path / "demo" / f"sparsity-{sparsity:g}" / "result.json").read_text())
        assert result["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    paths = [path / "tokenizer.json" for path in (folder, tmp_path / "demo" / "data" / "tokenizer")]
    assert len({json.dumps(json.loads(path.read_text())["model"]["vocab"]) for path in paths}) == 1


def test_a_larger_model_gets_fewer_steps_and_examples(pretrained, tmp_path):
    small = sized_for(TINY, str(pretrained / "hf"))
    config = json.loads((pretrained / "hf" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 1024, "num_hidden_layers": 24}))
    large = sized_for(DemoConfig(), str(tmp_path))
    assert (small.recover.steps, small.train_examples) == (TINY.recover.steps, TINY.train_examples)
    assert (large.recover.steps, large.train_examples) == (10, 64)
    assert 0 < large.recover.prune.end < large.recover.steps and large.sparsities[0] == 0


if __name__ == "__main__":
    once = TINY.model_copy(
        update={"finetune": TINY.finetune.model_copy(update={"tasks": ("word order",), "seeds": (0,)})}
    )
    print(demo(Path(sys.argv[1]), once, model=sys.argv[2]) if sys.argv[2:] else demo(Path(sys.argv[1]), TINY))
