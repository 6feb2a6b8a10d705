"""The tables of a study, from workdirs, against the files in them."""

import json
import shutil

import jax
import numpy as np
import pandas
import pytest
from safetensors.numpy import load_file
from workflow import write_yaml

from jaxprune.analysis.study_tables import PRETRAINED, UNTUNED
from jaxprune.errors import UserError
from jaxprune.experiments import tables
from jaxprune.experiments.tables import _tuned_rows, name_parts, write_tables
from jaxprune.experiments.weights import stored_config
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.pruning.masks import init_masks
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow
RESULT = {
    "task": "CoLA",
    "learning_rate": 5e-4,
    "metric": "matthews",
    "accuracy": 0.7,
    "matthews": 0.1,
    "train_loss": 0.5,
    "majority_accuracy": 0.69,
    "train_examples": 48,
    "dev_examples": 27,
    "steps": 3,
}


@pytest.fixture(scope="module")
def study(tiny, pretrained):
    """A real pre-training run in the layout of a study; a dense start of its shape and all fine-tuning by hand."""
    place = tiny.root / "study"
    dense = place / "runs" / "dense"
    shutil.copytree(pretrained, dense)
    model = stored_config(dense).model
    record = architecture_named(model.architecture)
    fresh = jax.jit(record.build(model, head="pretraining").init)(jax.random.key(7))
    masks = init_masks(jax.device_get(fresh), record.prunable)
    write_folder(dense / "hf", model, jax.device_get(fresh), head="pretraining", masks=jax.device_get(masks))
    shutil.copytree(pretrained, place / "runs" / "pretrain" / "pruned-s0.7")
    (place / "runs" / "pretrain" / "soft-s0.7").mkdir()  # begun, not finished
    rng = np.random.default_rng(0)
    for condition, name, seeds in (
        ("pruned", "pruned-s0.7", (0, 1)),
        ("pruned", "finetune_sawtooth-s0.7", (0,)),
        ("after_finetuning", "pruned-s0.7", (0,)),
        ("dense", "", (0,)),
        ("dense", "after_9", (0,)),
    ):
        for seed in seeds:
            run = place / "runs" / "finetune" / condition / name / "CoLA" / f"lr0.0005-seed{seed}"
            run.mkdir(parents=True)
            sparsity = 0.0 if condition == "dense" else 0.7
            result = {**RESULT, "seed": seed, "score": 0.1 + seed, "sparsity": sparsity}
            (run / "result.json").write_text(json.dumps(result))
            cfg = {"command": "finetune", "init_from": str(dense), "epochs": 9 if name == "after_9" else 3}
            if condition == "pruned":
                cfg["init_from"] = str(place / "runs/pretrain/pruned-s0.7")
            if condition == "after_finetuning":
                cfg["init_from"] = str(place / "runs/finetune/dense/after_9/CoLA/lr0.0005-seed0")
            write_yaml(run / "config.yaml", cfg)
            if condition != "dense":
                (run / "hf").mkdir()  # weights of a pruned model are no part of any table
            else:
                params = read_folder(dense / "hf", head="pretraining").params
                tuned = jax.tree.map(lambda w: w + 0.01 * rng.normal(size=w.shape).astype(np.float32), params)
                write_folder(run / "hf", model, tuned, head="pretraining")
    write_tables(place)
    return place


def table(study, name):
    return pandas.read_csv(study / "tables" / f"{name}.csv")


def test_names():
    assert name_parts("pruned-s0.7") == ("pruned", 0.7) and name_parts("random_one_shot-s0") == ("random_one_shot", 0)
    assert name_parts("dense") == ("dense", 0) and name_parts("soft-s1e-05") == ("soft", 1e-5)


def test_the_dense_start_elsewhere_is_the_one_that_the_config_names(tmp_path):
    """Not one that a switch starts from, though its run comes first."""
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    runs = {"another-s0.5": other, "pruned-s0.5": elsewhere}
    starts = {elsewhere: "", other: ""} | {tmp_path / "runs/pretrain" / name: start for name, start in runs.items()}
    for workdir, start in starts.items():
        workdir.mkdir(parents=True)
        write_yaml(workdir / "config.yaml", {"command": "pretrain", "init_from": str(start)})
        (workdir / "result.json").write_text("{}")
    write_yaml(tmp_path / "config.yaml", {"command": "study", "dense": str(elsewhere)})
    assert tables._dense(tmp_path).workdir == elsewhere


def test_runs_and_pretrain_tables_are_the_results(study):
    runs = table(study, "runs")
    assert [*zip(runs["condition"], runs["variant"], runs["target"], runs["seed"])] == [
        ("after_finetuning", "pruned", 0.7, 0),
        ("dense", "dense", 0.0, 0),
        ("dense", "after_9", 0.0, 0),
        ("pruned", "finetune_sawtooth", 0.7, 0),
        ("pruned", "pruned", 0.7, 0),
        ("pruned", "pruned", 0.7, 1),
    ]
    assert runs["tuned_epochs"].dropna().to_dict() == {0: 9}
    pretrain = table(study, "pretrain").set_index("name")
    assert [*pretrain.index] == ["dense", "pruned-s0.7"]
    place = study / "runs" / "pretrain" / "pruned-s0.7"
    result = json.loads((place / "result.json").read_text())
    assert pretrain.loc["pruned-s0.7", "dev_loss"] == result["dev"]["loss"]
    pruned = runs[runs["condition"] == "pruned"]
    assert (pruned["pretrain_loss"] == result["dev"]["loss"]).all() and (pruned["majority"] == 0.69).all()
    assert runs[runs["condition"] == "after_finetuning"]["pretrain_loss"].isna().all()
    curves = table(study, "curves")
    logged = [r for r in read_records(place / "metrics.jsonl") if "loss" in r]
    kept = curves[(curves["name"] == "pruned-s0.7") & curves["loss"].notna()]
    assert [*kept["loss"]] == [r["loss"] for r in logged]


