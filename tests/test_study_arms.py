"""A study's arms beside the four conditions: pre-training seeds, switches with sparsities of their own, fewer layers,
tasks without fine-tuning, and the order of the runs."""

import copy
import json
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
import yaml
from flax.traverse_util import flatten_dict
from test_study import RUNS, by_path, study
from workflow import write_yaml

from jaxprune.config import PretrainConfig
from jaxprune.errors import UserError
from jaxprune.experiments import pretrain
from jaxprune.experiments.matrix import matrix, shard
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.study import _keep_config, _may_change, _refuse_changed
from jaxprune.experiments.weights import completed, read_weights, stored_config, with_layers
from jaxprune.models.folder import read_folder

ENCODER_ONLY = {"recover": {"prune": {"exclude": ["embeddings/.*", "pooler/.*"]}}, "sparsities": [0.5, 0.9]}
MINE = {"name": "a", "train": "a.csv", "dev": "b.csv", "text": "x", "label": "y"}
ARMS = {
    "tasks": [
        {"name": "SST-2", "seeds": [0, 1, 2]},
        {"name": "CoLA", "seeds": [2, 0], "finetune": {"epochs": 5, "learning_rates": [3e-4]}},
        {"name": "sts", "seeds": [0, 1], "finetune": {"epochs": 0}},
    ],
    "finetune": {"learning_rates": [1e-4], "epochs": 3},
    "conditions": {
        "pruned": {"sparsities": [0, 0.5, 0.9], "replicated": [0.5]},
        "information_deletion": {"sparsities": [0.5, 0.9]},
        "after_finetuning": {"sparsities": [0.5, 0.9]},
        "random": {"sparsities": [0.9]},
    },
    "switches": {
        "encoder_only": ENCODER_ONLY | {"tasks": ["SST-2", "sts"], "seeds": 2},
        "three": {"recover": {"layers": [0, 2, 4]}, "sparsities": [0]},
        "sawtooth": {"finetune": {"sawtooth": True}, "sparsities": [0.5]},
        "plain": {"recover": {"steps": 30}, "replicated": [0.7]},
    },
    "switch_tasks": ["CoLA"],
    "switch_seeds": 1,
}


def arms(**changes):
    return study(**copy.deepcopy(ARMS) | changes)


def tuned(listed, place):
    return {path.removeprefix(f"finetune/{place}/"): job for path, job in listed.items() if f"/{place}/" in f"/{path}"}


def test_replicated_cells_are_pre_trained_once_per_seed():
    listed = by_path(matrix(arms(), RUNS))
    seeds = {path: job.cfg.seed for path, job in listed.items() if path.startswith("pretrain/pruned-s")}
    assert seeds == {
        "pretrain/pruned-s0": 0,
        "pretrain/pruned-s0.5": 0,
        "pretrain/pruned-s0.5-seed1": 1,
        "pretrain/pruned-s0.5-seed2": 2,
        "pretrain/pruned-s0.9": 0,
    }
    first, second = (listed[f"pretrain/pruned-s0.5{end}"].cfg for end in ("", "-seed1"))
    assert first.model_copy(update={"seed": 1}) == second
    for condition in ("pruned", "information_deletion"):
        for seed, end in ((0, ""), (1, "-seed1"), (2, "-seed2")):
            job = listed[f"finetune/{condition}/pruned-s0.5/SST-2/lr0.0001-seed{seed}"]
            assert job.cfg.init_from == str(RUNS / f"pretrain/pruned-s0.5{end}") == str(RUNS / job.needs[-1])
            shared = listed[f"finetune/{condition}/pruned-s0.9/SST-2/lr0.0001-seed{seed}"]
            assert shared.cfg.init_from == str(RUNS / "pretrain/pruned-s0.9")
    # A switch of fine-tuning alone starts from its condition's; one of pre-training has replicates of its own.
    assert listed["finetune/pruned/sawtooth-s0.5/CoLA/lr0.0003-seed2"].needs[-1] == "pretrain/pruned-s0.5-seed2"
    assert listed["finetune/pruned/plain-s0.7/CoLA/lr0.0003-seed2"].needs[-1] == "pretrain/plain-s0.7-seed2"


