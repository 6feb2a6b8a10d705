"""What a run would do, from shapes alone: nothing is written, no weight is made."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxprune.models import architecture_named


def matmul_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """float32 FLOP/s of a square matrix product on the default device, measured for `seconds`."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    begin, runs = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        product(x, x).block_until_ready()
        runs += 1
    return runs * 2 * size**3 / (time.perf_counter() - begin)


def describe_pretraining(ready: Any) -> None:
    """Print parameters, masks, steps, tokens, memory and an estimate of time of a compiled run to standard output."""
    opened, program = ready
    cfg, data, plan = opened.decisions.cfg, opened.data.source, opened.plan
    console = Console()
    console.print(parameter_table(program.abstract.params, program.abstract.masks))
    leaves = jax.tree.leaves(program.abstract)
    state_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    sequences = cfg.steps * cfg.batch_size
    count = architecture_named(cfg.model.architecture).train_flops
    flops = sequences * count(cfg.model, seq_len=data.seq_len, predictions=data.predictions)
    rate = matmul_rate() * len(program.mesh.devices.flat)
    table = Table("what", "how much", show_header=False, box=None)
    rows = [
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())),
        ("state per device", f"{state_bytes / 2**20:,.1f} MiB"),
        ("training examples", f"{data.examples:,} of {data.seq_len} tokens"),
        ("predicted", f"{data.predicted_share:.1%} of the tokens, at most {data.predictions} of an example"),
        ("steps", f"{cfg.steps:,} of {cfg.batch_size} sequences"),
        ("tokens", f"{sequences * data.seq_len:,} ({sequences / data.examples:.2f} epochs)"),
        ("prunes", f"{len(plan)} between step {min(plan)} and {max(plan)}, to {plan[max(plan)]}" if plan else "none"),
        ("arithmetic", f"{flops:.3g} FLOPs"),
        ("time, estimated", f"{duration(flops / rate)} at this device's measured matrix-product rate, a lower bound"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def parameter_table(params: Any, masks: Any) -> Table:
    """A row per parameter: path, shape, number of weights, prunable or not; totals below."""
    table = Table("parameter", "shape", "weights", "prunable", show_footer=False)
    total = prunable = 0
    flat = jax.tree_util.tree_leaves_with_path(params)
    kept = jax.tree.leaves(jax.tree.map(lambda _, m: m is not None, params, masks))
    for (path, leaf), can in zip(flat, kept, strict=True):
        size = math.prod(leaf.shape)
        total, prunable = total + size, prunable + size * can
        name = "/".join(str(part.key) for part in path)
        table.add_row(name, " x ".join(map(str, leaf.shape)), f"{size:,}", "yes" if can else "")
    table.add_section()
    table.add_row(
        f"{len(flat)} arrays, {sum(kept)} prunable", "", f"{total:,}", f"{prunable:,} ({prunable / total:.2%})"
    )
    return table


def duration(seconds: float) -> str:
    """`seconds` in the unit that people would say."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
