"""Shipped studies: every program that one of them would compile traces, at its full size, without data or weights."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.config import FinetuneConfig, ModelConfig, PretrainConfig, StudyConfig
from jaxprune.config.load import read_config, validate
from jaxprune.experiments.matrix import matrix
from jaxprune.experiments.pretrain import blueprint_of
from jaxprune.experiments.program import compile_program
from jaxprune.experiments.pruning_plan import included, plan_of, restarts_of
from jaxprune.experiments.task_run import schedule
from jaxprune.experiments.weights import shaped
from jaxprune.training.optimizer import learning_rate_at

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STUDIES = sorted(path for path in CONFIGS.rglob("*.yaml") if read_config(path).get("command") == "study")
BERT_BASE = ModelConfig()


def read(path: Path) -> StudyConfig:
    return validate(StudyConfig, read_config(path), str(path))


def jobs(path: Path) -> dict[str, PretrainConfig]:
    """The pre-training runs, with the shape that bert-base-uncased or the dense start gives them."""
    found, study = {}, read(path)
    for job in matrix(study, Path("runs")):
        if isinstance(job.cfg, PretrainConfig):
            own = not study.dense and job.cfg.init_from in ("", str(Path("runs") / "dense"))
            model = shaped(job.cfg.model, study.dense_run.model if own else BERT_BASE, "base")
            found[job.path] = job.cfg.model_copy(update={"model": model, "prune": included(job.cfg.prune, model)})
    return found


def prune_plan(cfg: PretrainConfig) -> dict[int, float]:
    return plan_of(cfg.prune, cfg.steps, "steps")


def shapes(batch_size: int, length: int, predictions: int) -> dict[str, jax.ShapeDtypeStruct]:
    whole, some = (batch_size, length), (batch_size, predictions)
    ints = {"input_ids": whole, "token_type_ids": whole, "attention_mask": whole, "masked_positions": some}
    ints |= {"masked_ids": some, "next_sentence_label": (batch_size,)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in ints.items()}
    return batch | {"masked_weights": jax.ShapeDtypeStruct(some, jnp.float32)}


def test_the_paper_has_two_forms():
    assert {path.stem for path in STUDIES} >= {"published", "corrected", "study"}


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_program_traces(path):
    programs = {}
    for cfg in jobs(path).values():
        model = cfg.model.model_copy(update={"num_hidden_layers": 2})  # the others are the same once more
        smaller = cfg.model_copy(update={"model": model})
        programs.setdefault(blueprint_of(smaller, lambda: model).key(), smaller)  # noqa: B023
    for cfg in programs.values():
        program = compile_program(blueprint_of(cfg, lambda: cfg.model))  # noqa: B023
        key = jax.eval_shape(lambda: jax.random.key(0))
        length = min(128, cfg.model.max_position_embeddings)
        batch = shapes(cfg.batch_size, length, cfg.data.predictions(length))
        state, metrics = jax.eval_shape(program.train, program.abstract, program.frozen, batch, key)
        assert metrics["grad_norm"].shape == () and jax.tree.structure(state) == jax.tree.structure(program.abstract)
        kept, report = jax.eval_shape(program.prune, state, program.amounts(0.5), key)
        assert jax.tree.structure(kept) == jax.tree.structure(state)
        assert jax.tree.structure(report.kept) == jax.tree.structure(state.masks)


def test_the_published_recipe_is_the_one_that_ran():
    """Against the numbers that the authors' code gives (their schedules, executed)."""
    runs = jobs(CONFIGS / "paper" / "published.yaml")
    assert sum(path.startswith("pretrain/") for path in runs) == 20
    pruned, random = runs["pretrain/pruned-s0.7"], runs["pretrain/random-s0.7"]
    rate = learning_rate_at(pruned.optimizer, pruned.steps)
    np.testing.assert_allclose([rate(t) for t in (5, 5000, 90_000)], [1e-5, 1e-5, 2e-5 / 19], rtol=1e-5)
    plan = prune_plan(pruned)
    assert (pruned.steps, len(plan), max(plan)) == (95_000, 9501, 95_000)
    assert plan[2500] == pytest.approx(0.578 * 0.7, abs=1e-3) and plan[10_000] == plan[95_000] == 0.7
    assert pruned.model.sublayer_relu and pruned.model.hidden_act == "gelu_new"
    assert pruned.data.masking == random.data.masking == "published"
    assert pruned.init_from == "bert-base-uncased" and random.init_from == str(Path("runs") / "dense")
    assert learning_rate_at(random.optimizer, random.steps)(0) == pytest.approx(6.667e-6, rel=1e-3)
    assert (random.steps, prune_plan(random)) == (85_000, {0: 0.7})
    every = [job for job in matrix(read(CONFIGS / "paper" / "published.yaml"), Path("runs")) if not job.pretrains]
    tuned = [job.cfg for job in every if not re.search(r"/after_\d", job.path)]
    assert {(cfg.epochs, cfg.epochs_before, cfg.masks) for cfg in tuned} == {
        (3, 0, "fixed"),
        (13, 0, "lifted"),
        (5, 3, "fixed"),
    }
    cuts = [job.cfg for job in every if re.search(r"/after_finetuning/after_\d+-s0.6/", job.path)]  # Fig 3 bottom
    assert {(cfg.epochs_before, cfg.epochs, cfg.learning_rates) for cfg in cuts} == {
        (epochs, 2, (5e-5,)) for epochs in (1, 3, 6, 9, 12)
    }
    first = schedule(tuned[0], 300)
    assert (first.period, first.warmup_steps, first.decay) == (100, 10, "sawtooth")