def test_switches_have_sparsities_tasks_and_seeds_of_their_own():
    listed = by_path(matrix(arms(), RUNS))
    encoder = {path.partition("encoder_only-")[2] for path in listed if "finetune/pruned/encoder_only" in path}
    runs = [*(f"SST-2/lr0.0001-seed{s}" for s in (0, 1)), "sts/lr0.0001-seed0"]
    assert encoder == {f"s{s}/{run}" for s in (0.5, 0.9) for run in runs}
    assert listed["pretrain/encoder_only-s0.9"].cfg.prune.exclude == ("embeddings/.*", "pooler/.*")
    assert listed["pretrain/encoder_only-s0.9"].cfg.prune.sparsity == 0.9
    three = listed["pretrain/three-s0"].cfg
    assert three.layers == (0, 2, 4) and three.prune.sparsity == 0
    assert [p for p in listed if "/three-s0/" in p] == ["finetune/pruned/three-s0/CoLA/lr0.0003-seed2"]


def test_a_condition_has_tasks_of_its_own_and_its_switches_after_those_of_the_switches():
    fewer = {"tasks": ["SST-2", "sts"]}
    conditions = ARMS["conditions"] | {"after_finetuning": ARMS["conditions"]["after_finetuning"] | fewer}
    conditions["random"] = ARMS["conditions"]["random"] | {"tasks": ["CoLA"]}
    switches = {"cut": {"condition": "after_finetuning", "sparsities": [0.5]}}
    plain = {path for path in by_path(matrix(arms(switches={}), RUNS)) if {*path.split("/")} & {*ARMS["conditions"]}}
    for switch_tasks, cut in ((["CoLA"], {"CoLA"}), ([], {"SST-2", "sts"})):
        listed = by_path(matrix(arms(conditions=conditions, switches=switches, switch_tasks=switch_tasks), RUNS))
        assert {path.split("/")[3] for path in listed if "/cut-s0.5/" in path} == cut
        ours = {path for path in listed if {*path.split("/")} & {*conditions} and "/cut-s0.5/" not in path}
        gone = {path for path in plain if "/after_finetuning/" in path and "/CoLA/" in path}
        gone |= {path for path in plain if "/random/" in path and "/CoLA/" not in path}
        assert gone and plain - ours == gone and ours <= plain


def test_a_task_has_keys_of_its_own_and_without_epochs_one_run_per_start():
    listed = by_path(matrix(arms(), RUNS))
    cola = listed["finetune/pruned/pruned-s0.9/CoLA/lr0.0003-seed0"].cfg
    assert (cola.epochs, cola.learning_rates, cola.train_loss) == (5, (3e-4,), True)
    assert listed["finetune/dense/CoLA/lr0.0003-seed0"].cfg.epochs == 5
    sts = {path: job.cfg for path, job in listed.items() if "/sts/" in path}
    ends = {path.removeprefix("finetune/").replace("/sts/lr0.0001-seed", " ") for path in sts}
    assert ends == {
        *("pruned/pruned-s0 0", "pruned/pruned-s0.5 0", "pruned/pruned-s0.5 1", "pruned/pruned-s0.9 0"),
        *("random/random-s0.9 0", "pruned/encoder_only-s0.5 0", "pruned/encoder_only-s0.9 0"),
        *("dense 0", "after_finetuning/dense-s0.5 0", "after_finetuning/dense-s0.9 0"),
    }
    assert all(cfg.epochs == 0 and not cfg.train_loss for cfg in sts.values())
    cut = sts["finetune/after_finetuning/dense-s0.9/sts/lr0.0001-seed0"]
    assert (cut.prune.sparsity, cut.prune.schedule) == (0.9, "one_shot")


def test_a_cut_that_trains_no_more_is_scored_for_every_seed_that_trained_before():
    late = {"condition": "after_finetuning", "sparsities": [0.5], "finetune": {"epochs": 0}, "seeds": 2}
    switches = {"cut_only": late, "untuned": late | {"before": {"epochs": 0}}}
    listed = by_path(matrix(arms(switches=switches, switch_tasks=["SST-2"]), RUNS))
    ends = {name: [*tuned(listed, f"after_finetuning/{name}-s0.5")] for name in switches}
    assert ends == {"cut_only": [f"SST-2/lr0.0001-seed{s}" for s in (0, 1)], "untuned": ["SST-2/lr0.0001-seed0"]}
    starts = {listed[f"finetune/after_finetuning/cut_only-s0.5/{end}"].cfg.init_from for end in ends["cut_only"]}
    assert starts == {str(RUNS / "finetune/dense" / end) for end in ends["cut_only"]}


