"""The study: its list of runs as a pure function of the config, and whole tiny studies, shared, killed and resumed."""

import copy
import json
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pandas
import pytest
import yaml
from safetensors.numpy import load_file
from workflow import write_yaml

from jaxprune.analysis.paths import flat
from jaxprune.cli import main
from jaxprune.config import FinetuneConfig, ModelConfig, PretrainConfig, PruneConfig, StudyConfig
from jaxprune.config.load import read_yaml, to_yaml, validate
from jaxprune.errors import Diverged, UserError
from jaxprune.experiments import task_run
from jaxprune.experiments.matrix import Job, matrix, shard
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.study import _keep_config, _kind, _refuse_changed, _seconds, check, run_all, select
from jaxprune.experiments.task_run import schedule
from jaxprune.experiments.weights import completed, shaped
from jaxprune.models.bert import bert
from jaxprune.models.folder import read_folder
from jaxprune.training.optimizer import learning_rate_at

RUNS = Path("/study/runs")
PLAIN = {
    "command": "study",
    "data": "/data",
    "recover": {"steps": 20, "prune": {"end": 10, "scope": "head"}},
    "finetune": {"learning_rates": [1e-4, 2e-4], "epochs": 3},
    "tasks": [{"name": "SST-2", "seeds": [0, 1, 2], "max_train_examples": 50}, {"name": "CoLA", "max_len": 16}],
    "conditions": {
        "pruned": {"sparsities": [0, 0.5, 0.9]},
        "information_deletion": {"sparsities": [0.9]},
        "after_finetuning": {"sparsities": [0.5, 0.9], "before": {"warmup_fraction": 0.3}, "finetune": {"epochs": 5}},
        "random": {"sparsities": [0, 0.5]},
    },
    "switches": {
        "soft": {"recover": {"prune": {"mode": "soft", "refresh": True}}},
        "sawtooth": {"finetune": {"sawtooth": True}},
        "after_sawtooth": {"condition": "after_finetuning", "finetune": {"sawtooth": True}},
        "after_more": {"condition": "after_finetuning", "before": {"epochs": 7}, "finetune": {"sawtooth": True}},
        "random_one_shot": {"condition": "random", "recover": {"prune": {"schedule": "one_shot", "end": 0}}},
    },
    "switch_tasks": ["SST-2"],
    "switch_seeds": 2,
}


def study(**changes) -> StudyConfig:
    return validate(StudyConfig, copy.deepcopy(PLAIN) | changes, "c.yaml")


def by_path(jobs: list[Job]) -> dict[str, Job]:
    assert len({job.path for job in jobs}) == len(jobs)
    return {job.path: job for job in jobs}


def test_every_run_is_listed_once_behind_what_it_needs():
    jobs = matrix(study(), RUNS)
    assert jobs == matrix(study(), RUNS)
    listed = by_path(jobs)
    grid, switched = 2 * (3 + 1), 2 * 2  # learning rates x seeds, over the tasks
    pretrain = ["pruned-s0", "pruned-s0.5", "pruned-s0.9", "random-s0.5", "soft-s0.7", "pruned-s0.7"]
    pretrain.append("random_one_shot-s0.7")
    assert [path for path in listed if path.startswith("pretrain/")] == [f"pretrain/{name}" for name in pretrain]
    expected = {
        "pruned/pruned-s0": grid,
        "pruned/pruned-s0.5": grid,
        "pruned/pruned-s0.9": grid,
        "information_deletion/pruned-s0.9": grid,
        "after_finetuning/dense-s0.5": grid,
        "after_finetuning/dense-s0.9": grid,
        "random/random-s0.5": grid,  # at 0 it would be pruned-s0 again
        "pruned/soft-s0.7": switched,
        "pruned/sawtooth-s0.7": switched,
        "after_finetuning/after_sawtooth-s0.7": switched,
        "after_finetuning/after_more-s0.7": switched,
        "random/random_one_shot-s0.7": switched,
    }
    for folder, count in expected.items():
        assert sum(path.startswith(f"finetune/{folder}/") for path in listed) == count, folder
    assert sum(path.startswith("finetune/dense/") for path in listed) == grid + switched
    assert len(jobs) == 1 + len(pretrain) + sum(expected.values()) + grid + switched
    for number, job in enumerate(jobs):
        assert {*job.needs} <= {before.path for before in jobs[:number]}
        start = job.cfg.init_from
        assert start in {str(RUNS / need) for need in job.needs} or (job.path, start) == ("dense", "")