def test_the_corrected_recipe_is_what_the_text_says():
    runs = jobs(CONFIGS / "paper" / "corrected.yaml")
    for sparsity in (0.1, 0.5, 0.9):
        pruned, random = runs[f"pretrain/pruned-s{sparsity}"], runs[f"pretrain/random-s{sparsity}"]
        assert (pruned.steps, pruned.prune.mode, pruned.prune.method) == (100_000, "hard", "exact")
        assert max(prune_plan(pruned)) == 10_000 and prune_plan(pruned) == prune_plan(random)
        assert pruned.optimizer == random.optimizer and pruned.optimizer.decay == "linear"
        assert pruned.data.masking == random.data.masking == "known"
        assert not pruned.model.sublayer_relu and pruned.init_from == random.init_from == str(Path("runs") / "dense")
    assert all(len(task.seeds) >= 3 for task in read(CONFIGS / "paper" / "corrected.yaml").tasks)


def test_recipes_of_the_literature():
    """Steps of prunes, restarts of the rate, scores and teachers as their authors have them (docs/methods.md)."""
    recipes = {
        name: validate(PretrainConfig, read_config(CONFIGS / "recipes" / f"{name}.yaml"), name)
        for name in ("gmp", "prune_ofa", "gmp_star_like", "movement", "fisher", "obert_upstream")
    }
    assert len({(cfg.steps, cfg.batch_size, cfg.prune.sparsity) for cfg in recipes.values()}) == 1
    plans = {name: prune_plan(cfg) for name, cfg in recipes.items()}
    restarts = {name: restarts_of(cfg.optimizer.decay, plans[name]) for name, cfg in recipes.items()}
    teachers = {name: (cfg.teacher.hardness, cfg.teacher.temperature) for name, cfg in recipes.items()}
    assert plans["gmp"] == plans["prune_ofa"] and max(plans["gmp"]) == recipes["gmp"].steps // 2
    assert not recipes["gmp"].teacher.teaches and restarts["gmp"] == () and restarts["prune_ofa"] == (50_000,)
    assert teachers["prune_ofa"] == (0.5, 2) and teachers["gmp_star_like"] == teachers["obert_upstream"] == (1, 5.5)
    few = plans["gmp_star_like"]
    assert few == plans["obert_upstream"] and few[8000] == 0.7 and restarts["obert_upstream"] == tuple(few)
    assert [recipes[name].prune.criterion for name in recipes] == ["magnitude"] * 3 + ["movement", "fisher", "obert"]
    assert recipes["movement"].prune.mode == "soft" and plans["movement"] == plans["fisher"] == plans["gmp"]
    movement = validate(FinetuneConfig, read_config(CONFIGS / "recipes" / "movement_finetuning.yaml"), "movement")
    assert (movement.prune.criterion, movement.prune.mode, movement.epochs) == ("movement", "soft", 10)
