"""`masks.safetensors` says where its masks come from, and goes on saying it."""

import hashlib
import json

import pytest
from safetensors.numpy import load_file, save_file
from tiny_folders import tiny_model

from jaxprune.cli import main
from jaxprune.config import FinetuneConfig
from jaxprune.config.load import to_yaml
from jaxprune.experiments.inspect import diff_checkpoints, inspect_checkpoint
from jaxprune.experiments.mask_origin import origin_of_run, told
from jaxprune.experiments.weights import stored_config
from jaxprune.models.weights import read_masks, read_origin
from jaxprune.training.workdir import read_records


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A folder pruned twice, by magnitude and then at random."""
    root = tmp_path_factory.mktemp("origins")
    tiny_model().save_pretrained(root / "dense")
    for source, target, words in (
        ("dense", "first", ["--sparsity", "0.5", "--structure", "neurons"]),
        ("first", "second", ["--sparsity", "0.7", "--scope", "global", "--criterion", "random"]),
    ):
        assert main(["prune", str(root / source), str(root / target), *words]) == 0
    return root


def test_a_pruned_folder_names_how_and_its_parent(pruned):
    origin = read_origin(pruned / "first")
    assert (origin["criterion"], origin["structure"], origin["sparsity"]) == ("magnitude", "neurons", 0.5)
    assert origin["parent"] == f"{pruned.name}/dense"  # published, it names no directories of its maker's
    origin = read_origin(pruned / "second")
    assert (origin["criterion"], origin["scope"], origin["parent"]) == ("random", "global", f"{pruned.name}/first")
    (threshold,) = {*origin["thresholds"].values()}  # one for all
    assert 0 < threshold < 1
    assert read_origin(pruned / "dense") == {}


def test_copies_and_smaller_models_say_it_too(pruned, tmp_path):
    sparse = tmp_path / "sparse"
    for name, source, command in (
        ("hf", pruned / "second", ["export", "--format", "hf"]),
        ("smaller", pruned / "second", ["compact"]),
        ("sparse", pruned / "second", ["export", "--format", "sparse"]),
        ("back", sparse, ["export", "--format", "hf"]),
    ):
        assert main([command[0], str(source), str(tmp_path / name), *command[1:]]) == 0
        assert read_origin(tmp_path / name) == read_origin(pruned / "second") != {}


def test_a_run_names_its_last_prune_and_its_config(pretrained, capsys):
    origin, last = read_origin(pretrained / "hf"), read_records(pretrained / "prunes.jsonl")[-1]
    assert (origin["step"], origin["thresholds"], origin["parent"]) == (8, last["thresholds"], "")
    assert len(origin["thresholds"]) == 8 and all(value > 0 for value in origin["thresholds"].values())
    assert origin["config"] == hashlib.sha256(to_yaml(stored_config(pretrained)).encode()).hexdigest()
    assert inspect_checkpoint(str(pretrained))["masks"] == origin
    line = f"masks: magnitude, weights, matrix, exact, uniform; step 8; config {origin['config'][:8]}\n"
    assert line in capsys.readouterr().out


def test_a_run_that_prunes_nothing_names_what_it_began_with(tmp_path):
    (tmp_path / "prunes.jsonl").touch()
    cfg = FinetuneConfig(init_from="/a/b/dense", masks_from=("/x/y/run", "z"))
    origin = origin_of_run(cfg, tmp_path)
    del origin["config"]
    assert origin == {"parent": "b/dense", "masks_from": ["y/run", "z"]}


def test_diff_tells_both(pruned, capsys):
    report = diff_checkpoints(str(pruned / "first"), str(pruned / "second"))
    assert [report[f"masks_{side}"]["criterion"] for side in "ab"] == ["magnitude", "random"]
    (words,) = [row for row in report["matrices"] if row["path"] == "embeddings/word_embeddings/embedding"]
    assert words["sparsity_a"] == 0 < words["sparsity_b"]  # only b masks it
    out = capsys.readouterr().out
    assert "masks of a: magnitude, neurons, matrix, " in out and "masks of b: random, weights, global, " in out


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '"x"', "[" * 100_000])
def test_what_is_said_need_not_be_sense(pruned, tmp_path, text):
    packed = load_file(pruned / "first" / "masks.safetensors")
    shapes = {name: list(mask.shape) for name, mask in read_masks(pruned / "first").items()}
    save_file(packed, tmp_path / "masks.safetensors", {"shapes": json.dumps(shapes), "origin": text})
    assert read_origin(tmp_path) == {} and read_masks(tmp_path).keys() == shapes.keys()


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({"criterion": ["a"], "structure": {}, "scope": "matrix"}, "matrix"),
        ({"config": 5, "step": "x", "parent": 2, "masks_from": [1, "a"]}, "masks of a"),
        ({"config": {"a": 1}, "step": [], "masks_from": 3}, ""),
    ],
)
def test_a_line_tells_what_is_sense(origin, line):
    assert told(origin) == line