def test_each_run_says_what_its_condition_asks():
    listed = by_path(matrix(study(), RUNS))
    pruned, lifted, after, dense, sawtooth = (
        listed[f"finetune/{place}/SST-2/lr0.0001-seed1"].cfg
        for place in (
            "pruned/pruned-s0.9",
            "information_deletion/pruned-s0.9",
            "after_finetuning/dense-s0.9",
            "dense",
            "after_finetuning/after_sawtooth-s0.7",
        )
    )
    assert (pruned.masks, lifted.masks) == ("fixed", "lifted")
    assert pruned.init_from == lifted.init_from == str(RUNS / "pretrain/pruned-s0.9")
    assert (pruned.tasks, pruned.learning_rates, pruned.seeds, pruned.max_train_examples) == (
        ("SST-2",),
        (1e-4,),
        (1,),
        50,
    )
    assert pruned.max_len == FinetuneConfig().max_len
    assert listed["finetune/pruned/pruned-s0.9/CoLA/lr0.0001-seed0"].cfg.max_len == 16
    assert (dense.init_from, dense.keep_weights, dense.epochs) == (str(RUNS / "dense"), True, 3)
    assert dense.warmup_fraction == 0.3 != after.warmup_fraction == pruned.warmup_fraction
    assert (after.init_from, after.epochs) == (str(RUNS / "finetune/dense/SST-2/lr0.0001-seed1"), 5)
    assert (after.prune.sparsity, after.prune.scope, after.prune.schedule) == (0.9, "head", "one_shot")
    tuned_otherwise = listed["finetune/pruned/sawtooth-s0.7/SST-2/lr0.0001-seed1"].cfg
    assert tuned_otherwise.init_from == str(RUNS / "pretrain/pruned-s0.7") and tuned_otherwise.sawtooth
    assert (sawtooth.sawtooth, sawtooth.epochs_before, after.sawtooth) == (True, 3, False)
    more = listed["finetune/after_finetuning/after_more-s0.7/SST-2/lr0.0001-seed1"]
    assert (more.cfg.epochs, more.cfg.epochs_before, listed[more.needs[-1]].cfg.epochs) == (5, 7, 7)
    assert listed[more.needs[-1]].cfg.warmup_fraction == 0.3
    assert more.cfg.init_from == str(RUNS / "finetune/dense/after_more/SST-2/lr0.0001-seed1")
    recover = {name: listed[f"pretrain/{name}"].cfg for name in ("pruned-s0.5", "random-s0.5", "soft-s0.7")}
    assert recover["random-s0.5"].prune == recover["pruned-s0.5"].prune.model_copy(update={"criterion": "random"})
    assert recover["soft-s0.7"].prune.refresh and recover["soft-s0.7"].prune.sparsity == 0.7
    assert all(job.cfg.data.path == "/data" for job in listed.values() if job.pretrains)


def test_shards_cover_the_list_and_share_ancestors_alone():
    jobs = matrix(study(), RUNS)
    for count in (1, 2, 3, 7):
        parts = [shard(jobs, i, count) for i in range(1, count + 1)]
        assert {job.path for part in parts for job in part} == {job.path for job in jobs}
        for part in parts:
            paths = {job.path for job in part}
            assert all({*job.needs} <= paths for job in part)
        ancestors = {need for job in jobs for need in job.needs}
        for job in jobs:
            assert job.path in ancestors or sum(job in part for part in parts) == 1


def test_only_keeps_what_matches_and_its_ancestors():
    jobs = matrix(study(), RUNS)
    chosen = select(jobs, "deletion/.*/CoLA/lr0.0002", "")
    assert [job.path for job in chosen] == [
        "dense",
        "pretrain/pruned-s0.9",
        "finetune/information_deletion/pruned-s0.9/CoLA/lr0.0002-seed0",
    ]
    for only, part, words in (("nothing", "", "matches none"), ("(", "", "regular expression"), ("", "3/2", "i/n")):
        with pytest.raises(UserError, match=words):
            select(jobs, only, part)


def after(prune: dict, **condition) -> StudyConfig:
    """A study of the cut after fine-tuning alone, by `recover.prune`."""
    conditions = {"after_finetuning": {"sparsities": [0.5], **condition}}
    return study(recover={"steps": 20, "prune": {"end": 10, **prune}}, conditions=conditions, switches={})