def test_tables_of_weights_are_those_of_the_files(study):
    place = study / "runs" / "pretrain" / "pruned-s0.7"
    leaves = read_records(place / "prunes.jsonl")[-1]["leaves"]
    rows = table(study, "weights")
    found = rows[rows["name"] == "pruned-s0.7"].set_index("path")["sparsity"].to_dict()
    assert found == pytest.approx(leaves)
    heads = table(study, "heads")
    assert len(heads) == 2 * 2 and (heads[heads["name"] == "dense"]["sparsity"] == 0).all()
    memory = table(study, "memory")
    tensors = load_file(place / "hf" / "model.safetensors")
    total = sum(x.size for name, x in tensors.items() if "decoder" not in name)
    assert memory.groupby("name")["weights"].sum().to_dict() == {"dense": total, "pruned-s0.7": total}
    assert memory.groupby("name")["share"].sum().to_numpy() == pytest.approx([1, 1])
    magnitude = table(study, "magnitude")
    assert magnitude["abs_share"].is_monotonic_increasing and magnitude["abs_share"].iloc[-1] == pytest.approx(1)
    assert {*table(study, "heatmaps")["figure"]} == {"key", "words"}
    tokens = table(study, "tokens")
    assert tokens[tokens["name"] == "dense"]["rows"].sum() == tensors["bert.embeddings.word_embeddings.weight"].shape[0]


def test_features_are_compared_with_the_dense_model(study):
    rows = table(study, "features")
    dense, pruned = (rows[rows["name"] == name] for name in ("dense", "pruned-s0.7"))
    assert (rows["against"] == "dense").all() and len(dense) == len(pruned) == 2
    assert dense["cosine"].to_numpy() == pytest.approx([1, 1], abs=1e-5)
    assert dense["cka"].to_numpy() == pytest.approx([1, 1], abs=1e-5)
    assert (pruned["cosine"] < 0.999).all() and (rows["tokens"] > 100).all()


def test_distance_and_movement_of_the_tuned_weights(study):
    movement = table(study, "movement")
    assert {*zip(movement["variant"], movement["epochs"])} == {("dense", 3), ("after_9", 9)}
    movement = movement[movement["variant"] == "dense"].set_index("path")
    assert movement.index.is_unique and (movement["task"] == "CoLA").all()
    assert "embeddings/word_embeddings/embedding" not in movement.index
    assert 0 < movement.loc["all", "mean"] < 1 / 3
    ranks = table(study, "movement_rank")
    ranks = ranks[ranks["epochs"] == 3]
    assert len(ranks) == 100 and ranks["before"].sum() == pytest.approx(1) and ranks["after"].sum() == pytest.approx(1)
    distance = table(study, "distance")
    every = distance[(distance["path"] == "all") & (distance["variant"] == "dense")].set_index("against")
    assert {*every.index} == {PRETRAINED, UNTUNED}
    assert every["sparsity_a"].to_numpy() == pytest.approx([0.7, 0.7], abs=1e-3)
    assert every.loc[UNTUNED, "hamming"] < every.loc[PRETRAINED, "hamming"] < every.loc[UNTUNED, "chance"]


def test_matrices_that_one_side_alone_has_are_no_part_of_the_comparison():
    """Recovery may prune other matrices than the dense run counts, and a similarity task trains no pooler."""
    rng = np.random.default_rng(0)
    words, query, pooler = "embeddings/word_embeddings/embedding", "encoder/layer_00/attention/query/kernel", "pooler/k"
    before = {path: rng.normal(size=(8, 8)).astype(np.float32) for path in (words, query, pooler)}
    tuned = {path: before[path] + 0.1 for path in (words, query)} | {"layer_norm/scale": np.ones(8, np.float32)}
    cuts = {
        0.5: {path: rng.random((8, 8)) < 0.5 for path in (query, pooler, "mlm/kernel")},
        0.9: {pooler: tuned[query]},
    }
    tables = {name: [] for name in ("movement", "movement_rank", "distance")}
    _tuned_rows(tables, {}, before, tuned, cuts, words)
    assert [row["path"] for row in tables["movement"]] == [query, "all"]
    rows = [(row["target"], row["against"], row["path"]) for row in tables["distance"]]
    late = [(0.5, PRETRAINED, query), (0.5, PRETRAINED, "all")]
    assert rows == late + [(target, UNTUNED, path) for target in (0.5, 0.9) for path in (words, query, "all")]


def test_measuring_again_changes_nothing_and_an_empty_study_is_refused(study, tmp_path):
    before = {path.name: path.read_bytes() for path in (study / "tables").iterdir()}
    stale = study / "tables" / "churn.csv"
    stale.write_text("step\n1\n")
    write_tables(study)
    assert {path.name: path.read_bytes() for path in (study / "tables").iterdir()} == before
    with pytest.raises(UserError, match="has no finished run"):
        write_tables(tmp_path)
