"""What a study would do and how long it would take, from a few real steps of each program; writes nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jaxprune.config.commands import PretrainConfig
from jaxprune.config.sections import ModelConfig
from jaxprune.data.task_batches import eval_batches
from jaxprune.experiments import pretrain, task_run
from jaxprune.experiments.dry_run import duration
from jaxprune.experiments.matrix import Job
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import Ready, compile_run
from jaxprune.experiments.weights import shallower, shaped, source_model
from jaxprune.training.compile import Program

SECONDS, REPEATS = 3.0, 20
"""A measurement ends after so long, or so many steps."""
SWITCHES = {"sublayer_relu": False, "hidden_act": "gelu"}
"""What hardly changes the time of a step."""


class Speed(NamedTuple):
    """Seconds of a step, a prune and an evaluated batch, and once to compile them."""

    step: float
    prune: float
    evaluate: float
    compile: float


def estimate(jobs: list[Job], runs: Path, shelf: Shelf) -> None:
    """Print every run with the time it would take on this machine, and sums."""
    models: dict[str, ModelConfig] = {}
    compiling: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for job in jobs:
        models[job.path] = _model(job, models, runs)
        if (runs / job.path / "result.json").is_file():
            continue
        ready = _ready(job, models[job.path], shelf)
        blueprint = ready.opened.blueprint
        shape = blueprint._replace(model=blueprint.model.model_copy(update=SWITCHES), steps=0)
        kind = (f"{shape.model} {shape.head} {shape.masked}", job.cfg.batch_size, ready.opened.data.tokens_per_step)
        speed = shelf.get("speed", kind, lambda ready=ready: _measured(ready))
        batches, prunes = _evaluated(ready), len(ready.opened.plan)
        seconds[job.path] = blueprint.steps * speed.step + prunes * speed.prune + batches * speed.evaluate
        compiling[blueprint.key()] = speed.compile
    _show(jobs, seconds, sum(compiling.values()))


def _model(job: Job, models: dict[str, ModelConfig], runs: Path) -> ModelConfig:
    """The shape that a run will have, though what it starts from may not exist yet."""
    inside = {str(runs / path): path for path in models}
    source = job.cfg.init_from
    if not source:
        return job.cfg.model
    shape = models[inside[source]] if source in inside else source_model(source, job.cfg.init_revision)
    layers = job.cfg.layers if isinstance(job.cfg, PretrainConfig) else ()
    return shaped(job.cfg.model, shallower(shape, layers, source), source)


def _ready(job: Job, model: ModelConfig, shelf: Shelf) -> Ready:
    """A run of the job's shape that starts from scratch."""
    scratch = {"model": model, "init_from": ""} | ({"layers": ()} if job.pretrains else {})
    cfg = job.cfg.model_copy(update=scratch)
    command = pretrain.PRETRAIN if job.pretrains else task_run.tuning()
    return compile_run(command.open(command.resolve(cfg, None), shelf), shelf)


def _evaluated(ready: Ready) -> int:
    """Batches that a run evaluates."""
    cfg, data = ready.opened.decisions.cfg, ready.opened.data
    if data.dev is None:
        splits, shape = data.source
        parts = (splits.train, splits.dev) if cfg.train_loss else (splits.dev,)
        return sum(-(-len(part.ids) // (shape.rows * shape.length)) for part in parts)
    times = 1 + (cfg.steps // cfg.train.eval_every if cfg.train.eval_every else 0)
    return times * cfg.train.eval_batches


def _batches(ready: Ready) -> tuple[Any, Any]:
    """A batch to train on and one to evaluate, on the device."""
    program, data = ready.program, ready.opened.data
    if data.dev is not None:
        return program.put(next(data.batches())), program.put(next(iter(data.dev())))
    batch = program.put_whole(next(data.batches()))
    splits, shape = data.source
    return batch, program.put_whole(next(eval_batches(splits.dev, shape))[1])


def _measured(ready: Ready) -> Speed:
    began, key = time.perf_counter(), jax.random.key(0)
    program: Program = ready.program
    batch, dev = _batches(ready)
    state = program.draw(ready.opened.blueprint.build().init, key)
    amounts = program.amounts(0.5) if jax.tree.leaves(state.masks) else None

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(program.train(state, (), batch, key)[0])

    def prune() -> None:
        nonlocal state
        if amounts is not None:
            state = jax.block_until_ready(program.prune(state, amounts, key)[0])

    def evaluate() -> None:
        jax.block_until_ready(program.evaluate(state, (), dev))

    for call in (train, prune, evaluate):
        call()
    ready_after = time.perf_counter() - began
    return Speed(_seconds(train), _seconds(prune), _seconds(evaluate), ready_after)


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
    for number in sorted({job.round for job in todo}):
        of_round = sum(seconds[job.path] for job in todo if job.round == number)
        console.print(f"seed {number + 1} of everything: {duration(of_round)}")
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
