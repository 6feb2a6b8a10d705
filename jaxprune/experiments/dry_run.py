"""What a run would do, from shapes alone: nothing is written, no weight is made."""

import math
import re
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxprune.experiments import step_time
from jaxprune.progress import duration


def describe_pretraining(ready: Any) -> None:
    """Print parameters, masks, steps, tokens, memory and an estimate of time of a run to standard output."""
    opened, program = ready
    cfg, data, plan = opened.decisions.cfg, opened.data.source, opened.plan
    console = Console(markup=False)
    console.print(parameter_table(program.abstract.params, program.abstract.masks))
    sequences, flops, speed = cfg.steps * cfg.batch_size, step_time.step_flops(opened), step_time.timed(ready)
    compiling = step_time.COMPILED * speed.compile
    estimate = duration(step_time.run_seconds(opened, speed) + compiling)
    table = Table("what", "how much", show_header=False, box=None)
    rows = [
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())),
        ("state per device", f"{step_time.device_bytes(program.abstract) / 2**20:,.1f} MiB"),
        *([("teacher", teacher_words(ready))] if opened.blueprint.teacher else []),
        ("training examples", f"{data.examples:,} of {data.seq_len} tokens"),
        ("predicted", f"{data.predicted_share:.1%} of the tokens, at most {data.predictions} of an example"),
        ("steps", f"{cfg.steps:,} of {cfg.batch_size} sequences"),
        ("tokens", f"{sequences * data.seq_len:,} ({sequences / data.examples:.2f} epochs)"),
        ("prunes", f"{len(plan)} between step {min(plan)} and {max(plan)}, to {plan[max(plan)]}" if plan else "none"),
        ("arithmetic", f"{cfg.steps * flops:.3g} FLOPs"),
        ("time, estimated", f"{estimate} on this machine as busy as it is now"),
        ("", f"a step {flops * speed.per_flop:.3g} s, measured; compiling {duration(compiling)}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def teacher_words(ready: Any) -> str:
    """What the teacher of a run is, takes and costs, in words."""
    opened, program = ready
    teacher, arrays = opened.blueprint.teacher, jax.tree.leaves(program.frozen)
    words = f"{sum(math.prod(x.shape) for x in jax.tree.leaves(teacher.shapes())):,} weights in {teacher.model.dtype}, "
    if teacher.beforehand:
        once = step_time.answer_flops(opened)
        whole = once + opened.blueprint.steps * step_time.step_flops(opened)
        return f"{words}asked once, before the first step: {once / whole:.1%} of the run's arithmetic"
    share = step_time.teacher_flops(opened) / step_time.step_flops(opened)
    return f"{words}{step_time.device_bytes(arrays) / 2**20:,.1f} MiB per device, {share:.1%} of a step's arithmetic"


def parameter_table(params: Any, masks: Any) -> Table:
    """A row per kind of parameter: path, shape, number of weights, prunable or not; totals below.

    Parameters of several layers that are alike share a row: `encoder/layer_00..11/output/kernel`.
    """
    table = Table("parameter", "shape", "weights", "prunable", box=None)
    total = prunable = arrays = 0
    flat = jax.tree_util.tree_leaves_with_path(params)
    kept = jax.tree.leaves(jax.tree.map(lambda _, m: m is not None, params, masks))
    rows: dict[tuple[str, tuple[int, ...], bool], list[str]] = {}
    for (path, leaf), can in zip(flat, kept, strict=True):
        size = math.prod(leaf.shape)
        total, prunable, arrays = total + size, prunable + size * can, arrays + can
        name = "/".join(str(part.key) for part in path)
        rows.setdefault((_LAYER.sub("{}", name, count=1), leaf.shape, can), []).append(name)
    for (pattern, shape, can), names in rows.items():
        layers = [number[0] for name in names if (number := _LAYER.search(name))]
        layer = layers[0] if len(layers) == 1 else f"{layers[0]}..{layers[-1]}" if layers else ""
        weights = f"{len(names) * math.prod(shape):,}"
        table.add_row(pattern.format(layer), " x ".join(map(str, shape)), weights, "yes" if can else "")
    table.add_row(f"all {len(flat)} arrays", "", f"{total:,}", "")
    table.add_row(f"the {arrays} prunable ones", "", f"{prunable:,}", f"{prunable / total:.2%}")
    table.columns[0].overflow = "fold"
    return table


_LAYER = re.compile(r"(?<=layer_)\d+")