def test_caps_are_the_tasks_own_or_those_of_fine_tuning():
    tasks = [{"name": "SST-2", "max_train_examples": 9}, {"name": "CoLA"}, {"name": "QQP", "max_dev_examples": 0}]
    tasks[2]["finetune"] = {"max_train_examples": 5}
    few = {
        "finetune": {"max_train_examples": 3},
        "sparsities": [0.9],
        "tasks": ["CoLA"],
    }  # SST-2 has its own: not there
    cfg = arms(finetune={"max_train_examples": 7, "max_dev_examples": 6}, tasks=tasks, switches={"few": few})
    found = {
        (job.path.split("/")[2], job.path.split("/")[3]): (job.cfg.max_train_examples, job.cfg.max_dev_examples)
        for job in matrix(cfg, RUNS)
        if job.path.startswith("finetune/pruned/")
    }
    whole = {"SST-2": (9, 6), "CoLA": (7, 6), "QQP": (5, 0)}
    names = ("pruned-s0", "pruned-s0.5", "pruned-s0.9")
    assert found == {(name, task): caps for name in names for task, caps in whole.items()} | {
        ("few-s0.9", "CoLA"): (3, 6)
    }


def test_one_seed_of_everything_comes_before_the_next():
    jobs = matrix(arms(), RUNS)
    assert [job.round for job in jobs] == sorted(job.round for job in jobs)
    done: set[str] = set()
    for job in jobs:
        assert {*job.needs} <= done
        done.add(job.path)
    first = {job.path for job in jobs if job.round == 0}
    settings = {path.rpartition("/")[0] for path in by_path(jobs) if path.startswith("finetune/")}
    assert {path.rpartition("/")[0] for path in first if path.startswith("finetune/")} == settings
    # CoLA's first seed is 2, so the pre-training run of seed 2 is among the first; that of seed 1 is not.
    assert "pretrain/pruned-s0.5-seed2" in first and "pretrain/pruned-s0.5-seed1" not in first
    parts = [shard(jobs, i, 2) for i in (1, 2)]
    assert {job.path for part in parts for job in part} == done


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": {"pruned": {"sparsities": [0.5], "replicated": [0.6]}}}, ["replicated", "0.6", "[0.5]"]),
        ({"conditions": {"after_finetuning": {"replicated": [0.5]}}}, ["after_finetuning.replicated", "remove"]),
        ({"switches": {"x": {"replicated": [0.7]}}}, ["switches.x", "replicated", "without recover"]),
        ({"switches": {"x": {"tasks": ["QQP"]}}}, ["switches.x.tasks", "QQP", "SST-2"]),
        ({"tasks": [{"seeds": [1]}]}, ["tasks.0", "name", "missing", "own"]),
        ({"tasks": [{"own": MINE, "name": "b"}]}, ["tasks.0", "name = b", "own.name = a"]),
        ({"tasks": [{"own": MINE}, {"name": "a"}]}, ["tasks: a, a has one twice"]),
        ({"tasks": [{"own": MINE | {"column": "x"}}]}, ["tasks.0.own.column"]),
        ({"switches": {"x": {"sparsities": [2]}}}, ["switches.x", "sparsities", "2"]),
        ({"tasks": [{"name": "CoLA", "finetune": {"epoch": 1}}]}, ["tasks.CoLA.finetune", "did you mean epochs?"]),
        ({"finetune": {"masks": "lifted"}}, ["finetune.masks = lifted", "conditions", "remove"]),
        ({"finetune": {"init_from": "x"}}, ["finetune.init_from = x", "conditions", "remove"]),
        ({"conditions": {"pruned": {"finetune": {"masks": "none"}}}}, ["conditions.pruned.finetune.masks", "remove"]),
        ({"switches": {"x": {"finetune": {"seeds": [1]}}}}, ["switches.x.finetune.seeds", "remove"]),
        ({"tasks": [{"name": "CoLA", "finetune": {"keep_weights": True}}]}, ["tasks.CoLA.finetune.keep_weights"]),
        (
            {"conditions": {"after_finetuning": {"before": {"learning_rates": [1e-4]}}}},
            ["after_finetuning.before.learning_rates", "remove"],
        ),
        (
            {"tasks": [{"name": "CoLA", "max_len": 16}], "switches": {"x": {"finetune": {"max_len": 32}}}},
            ["switches.x.finetune.max_len", "tasks.CoLA.max_len", "remove one"],
        ),
        (
            {"tasks": [{"name": "CoLA", "max_dev_examples": 9, "finetune": {"max_dev_examples": 8}}]},
            ["tasks.CoLA.finetune.max_dev_examples", "tasks.CoLA.max_dev_examples"],
        ),
        ({"conditions": {"random": {"tasks": ["QQP"]}}}, ["conditions.random.tasks", "QQP", "SST-2"]),
    ],
)
def test_wrong_arms_are_refused(changes, words):
    with pytest.raises(UserError) as error:
        study(**{"switch_tasks": []} | changes)
    assert all(word in str(error.value) for word in words), error.value


