"""What a study would do and how long it would take, from a few real steps of each program; writes nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprune.config import FinetuneConfig, ModelConfig, PretrainConfig
from jaxprune.data import glue
from jaxprune.experiments import finetune, pretrain
from jaxprune.experiments.conditions import Job
from jaxprune.experiments.dryrun import duration
from jaxprune.experiments.shared import Shared, is_finished, program_key, trainer_key
from jaxprune.experiments.start import Start, shaped, start_config
from jaxprune.experiments.trainer import Trainer
from jaxprune.models.bert import bert
from jaxprune.pruning import init_masks
from jaxprune.training.prunes import plan_of

SECONDS, REPEATS = 3.0, 20
"""A measurement ends after so long, or so many steps."""


class Speed(NamedTuple):
    """Seconds of a step, a prune and an evaluated batch, and once to compile them."""

    step: float
    prune: float
    evaluate: float
    compile: float


def estimate(jobs: list[Job], runs: Path, shared: Shared) -> None:
    """Print every run with the time it would take on this machine, and sums."""
    models: dict[str, ModelConfig] = {}
    speeds: dict[str, Speed] = {}
    compiling: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for job in jobs:
        models[job.path] = _model(job, models, runs)
        if is_finished(runs / job.path):
            continue
        model = models[job.path]
        if isinstance(job.cfg, PretrainConfig):
            cfg = job.cfg.model_copy(update={"model": model, "init_from": ""})
            program, speed = program_key(cfg), _pretraining_speed(cfg, shared, speeds)
            seconds[job.path] = _pretraining(cfg, speed)
        else:
            trainer = shared.trainer(job.cfg, model)
            program = f"{trainer_key(job.cfg, model)} {job.cfg.masks}"
            speed = _finetuning_speed(job.cfg, model, trainer, speeds)
            seconds[job.path] = _finetuning(job.cfg, trainer, speed)
        compiling[program] = speed.compile
    _show(jobs, seconds, sum(compiling.values()))
    if shared.population > 1:
        print(f"population = {shared.population} is left out of account: these are the times of runs one by one")


def _model(job: Job, models: dict[str, ModelConfig], runs: Path) -> ModelConfig:
    """The shape that a run will have, though what it starts from may not exist yet."""
    inside = {str(runs / path): path for path in models}
    if isinstance(job.cfg, FinetuneConfig):
        found = models[inside[job.cfg.init_from]] if job.cfg.init_from in inside else finetune.model_config(job.cfg)
        return finetune.tuned_model(job.cfg, found)
    if job.cfg.init_from in inside:
        return shaped(job.cfg.model, models[inside[job.cfg.init_from]], job.cfg.init_from)
    return start_config(job.cfg.init_from, job.cfg.init_revision, job.cfg.model)


def _pretraining_speed(cfg: PretrainConfig, shared: Shared, speeds: dict[str, Speed]) -> Speed:
    """Measured once per shape: a switch hardly changes it."""
    switches = {"sublayer_relu": False, "hidden_act": "gelu"}
    key = f"{cfg.model.model_copy(update=switches)} {cfg.batch_size} {cfg.train.accumulate} {cfg.mesh}"
    if key not in speeds:
        began, seed = time.perf_counter(), jax.random.key(0)
        run = shared.program(cfg)
        state = run.program.draw(bert(cfg.model, head="pretraining").init, seed)
        batch = run.program.put(next(run.data.iterator(0, prefetch=0)))
        dev = run.program.put(next(iter(run.dev.eval_batches(1))))
        speeds[key] = _measured(run.program, state, batch, dev, seed, began)
    return speeds[key]


def _pretraining(cfg: PretrainConfig, speed: Speed) -> float:
    evaluations = 1 + (cfg.steps // cfg.train.eval_every if cfg.train.eval_every else 0)
    batches = evaluations * cfg.train.eval_batches
    return cfg.steps * speed.step + len(pretrain.prune_plan(cfg)) * speed.prune + batches * speed.evaluate


def _finetuning_speed(cfg: FinetuneConfig, model: ModelConfig, trainer: Trainer, speeds: dict[str, Speed]) -> Speed:
    """Measured once per task."""
    shapes = [part.input_ids.shape for part in trainer.splits]
    key = f"{cfg.tasks} {shapes} {cfg.batch_size} {cfg.dtype}"
    if key not in speeds:
        began, seed = time.perf_counter(), jax.random.key(0)
        params = bert(model, head="classification", num_labels=2).init(seed)
        params = {name: part for name, part in params.items() if name != "classifier"}
        masks = init_masks(params, cfg.prune.include, cfg.prune.exclude)
        params, masks = trainer.weights(Start(model, params, masks, ""), seed)
        program = trainer.program(params, masks)
        batch, dev = (program.put_whole(next(glue.eval_batches(part, cfg.batch_size))) for part in trainer.splits)
        speeds[key] = _measured(program, program.init(params, masks), batch, dev, seed, began)
    return speeds[key]


def _finetuning(cfg: FinetuneConfig, trainer: Trainer, speed: Speed) -> float:
    batches = sum(-(-len(part) // cfg.batch_size) for part in trainer.splits)
    prunes = len(plan_of(cfg.prune, trainer.steps))
    return trainer.steps * speed.step + prunes * speed.prune + batches * speed.evaluate


def _measured(program: Any, state: Any, batch: Any, dev: Any, key: jax.Array, began: float) -> Speed:
    """`began`: when building the program started."""

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(program.train(state, batch, key)[0])

    def prune() -> None:
        nonlocal state
        state = jax.block_until_ready(program.prune(state, np.float32(0.5), key))

    def evaluate() -> None:
        jax.block_until_ready(program.evaluate(state, dev))

    for run in (train, prune, evaluate):
        run()
    ready = time.perf_counter()
    return Speed(_seconds(train), _seconds(prune), _seconds(evaluate), ready - began)


def _seconds(run: Callable[[], None]) -> float:
    """The mean time of a call."""
    began, count = time.perf_counter(), 0
    while count < REPEATS and (count < 2 or time.perf_counter() - began < SECONDS):
        run()
        count += 1
    return (time.perf_counter() - began) / count


def _show(jobs: list[Job], seconds: dict[str, float], compiling: float) -> None:
    console = Console()
    table = Table("run", "time, estimated", box=None)
    for job in jobs:
        table.add_row(job.path, duration(seconds[job.path]) if job.path in seconds else "finished")
    console.print(table)
    todo = [job for job in jobs if job.path in seconds]
    pretraining = sum(seconds[job.path] for job in todo if job.pretrains)
    tuning = sum(seconds[job.path] for job in todo if not job.pretrains)
    console.print(
        f"{len(jobs)} runs, {len(jobs) - len(todo)} of them finished; of the others "
        f"{sum(job.pretrains for job in todo)} pre-train ({duration(pretraining)}) and "
        f"{sum(not job.pretrains for job in todo)} fine-tune ({duration(tuning)})"
    )
    console.print(
        f"{duration(pretraining + tuning + compiling)} in all on this machine, {duration(compiling)} of it to compile; "
        "loading and saving come on top"
    )