def test_the_cut_after_fine_tuning_is_made_as_recovery_prunes():
    """Each setting of what is pruned and how, here none at its default, reaches the run that is cut."""
    how = {
        "amounts": {".*/query/kernel": 0.25, "pooler/kernel": None},
        "scope": "head",
        "distribution": "erk",
        "structure": "block(2, 2)",
        "criterion": "random",
        "method": "quantile",
        "include": (".*/kernel",),
        "exclude": ("mlm/.*",),
    }
    when = {"sparsity", "initial", "schedule", "begin", "end", "every", "refresh", "mode", "regrow", "regrow_fraction"}
    when |= {"lift_steps", "straight_through"}
    assert how.keys() | when == PruneConfig.model_fields.keys() and not how.keys() & when
    jobs = [job.cfg for job in matrix(after(how), RUNS) if "/after_finetuning/" in job.path]
    assert len(jobs) == 8
    for cfg in jobs:
        assert cfg.prune.sparsity == 0.5 and cfg.prune.schedule == "one_shot" and cfg.prune.end == 0
        for key, value in how.items():
            assert getattr(cfg.prune, key) == value != PruneConfig.model_fields[key].default


CUTS = {
    "criterion of steps": (
        after({"criterion": "movement"}),
        ["recover.prune.criterion = movement", "conditions.after_finetuning.recover.prune.criterion", "random"],
    ),
    "criterion of steps in a switch": (
        study(switches={"late": {"condition": "after_finetuning", "recover": {"prune": {"criterion": "taylor"}}}}),
        ["recover.prune.criterion = taylor", "switches.late.recover.prune.criterion"],
    ),
    "another structure": (
        after({"structure": "2:4"}, finetune={"prune": {"structure": "block(4, 4)"}}),
        ["conditions.after_finetuning: ", "finetune.prune.structure = block(4, 4)", "recover.prune.structure = 2:4"],
    ),
    "amounts of its own": (
        after({}, finetune={"prune": {"amounts": {"pooler/kernel": 0.5}}}),
        ["finetune.prune.amounts = {'pooler/kernel': 0.5}", "recover.prune.amounts = {}"],
    ),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_cut_that_cannot_be_is_refused(case):
    cfg, words = CUTS[case]
    with pytest.raises(UserError) as error:
        matrix(cfg, RUNS)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value


def test_the_cut_may_have_a_criterion_of_its_own():
    cfg = after({"criterion": "movement", "begin": 1}, recover={"prune": {"criterion": "magnitude"}})
    assert {job.cfg.prune.criterion for job in matrix(cfg, RUNS) if "/after_finetuning/" in job.path} == {"magnitude"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"switches": {"x": {"recover": {"prune": {"moed": "soft"}}}}}, ["switches.x.recover", "did you mean mode?"]),
        ({"switches": {"../x": {}}}, ["'../x'", "directory"]),
        ({"switches": {"x": {"before": {"epochs": 2}}}}, ["before", "pruned", "remove"]),
        ({"conditions": {"random": {"before": {"epochs": 2}}}}, ["conditions.random.before", "remove"]),
        ({"conditions": {"after_finetuning": {"before": {"epochz": 2}}}}, ["before", "did you mean epochs?"]),
        ({"switch_tasks": ["QQP"]}, ["QQP", "SST-2"]),
        ({"tasks": [{"name": "CoLA"}, {"name": "CoLA"}]}, ["tasks", "twice"]),
        ({"conditions": {"pruned": {"sparsities": [1.5]}}}, ["conditions.pruned", "1.5"]),
        (
            {"conditions": {"information_deletion": {"recover": {"steps": 9}}}},
            ["deletion.recover", "pruned"],
        ),
        ({"conditions": {"random": {"recover": {"prune": {"mode": "soft"}}}}}, ["conditions.random.recover", "soft"]),
    ],
)
def test_a_wrong_study_is_refused(changes, words):
    with pytest.raises(UserError) as error:
        study(**changes)
    assert all(word in str(error.value) for word in words), error.value


