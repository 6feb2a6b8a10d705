"""The plan of a run on a TPU slice: does it fit, what does it move, what bounds it, what does it cost."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune.errors import UserError
from jaxprune.plan import compiler
from jaxprune.plan.bisection import largest
from jaxprune.plan.collectives import Collective, collectives, sorts
from jaxprune.plan.hbm_traffic import hbm_bytes
from jaxprune.plan.hlo import parse
from jaxprune.plan.matmuls import products
from jaxprune.plan.memory import elements, memory_parts
from jaxprune.plan.roofline import PRUNE_PASSES, Roofline, recipe, roofline
from jaxprune.plan.slices import Slice
from jaxprune.training.compile import Program

log = logging.getLogger("jaxprune")
_WASTE = 1.05


class Planned(NamedTuple):
    """A run whose steps are to be compiled for a slice."""

    program: Callable[[int, list[Any]], tuple[Program, dict[str, Any]]]
    """(sequences of a batch, devices) -> steps and a batch of shapes with shardings."""
    sequences: int
    seq_len: int
    accumulate: int
    steps: int
    prunes: int
    flops: float
    """The model's own and its teacher's, of one sequence."""
    dtype: str
    model_from: str
    seq_len_from: str
    teacher: dict[str, Any] | None = None
    """Where its shape is from, its type, and the FLOPs of its forward pass, of one sequence."""


def make_report(
    run: Planned, where: Slice, *, price: float | None = None, largest_batch: bool = False
) -> dict[str, Any]:
    """The plan as plain values: bytes and FLOPs are those of one chip, times are seconds. price: USD, chip and hour.

    UserError for a missing libtpu, and a run that does not suit the slice.
    """
    if price is not None and price < 0:
        raise UserError(f"--price {price} is below 0; give USD per chip and hour")
    devices = compiler.devices(where)
    steps, batch = run.program(run.sequences, devices)
    log.info("compiling the train step for %s; minutes for BERT-Base", where.topology)
    train = compiler.compile_train(steps, batch)
    report: dict[str, Any] = {
        "slice": _slice(where),
        "model": {"from": run.model_from, "dtype": run.dtype, "params": elements(steps.abstract.params)},
        "teacher": run.teacher and run.teacher | {"params": elements(steps.frozen)},
        "mesh": dict(steps.mesh.shape),
        "batch": {
            "sequences": run.sequences,
            "per_chip": run.sequences / where.chips,
            "seq_len": run.seq_len,
            "seq_len_from": run.seq_len_from,
        },
        "fits": not train.refused,
        "refused": train.refused,
    }
    if not train.refused:
        report |= _measure(run, where, steps, batch, train, price)
    if largest_batch:
        report["largest_batch_per_chip"] = _largest(run, where, devices)
    return report


def _measure(
    run: Planned, where: Slice, steps: Program, batch: Any, train: compiler.Compiled, price: float | None
) -> dict[str, Any]:
    useful = run.sequences / where.chips * run.flops
    module = parse(train.text)
    crossing = collectives(module, where.chips)
    made = products(module)
    flops = sum(p.flops for p in made)
    passes = sum(p.flops * p.passes for p in made)
    moved, _ = hbm_bytes(module)
    train_bound = roofline(
        where.chip, where.ici_rate, flops=passes, hbm_bytes=moved, wire_bytes=sum(c.count * c.wire for c in crossing)
    )
    prune_bound, prune_report = None, None
    if run.prunes:
        log.info("compiling the prune step")
        prune_bound, prune_report = _prune(where, steps)
    return {
        "memory": {**memory_parts(steps.abstract, steps.frozen, batch, train.memory), "hbm": where.chip.hbm},
        "flops": {
            "model": useful,
            "hlo": flops,
            "ratio": flops / useful,
            "waste": flops > _WASTE * useful,
            "mxu": passes,
            "float32_operands": sum(p.flops for p in made if p.float32) / flops,
        },
        "train": _step(crossing, moved, train_bound) | {"xla_bytes_accessed": train.bytes_accessed},
        "prune": prune_report,
        "recipe": recipe(
            train_bound,
            prune_bound,
            steps=run.steps,
            prunes=run.prunes,
            tokens_per_step=run.sequences * run.seq_len,
            useful_flops=useful,
            chip=where.chip,
            chips=where.chips,
            price=price,
        ),
    }


def _prune(where: Slice, steps) -> tuple[Roofline | None, dict[str, Any]]:
    compiled = compiler.compile_prune(steps)
    if compiled.refused:
        return None, {"refused": compiled.refused}
    module = parse(compiled.text)
    crossing = collectives(module, where.chips)
    total, per_pass = hbm_bytes(module)
    moved = total + (PRUNE_PASSES - 1) * per_pass
    wire = sum(c.count * c.wire * (PRUNE_PASSES if c.per_pass else 1) for c in crossing)
    bound = roofline(where.chip, where.ici_rate, flops=0.0, hbm_bytes=moved, wire_bytes=wire)
    found = {"temporaries": compiled.memory.temp_size_in_bytes, "passes": PRUNE_PASSES}
    found["sorts"] = [{"elements": n, "count": count} for n, count in sorts(module)]
    return bound, _step(crossing, moved, bound) | found


def _step(crossing: list[Collective], moved: float, bound: Roofline) -> dict[str, Any]:
    """Collectives by kind, and the bounds."""
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    for c in crossing:
        empty = {"kind": c.kind, "per_pass": c.per_pass, "count": 0, "bytes": 0, "wire_bytes": 0.0}
        empty |= {"largest_array": 0, "blocking": 0}
        row = rows.setdefault((c.kind, c.per_pass), empty)
        row["count"] += c.count
        row["bytes"] += c.count * c.bytes
        row["wire_bytes"] += c.count * c.wire
        row["blocking"] += c.count * c.blocking
        row["largest_array"] = max(row["largest_array"], c.largest)
    return {
        "collectives": [*rows.values()],
        "hbm_bytes": moved,
        "seconds": bound.seconds,
        "seconds_without_overlap": sum(bound),
        "bound_by": bound.bound_by,
        "bounds": bound._asdict(),
    }


def _largest(run: Planned, where: Slice, devices: list[Any]) -> int:
    """The most sequences a chip whose train step the compiler accepts, in steps of train.accumulate."""

    def fits(micro: int) -> bool:
        steps, batch = run.program(micro * run.accumulate * where.chips, devices)
        good = not compiler.compile_train(steps, batch).refused
        log.info("%d sequences a chip: %s", micro * run.accumulate, "fits" if good else "does not fit")
        return good

    return run.accumulate * largest(fits, max(run.sequences // where.chips // run.accumulate, 1))


def _slice(where: Slice) -> dict[str, Any]:
    chip = where.chip
    rates = {"peak_flops": chip.flops, "hbm": chip.hbm, "hbm_rate": chip.hbm_rate, "ici_rate": where.ici_rate}
    return {"topology": where.topology, "chip": chip.name, "chips": where.chips} | rates
