"""How long a run would take here: a few real steps of its program, and arithmetic; nothing is written."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.experiments.teacher import NO_LESSON
from jaxprune.models import architecture_named
from jaxprune.progress import Progress

SECONDS, REPEATS = 3.0, 20
"""A measurement ends after so long, or so many steps."""
MOST_FLOPS = 1e12
"""Of a step that is timed on a CPU; a larger batch is cut, and the time scaled by the arithmetic."""
EVALUATED = 1 / 3
"""Of a training step, for the same batch: the forward pass alone."""
COMPILED = 1.4
"""To compile all steps of a run, of what the training step takes."""
SAVED = 100e6
"""Bytes of a checkpoint that are written, read back and summed up in a second."""

AROUND = 6.0
"""Seconds of any run before its first step and after its last: reading, first arrays, small programs, `hf/`."""


class StepTime(NamedTuple):
    """Of one program on this machine."""

    per_flop: float
    """Seconds for each FLOP of the model."""
    compile: float
    """Seconds to compile the training step."""
    save: float
    """Seconds to write a checkpoint."""


def step_flops(opened: Any) -> float:
    """FLOPs of one training step: the model's, forward and backward, and a teacher's forward pass."""
    return model_flops(opened) + teacher_flops(opened)


def model_flops(opened: Any) -> float:
    """FLOPs that the model of a run needs for one training step, forward and backward."""
    cfg, (rows, size) = opened.decisions.cfg, _sequences(opened)
    return rows * architecture_named(cfg.model.architecture).train_flops(cfg.model, **size)


def teacher_flops(opened: Any) -> float:
    """FLOPs that the teacher of a run needs for one training step; 0 without one, and where it is asked beforehand."""
    teacher, (rows, size) = opened.blueprint.teacher, _sequences(opened)
    return rows * teacher.flops(**size) if teacher and not teacher.beforehand else 0.0


def answer_flops(opened: Any) -> float:
    """FLOPs of a teacher that is asked about every training example before the first step; else 0."""
    teacher = opened.blueprint.teacher
    if not teacher or not teacher.beforehand:
        return 0.0
    splits, shape = opened.data.source
    return len(splits.train.ids) / shape.length * teacher.flops(seq_len=shape.length, predictions=0)


def _sequences(opened: Any) -> tuple[int, dict[str, int]]:
    """Sequences of a step, and their length and predictions."""
    data = opened.data
    if data.dev is None:
        shape = data.source[1]
        return shape.rows, {"seq_len": shape.length, "predictions": 0}
    size = {"seq_len": data.source.seq_len, "predictions": data.source.predictions}
    return opened.decisions.cfg.batch_size, size


def timed(ready: Any) -> StepTime:
    """The training step of a compiled run, measured from scratch on its own data."""
    program, data, key = ready.program, ready.opened.data, jax.random.key(0)
    batch, flops = next(data.batches(NO_LESSON)), step_flops(ready.opened)
    rows, least = len(next(iter(batch.values()))), len(program.mesh.devices.flat) * ready.opened.blueprint.accumulate
    cut = rows
    while jax.default_backend() == "cpu" and flops * cut / rows > MOST_FLOPS and cut % (2 * least) == 0:
        cut //= 2
    put = program.put_whole if data.whole else program.put
    placed = put({name: value[:cut] for name, value in batch.items()})
    state = program.draw(ready.opened.blueprint.build().init, key)
    shapes, shardings = program.frozen, jax.tree.map(lambda leaf: leaf.sharding, program.frozen)
    zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=shardings)()
    with Progress("timing", "a step of the run"):
        began = time.perf_counter()
        state = jax.block_until_ready(program.train(state, zeros, placed, key)[0])
        first, began, count = time.perf_counter() - began, time.perf_counter(), 0
        while count < REPEATS and (count < 1 or time.perf_counter() - began < SECONDS):
            state = jax.block_until_ready(program.train(state, zeros, placed, key)[0])
            count += 1
    seconds = (time.perf_counter() - began) / count
    save = device_bytes(program.abstract) / SAVED
    return StepTime(seconds / (flops * cut / rows), max(0.0, first - seconds), save)


def run_seconds(opened: Any, speed: StepTime) -> float:
    """Seconds of a run: its steps, prunes (each as long as a step), evaluations, checkpoints, and what is around them;
    compiling left out."""
    flops = (opened.blueprint.steps + len(opened.plan)) * step_flops(opened)
    flops += EVALUATED * evaluated_batches(opened) * model_flops(opened) + answer_flops(opened)
    return AROUND + flops * speed.per_flop + saves(opened) * speed.save


def evaluated_batches(opened: Any) -> int:
    """Batches that a run evaluates."""
    cfg, data = opened.decisions.cfg, opened.data
    if data.dev is None:
        splits, shape = data.source
        parts = (splits.train, splits.dev) if cfg.train_loss else (splits.dev,)
        return sum(-(-len(part.ids) // (shape.rows * shape.length)) for part in parts)
    times = 1 + (cfg.steps // cfg.train.eval_every if cfg.train.eval_every else 0)
    held_out = -(-data.source.manifest["splits"]["dev"]["examples"] // cfg.batch_size)
    return times * min(cfg.train.eval_batches, held_out)


def saves(opened: Any) -> int:
    """Checkpoints that a run writes, and the directory at its end."""
    return 2 + opened.blueprint.steps // opened.decisions.train.save_every


def device_bytes(tree: Any) -> int:
    """Bytes of arrays on each device, such as a program's state or teacher."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