def test_the_published_fine_tuning_rate():
    """Teeth of one epoch from peak / k, a warm-up in the first alone; a later run counts on."""
    steps = 30
    first = FinetuneConfig(epochs=3, sawtooth=True, warmup_fraction=0.2, learning_rates=(1.0,))
    rate = learning_rate_at(schedule(first, steps), steps)
    teeth = [1 - t / (10 * (t // 10 + 1)) for t in range(steps)]
    np.testing.assert_allclose([rate(t) for t in range(steps)], [0, 0.5, *teeth[2:]], rtol=1e-6)
    later = schedule(first.model_copy(update={"epochs": 2, "epochs_before": 3}), 20)
    assert learning_rate_at(later, 20)(0) == pytest.approx(1 / 4)
    assert learning_rate_at(later, 20)(10) == pytest.approx(1 / 5)
    plain = learning_rate_at(schedule(FinetuneConfig(epochs=3, learning_rates=(1.0,)), steps), steps)
    np.testing.assert_allclose([plain(t) for t in (3, 15, 29)], [1, 15 / 27, 1 / 27], rtol=1e-5)


@pytest.fixture(scope="module")
def config(tiny) -> Path:
    """A study of twelve runs on the tiny corpus, of all conditions and two switches."""
    pretrain = yaml.safe_load(
        tiny.pretrain_yaml(tiny.root / "p.yaml", steps=8, prune={"begin": 2, "end": 6}).read_text()
    )
    finetune = yaml.safe_load(tiny.finetune_yaml(tiny.root / "f.yaml").read_text())
    pretrain["train"] = {"log_every": 2, "save_every": 2, "eval_batches": 2, "keep": 1}
    finetune["train"] = {"log_every": 1, "save_every": 1, "keep": 1}
    for section in (pretrain, finetune):
        del section["command"]
    del finetune["tasks"], finetune["seeds"]
    content = {
        "command": "study",
        "data": str(tiny.data),
        "keep_weights": True,
        "dense_run": copy.deepcopy(pretrain) | {"prune": {}},
        "recover": {key: value for key, value in copy.deepcopy(pretrain).items() if key != "model"},
        "finetune": finetune,
        "tasks": [{"name": "SST-2", "max_train_examples": 32, "max_dev_examples": 20}],
        "conditions": {
            "pruned": {"sparsities": [0.5, 0.9]},
            "information_deletion": {"sparsities": [0.9]},
            "after_finetuning": {"sparsities": [0.9]},
            "random": {"sparsities": [0.9]},
        },
        "switches": {"soft": {"recover": {"prune": {"mode": "soft", "refresh": True}}}},
    }
    return write_yaml(tiny.root / "study.yaml", content)


@pytest.fixture(scope="module")
def shared(tiny, config) -> Path:
    """The study by two processes at once, each with its half."""
    place = tiny.root / "shared"
    halves = [tiny.start("study", config, "--workdir", place, "--shard", f"{i}/2") for i in (1, 2)]
    for half in halves:
        done = half.finish(600)
        assert done.code == 0, done.err
    done = tiny.run("report", place)
    assert done.code == 0, done.err
    return place


def finished(study: Path) -> list[Path]:
    """Every result.json; directories that vanish meanwhile are passed over."""
    return sorted(
        Path(folder) / name for folder, _, names in os.walk(study / "runs") for name in names if name == "result.json"
    )


def results(study: Path) -> dict[str, dict]:
    """What every run wrote last, without what the clock decides."""
    found = {}
    for path in finished(study):
        result = json.loads(path.read_text())
        assert result.pop("seconds_this_session") > 0
        found[str(path.parent.relative_to(study / "runs"))] = result
    return found


@pytest.mark.slow
def test_two_processes_share_a_study_and_do_no_run_twice(shared, config):
    cfg = validate(StudyConfig, yaml.safe_load(config.read_text()), str(config))
    jobs = matrix(cfg, shared / "runs")
    assert {*results(shared)} == {job.path for job in jobs} and len(jobs) == 12
    for job in jobs:
        assert len([*(shared / "runs" / job.path / "tensorboard").glob("events*")]) == 1, job.path
    table = pandas.read_csv(shared / "tables" / "runs.csv")
    assert len(table) == sum(not job.pretrains for job in jobs)


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_results(tiny, config, shared):
    place, rng = tiny.root / "killed", random.Random("study")
    total = len(results(shared))
    for count in sorted(rng.sample(range(1, total - 1), 3)):
        process = tiny.start("study", config, "--workdir", place)
        deadline = time.monotonic() + 400
        while len(finished(place)) < count and process.runs() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        process.signal(signal.SIGKILL)
        process.finish()
    stamps = {path: path.stat().st_mtime_ns for path in finished(place)}
    assert len(stamps) < total
    done = tiny.run("study", config, "--workdir", place)
    assert done.code == 0, done.err
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert results(place) == results(shared)
    for path in (shared / "tables").glob("*.csv"):
        assert (place / "tables" / path.name).read_text() == path.read_text(), path.name


@pytest.mark.slow
def test_the_cut_after_fine_tuning_is_one_shot_on_the_tuned_weights(shared):
    """Per matrix, the largest magnitudes of the fine-tuned dense weights survive to the end, and no others."""
    before, cut_and_tuned = (
        read_folder(shared / "runs" / "finetune" / place / "SST-2" / "lr0.001-seed0" / "hf", head=None)
        for place in ("dense", "after_finetuning/dense-s0.9")
    )
    before, after, masks = flat(before.params), flat(cut_and_tuned.params), flat(cut_and_tuned.masks)
    cut = 0
    for path, weight in after.items():
        if (weight == 0).mean() < 0.5 or not path.endswith(("kernel", "embedding")):
            continue
        kept = round(0.1 * weight.size)
        assert (weight != 0).sum() == kept and (masks[path] == (weight != 0)).all()
        largest = np.argsort(np.abs(before[path]), axis=None)[-kept:]
        assert {*np.flatnonzero(weight)} == {*largest}
        cut += 1
    assert cut == len(masks) == 8  # word embeddings, six matrices of the layer, pooler
    records = (shared / "runs/finetune/after_finetuning/dense-s0.9/SST-2/lr0.001-seed0/prunes.jsonl").read_text()
    assert [json.loads(line)["step"] for line in records.splitlines()] == [0]


@pytest.mark.slow
def test_a_run_starts_from_a_fine_tuned_one_with_its_classifier(shared):
    place = shared / "runs/finetune/dense/SST-2/lr0.001-seed0"
    cfg = validate(FinetuneConfig, read_yaml(place / "config.yaml"), "config.yaml")
    cfg = cfg.model_copy(update={"init_from": str(place)})
    opened = task_run.tuning().open(task_run.resolve(cfg, None), Shelf())
    params = completed(opened.start(), opened.blueprint.build().init, jax.random.key(7))
    saved = load_file(place / "hf" / "model.safetensors")
    np.testing.assert_array_equal(params["classifier"]["kernel"], saved["classifier.weight"].T)
    np.testing.assert_array_equal(params["classifier"]["bias"], saved["classifier.bias"])
    fresh = jax.eval_shape(bert(cfg.model, head="classification", num_labels=2).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)


BEYOND = {
    "recovery": (
        {"recover": {"prune": {"sparsity": 0, "begin": 2, "end": 9}}},
        "pretrain/pruned-s0.5",
        ["prune.end = 9", "steps = 8"],
    ),
    "fine-tuning": (
        {"conditions": {"after_finetuning": {"finetune": {"prune": {"schedule": "cubic", "end": 3}}}}},
        "finetune/after_finetuning/dense-s0.9/SST-2/lr0.001-seed0",
        ["prune.end = 3", "epochs x examples / batch_size = 1 x 32 / 16 = 2"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize("case", BEYOND)
def test_a_prune_that_would_come_after_the_last_step_is_refused(tiny, config, tmp_path, capsys, case, dry):
    changes, run, words = BEYOND[case]
    path = write_yaml(tmp_path / "c.yaml", {"base": str(config), **changes})
    assert main(["study", str(path), "--workdir", str(tmp_path / "study"), *dry]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in [run, *words]) and error.count("\n") == 1, error
    assert not (tmp_path / "study").exists()


SHAPE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
UNFIT = {
    "exclude": ({"prune": {"exclude": ["embedings/.*"]}}, ["prune.exclude", "embedings/.*", "embeddings/"]),
    "a layer of BERT-Base": ({"prune": {"amounts": {".*/layer_07/.*": 0.5}}}, ["prune.amounts", "layer_07"]),
    "layers": ({"layers": [0, 2]}, ["layers = [0, 2]", "layers 0 to 0"]),
    "another size": ({"model": {"vocab_size": 50}}, ["model.vocab_size = 50", "has 40"]),
    "a teacher's": ({"teacher": {"source": "DENSE", "layers": [0, 1], "hidden": 1.0}}, ["teacher.layers = [0, 1]"]),
}


@pytest.mark.parametrize("own", [True, False], ids=["own dense", "dense elsewhere"])
@pytest.mark.parametrize("case", UNFIT)
def test_every_run_is_checked_in_the_shape_that_it_will_have(case, own, tmp_path):
    recover, words = copy.deepcopy(UNFIT[case])
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.yaml").write_text(to_yaml(PretrainConfig(model=ModelConfig(**SHAPE))))
    if "teacher" in recover:
        recover["teacher"]["source"] = str(tmp_path / "dense")
    start = {"dense_run": {"model": SHAPE}} if own else {"dense": str(tmp_path / "dense")}
    right, wrong = (
        [job for job in matrix(study(switches=switches, **start), RUNS) if job.pretrains]
        for switches in ({}, {"wrong": {"recover": recover}})
    )
    shelf = Shelf()
    check(right, RUNS, shelf)
    with pytest.raises(UserError) as error:
        check(wrong, RUNS, shelf)
    told = str(error.value)
    assert all(word in told for word in ["pretrain/wrong-s0.7: ", *words]) and "\n" not in told, told


@pytest.mark.slow
def test_tasks_are_checked_in_the_shape_that_they_will_have(config, tmp_path, capsys):
    path = write_yaml(tmp_path / "c.yaml", {"base": str(config), "finetune": {"max_len": 128}})
    assert main(["study", str(path), "--workdir", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert "/SST-2/lr0.001-seed0: max_len = 128 is above the 32 positions of the model" in error, error
    assert error.count("\n") == 1 and not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_dry_run_counts_what_is_left_and_writes_nothing(tiny, config, shared, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    assert main(["study", str(config), "--workdir", str(shared), "--dry-run"]) == 0
    assert "12 runs, 12 of them finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    argv = ["study", config, "--workdir", tmp_path / "new", "--dry-run", "--only", "deletion"]
    done = tiny.start(*argv, COLUMNS="80").finish()
    assert done.code == 0, done.err
    out = " ".join(done.out.split())
    assert "3 runs, 0 of them finished; of the others 2 pre-train" in out and "1 fine-tune" in out
    assert "finetune/information_deletion/pruned-s0.9/SST-2/lr0.001-seed0" in done.out  # whole, in a narrow terminal
    assert max(map(len, done.out.splitlines())) <= 80
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_study_may_grow_but_not_change(config, shared, capsys):
    argv = ["study", str(config), "--workdir", str(shared), "--only", "pruned-s0.5"]
    assert main([*argv, "--recover.steps", "9", "--dry-run"]) == 2
    assert "recover.steps: 8 -> 9" in capsys.readouterr().err
    assert main([*argv, "--recover.steps", "9"]) == 2
    assert "recover.steps: 8 -> 9" in capsys.readouterr().err
    assert main([*argv, "--conditions.random.sparsities", "0.5", "0.9"]) == 0
    assert yaml.safe_load((shared / "config.yaml").read_text())["conditions"]["random"]["sparsities"] == [0.5, 0.9]


def test_processes_that_begin_at_once_write_one_config(tmp_path):
    """Threads, each with a lock of its own, stand for them."""
    with ThreadPoolExecutor(8) as threads:
        [*threads.map(lambda _: _keep_config(study(tasks=[{"name": "SST-2"}]), tmp_path / "study"), range(64))]
    assert yaml.safe_load((tmp_path / "study" / "config.yaml").read_text())["command"] == "study"
    assert {path.name for path in (tmp_path / "study").iterdir()} <= {"config.yaml", ".lock"}


def test_tasks_may_come_go_and_get_seeds_but_not_change(tmp_path):
    tasks = [{"name": "SST-2", "seeds": [0, 1]}, {"name": "CoLA"}]
    _keep_config(study(tasks=tasks, switch_tasks=[]), tmp_path)
    for fine in (
        [*tasks[1:], {"name": "SST-2", "seeds": [2, 1, 0]}, {"name": "QQP"}],
        tasks[:1],
        [{"name": "SST-2", "seeds": [2]}, tasks[1]],
    ):
        _refuse_changed(study(tasks=fine, switch_tasks=[]), tmp_path)
    same = [tasks[0] | {"max_train_examples": 0}, tasks[1] | {"max_len": FinetuneConfig().max_len}]  # what they had
    _refuse_changed(study(tasks=same, switch_tasks=[]), tmp_path)
    with pytest.raises(UserError) as error:
        _refuse_changed(study(tasks=[tasks[0], {"name": "CoLA", "max_dev_examples": 5}], switch_tasks=[]), tmp_path)
    assert "begun with another config (tasks.CoLA.max_dev_examples: 0 -> 5); use another" in str(error.value)


def test_the_stored_config_runs_again(tmp_path):
    """Of a start that is no BERT-Base, which decides the shape of what starts from it."""
    cfg = study(
        tasks=[{"name": "SST-2"}], switch_tasks=[], recover=PLAIN["recover"] | {"model": {"hidden_dropout_prob": 0.0}}
    )
    _keep_config(cfg, tmp_path)
    again = validate(StudyConfig, read_yaml(tmp_path / "config.yaml"), "config.yaml")
    assert again == cfg
    small = ModelConfig(hidden_size=64, num_attention_heads=2)
    for job in matrix(again, tmp_path)[1:]:
        assert shaped(job.cfg.model, small, "dense").hidden_size == 64, job.path
    before, after = (by_path(matrix(one, tmp_path))["pretrain/pruned-s0.5"].cfg.model for one in (cfg, again))
    assert shaped(after, small, "dense") == shaped(before, small, "dense")


def test_more_parts_than_runs_are_refused():
    jobs = matrix(study(tasks=[{"name": "SST-2"}], switch_tasks=[]), Path("runs"))
    most = len({job.group for job in jobs})
    assert select(jobs, "", f"{most}/{most}")
    with pytest.raises(UserError, match=f"--only nowhere: matches none of the runs of --shard 2/{most}; --dry-run"):
        select(jobs, "nowhere", f"2/{most}")
    with pytest.raises(UserError, match=f"--shard {most + 1}/99: the runs make {most} parts at most; give i/n with n"):
        select(jobs, "", f"{most + 1}/99")


def test_a_study_whose_runs_all_diverge_says_so(tmp_path, monkeypatch):
    """Not that there is nothing to report on."""
    module = sys.modules[run_all.__module__]
    monkeypatch.setattr(module, "check", lambda *_: None)
    monkeypatch.setattr(module, "run", lambda *_: (_ for _ in ()).throw(Diverged("the loss is nan")))
    with pytest.raises(Diverged, match="the loss is nan"):
        module.study(study(tasks=[{"name": "SST-2"}], switch_tasks=[]), tmp_path / "study")


def test_a_finished_run_whose_model_is_gone_is_entered_again(tmp_path, monkeypatch):
    """Where a checkpoint can write it again; else it stays as it is."""
    jobs = matrix(study(tasks=[{"name": "SST-2"}], switch_tasks=[]), tmp_path)
    jobs = [job for job in jobs if job.pretrains][:3]
    entered = []

    def run(job, runs, _):
        entered.append(job.path)
        (runs / job.path / "hf").mkdir()
        (runs / job.path / "hf" / "config.json").touch()

    monkeypatch.setattr(sys.modules[run_all.__module__], "run", run)
    for job, parts in zip(jobs, (["checkpoints/8"], ["checkpoints/8", "hf"], []), strict=True):
        for part in parts:
            (tmp_path / job.path / part).mkdir(parents=True)
        (tmp_path / job.path).mkdir(parents=True, exist_ok=True)
        (tmp_path / job.path / "result.json").touch()
    (tmp_path / jobs[1].path / "hf" / "config.json").touch()
    run_all(jobs, tmp_path, Shelf())
    assert entered == [jobs[0].path]


def test_the_time_left_goes_by_kinds_of_runs():
    jobs = matrix(study(tasks=[{"name": "SST-2"}, {"name": "CoLA"}], switch_tasks=[]), Path("runs"))
    count = {kind: sum(_kind(job) == kind for job in jobs) for kind in ("", "SST-2", "CoLA")}
    assert sum(count.values()) == len(jobs) and min(count.values()) > 0
    taken = {"": [400.0], "SST-2": [100.0, 30.0, 40.0]}
    assert _seconds(jobs, taken) == 400 * count[""] + 35 * count["SST-2"] + 217.5 * count["CoLA"]