def test_random_weights_are_kept_hard_whatever_the_study_has():
    """And an arm that is left out is not built: what it could not be is no reason to refuse the others."""
    soft = {"steps": 20, "prune": {"end": 10, "mode": "soft", "refresh": True, "straight_through": 2e-4}}
    listed = by_path(matrix(arms(recover=soft), RUNS))
    pruned, drawn = (listed[f"pretrain/{name}"].cfg.prune for name in ("pruned-s0.9", "random-s0.9"))
    assert (pruned.mode, pruned.straight_through) == ("soft", 2e-4)
    assert (drawn.criterion, drawn.mode, drawn.straight_through, drawn.refresh) == ("random", "hard", None, False)
    lifting = {"steps": 20, "prune": {"schedule": "one_shot", "end": 10, "mode": "soft", "method": "quantile"}}
    lifting["prune"]["lift_steps"] = 2  # random masks would be hard, which lift exact ones alone
    assert matrix(arms(recover=lifting, conditions={"pruned": {"sparsities": [0.5]}}, switches={}), RUNS)
    with pytest.raises(UserError, match="conditions.random"):
        arms(recover=lifting, conditions={"random": {"sparsities": [0.5]}}, switches={})


def test_what_of_an_arm_may_grow(tmp_path):
    old = arms()
    for name in ("pretrain/three-s0", "pretrain/plain-s0.7"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for key in ("sparsities", "tasks", "seeds"):
        assert _may_change(f"switches.three.{key}: 1 -> 2", old, tmp_path)
    for key in ("sparsities", "tasks"):
        assert _may_change(f"conditions.random.{key}: 1 -> 2", old, tmp_path)
    for key in ("switches.three.recover.layers", "conditions.pruned.replicated", "switches.plain.replicated"):
        assert not _may_change(f"{key}: 1 -> 2", old, tmp_path)


BEGUN = ["pretrain/enc-s0.7", "finetune/pruned/enc-s0.7/SST-2/lr0.0001-seed0", "finetune/dense/enc/SST-2"]


@pytest.mark.parametrize("begun", ["", *BEGUN])
def test_a_switch_may_change_and_go_until_a_run_of_it_began(begun, tmp_path):
    """A mistyped one would else hold the workdir for ever."""

    def with_switches(**switches):
        return arms(switches=ARMS["switches"] | switches, switch_tasks=["SST-2"])

    typo, right = ({"recover": {"prune": {"exclude": [regex]}}} for regex in ("embedings/.*", "embeddings/.*"))
    _keep_config(with_switches(enc=typo), tmp_path)
    others = ["dense", "pretrain/enc2-s0.7", "finetune/pruned/pruned-s0.5/SST-2/lr0.0001-seed0"]
    for path in others + [begun] * bool(begun):
        (tmp_path / "runs" / path).mkdir(parents=True)
    for cfg in (with_switches(enc=right), with_switches(enc3=right), with_switches(), with_switches(enc=typo)):
        if begun and cfg.switches.get("enc") != with_switches(enc=typo).switches["enc"]:
            with pytest.raises(UserError, match=r"begun with another config \(switches\.enc\..*embedings"):
                _refuse_changed(cfg, tmp_path)
        else:
            _refuse_changed(cfg, tmp_path)


def test_what_changes_no_weight_may_change(tmp_path):
    """As in a run of its own."""
    loop = {"stall_minutes": 600, "save_every": 7, "eval_batches": 3}
    _keep_config(arms(), tmp_path)
    _refuse_changed(
        arms(
            recover={"steps": 20, "prune": {"end": 10, "scope": "head"}, "train": loop, "mesh": {"data": 1}},
            finetune=ARMS["finetune"] | {"train": loop},
            dense_run={"train": loop},
            tasks=[*ARMS["tasks"][:2], ARMS["tasks"][2] | {"finetune": {"epochs": 0, "train": loop}}],
        ),
        tmp_path,
    )
    with pytest.raises(UserError, match=r"recover\.train\.accumulate: 1 -> 2"):
        _refuse_changed(
            arms(recover={"steps": 20, "prune": {"end": 10, "scope": "head"}, "train": {"accumulate": 2}}), tmp_path
        )


@pytest.fixture(scope="module")
def deep(tiny) -> Path:
    """A dense pre-training run of three layers."""
    config = tiny.pretrain_yaml(
        tiny.root / "deep.yaml", steps=2, prune={"sparsity": 0, "begin": 0, "end": 0}, model={"num_hidden_layers": 3}
    )
    done = tiny.run("pretrain", config, "--workdir", tiny.root / "deep")
    assert done.code == 0, done.err
    return tiny.root / "deep"


def shallow(tiny, source, layers, **changes) -> PretrainConfig:
    content = yaml.safe_load(tiny.pretrain_yaml(tiny.root / "x.yaml", prune={"sparsity": 0.5}).read_text())
    del content["model"]
    return PretrainConfig.model_validate(content | {"init_from": str(source), "layers": layers, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "hf"])
def test_a_run_starts_from_some_of_the_layers(tiny, deep, folder):
    opened = pretrain.open_run(pretrain.resolve(shallow(tiny, deep / folder, (2, 0)), None), Shelf())
    assert opened.blueprint.model.num_hidden_layers == 2
    params = flatten_dict(completed(opened.start(), opened.blueprint.build().init, jax.random.key(0)), sep="/")
    whole = flatten_dict(read_folder(deep / "hf", head="pretraining").params, sep="/")
    place = {"layer_00": "layer_02", "layer_01": "layer_00"}
    for path, leaf in params.items():
        old = path
        for new, source in place.items():
            if f"/{new}/" in path:
                old = path.replace(new, source)
        np.testing.assert_array_equal(leaf, whole[old], err_msg=path)
    assert len(params) < len(whole) and not any("layer_02" in path for path in params)


@pytest.mark.slow
def test_masks_go_with_their_layers(tiny, pretrained):
    weights = read_weights(str(pretrained))
    twice = with_layers(weights, (0, 0))
    assert twice.model.num_hidden_layers == 2
    for part in (twice.params, twice.masks):
        first, second = (jax.tree.leaves(part["encoder"][name]) for name in ("layer_00", "layer_01"))
        assert all(a is b for a, b in zip(first, second, strict=True)) and first
    assert with_layers(weights, ()) is weights


@pytest.mark.slow
def test_layers_that_are_not_there_are_refused(tiny, deep):
    with pytest.raises(UserError, match=r"layers = \[0, 3\].*layers 0 to 2"):
        pretrain.resolve(shallow(tiny, deep, (0, 3)), None)
    with pytest.raises(UserError, match=r"layers = \[0\]: needs init_from"):
        pretrain.resolve(shallow(tiny, "", (0,)), None)


def arms_yaml(tiny, deep) -> Path:
    """A study with arms of every kind, from three layers; one task is the user's own."""
    pretrain_keys = yaml.safe_load(
        tiny.pretrain_yaml(tiny.root / "p.yaml", steps=4, prune={"begin": 0, "end": 2}).read_text()
    )
    finetune = yaml.safe_load(tiny.finetune_yaml(tiny.root / "f.yaml").read_text())
    for key in ("command", "model"):
        pretrain_keys.pop(key)
    for key in ("command", "tasks", "seeds"):
        finetune.pop(key)
    files = {split: str(Path(finetune["glue"]) / "SST-2" / f"{split}.tsv") for split in ("train", "dev")}
    mood = {"name": "mood", **files, "text": "sentence", "label": "label"}
    content = {
        "command": "study",
        "data": str(tiny.data),
        "dense": str(deep),
        "recover": pretrain_keys,
        "finetune": finetune,
        "tasks": [
            {"own": mood, "seeds": [0, 1], "max_train_examples": 32},
            {"name": "sts", "seeds": [0, 1], "finetune": {"epochs": 0}},
        ],
        "conditions": {
            "pruned": {"sparsities": [0, 0.9], "replicated": [0.9]},
            "information_deletion": {"sparsities": [0.9]},
            "after_finetuning": {"sparsities": [0.9]},
        },
        "switches": {
            "encoder_only": ENCODER_ONLY | {"sparsities": [0.9], "seeds": 1},
            "two": {"recover": {"layers": [0, 2]}, "sparsities": [0], "seeds": 1},
        },
    }
    return write_yaml(tiny.root / "arms.yaml", content)


def read(place, *path) -> dict:
    return json.loads((place / "runs" / Path(*path) / "result.json").read_text())


@pytest.mark.slow
def test_every_arm_runs_and_is_in_the_tables_as_what_it_is(tiny, deep):
    done = tiny.root / "arms"
    result = tiny.run("study", arms_yaml(tiny, deep), "--workdir", done)
    assert result.code == 0, result.err
    runs = pandas.read_csv(done / "tables" / "runs.csv")
    pretrained = pandas.read_csv(done / "tables" / "pretrain.csv").set_index("name")
    assert [*pretrained.index] == [
        "dense",
        "encoder_only-s0.9",
        "pruned-s0",
        "pruned-s0.9",
        "pruned-s0.9-seed1",
        "two-s0",
    ]
    assert [*pretrained.loc[["pruned-s0.9", "pruned-s0.9-seed1"], "seed"]] == [0, 1]
    assert pretrained.loc["pruned-s0.9", "dev_loss"] != pretrained.loc["pruned-s0.9-seed1", "dev_loss"]
    assert (pretrained.loc[["pruned-s0.9", "pruned-s0.9-seed1"], "target"] == 0.9).all()
    pruned = runs[(runs["condition"] == "pruned") & (runs["target"] == 0.9) & (runs["variant"] == "pruned")]
    assert {*zip(pruned["task"], pruned["seed"], pruned["start"])} == {
        (task, seed, name) for task in ("mood", "sts") for seed, name in ((0, "pruned-s0.9"), (1, "pruned-s0.9-seed1"))
    }
    for row in pruned.to_dict("records"):
        assert row["pretrain_loss"] == pretrained.loc[row["start"], "dev_loss"]
    features = pandas.read_csv(done / "tables" / "features.csv")
    assert {*features["name"]} == {"dense", "encoder_only-s0.9", "pruned-s0", "pruned-s0.9"}  # two-s0 has other layers
    assert {*pandas.read_csv(done / "tables" / "movement.csv")["task"]} == {"mood"}
    page = (done / "report.html").read_text()
    assert (
        "sts: Spearman correlation" in page
        and "repeats with another seed among them: 1; chance in pre-training is in the intervals" in page
    )
    assert "Planned, not finished" not in page

    two, three = (stored_config(done / "runs" / "pretrain" / name).model for name in ("two-s0", "pruned-s0"))
    assert (two.num_hidden_layers, three.num_hidden_layers) == (2, 3)
    assert len(read_folder(done / "runs/pretrain/two-s0/hf", head="pretraining").params["encoder"]) == 2
    masks = flatten_dict(read_folder(done / "runs/pretrain/encoder_only-s0.9/hf", head="pretraining").masks, sep="/")
    pruned = {path for path, mask in masks.items() if mask is not None}
    assert pruned and all(path.startswith("encoder/") for path in pruned)
    dense = read(done, "finetune/dense/sts/lr0.001-seed0")
    cut = read(done, "finetune/after_finetuning/dense-s0.9/sts/lr0.001-seed0")
    recovered = [read(done, f"finetune/pruned/pruned-s0.9/sts/lr0.001-seed{seed}") for seed in (0, 1)]
    assert (dense["steps"], cut["steps"], dense["sparsity"]) == (0, 0, 0) and cut["sparsity"] == pytest.approx(
        0.9, abs=1e-3
    )
    assert len({dense["score"], cut["score"], *(run["score"] for run in recovered)}) == 4
    assert "train_loss" not in dense


@pytest.mark.slow
def test_the_dry_run_tells_the_rounds_apart(tiny, deep):
    argv = ["study", arms_yaml(tiny, deep), "--workdir", tiny.root / "new", "--dry-run"]
    dry = tiny.run(*argv, "--only", "finetune/dense/mood/.*")
    out = " ".join(dry.out.split())
    assert dry.code == 0, dry.err
    assert "seed 1 of everything:" in out and "seed 2 of everything:" in out and "seed 3" not in out
