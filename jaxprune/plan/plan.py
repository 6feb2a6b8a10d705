"""The plan of a run on a TPU slice: does it fit, what does it move, what bounds it, what does it cost."""

import json
import logging
from pathlib import Path
from typing import Any

from jaxprune.config import PretrainConfig
from jaxprune.data.shards import MANIFEST, read_manifest
from jaxprune.models.flops import train_flops
from jaxprune.models.hf import read_hf_config
from jaxprune.plan import compile as compiler
from jaxprune.plan.collectives import Collective, collectives, sorts
from jaxprune.plan.hlo import parse
from jaxprune.plan.largest import largest
from jaxprune.plan.memory import elements, memory_parts
from jaxprune.plan.products import products
from jaxprune.plan.roofline import PRUNE_PASSES, Roofline, recipe, roofline
from jaxprune.plan.show import show
from jaxprune.plan.slices import Slice, find
from jaxprune.plan.traffic import hbm_bytes
from jaxprune.training.prunes import plan_of

log = logging.getLogger("jaxprune")
_DEFAULT_SEQ_LEN = 128
_WASTE = 1.05


def plan(
    cfg: PretrainConfig,
    *,
    topology: str,
    as_json: bool = False,
    price: float | None = None,
    largest_batch: bool = False,
    seq_len: int | None = None,
) -> None:
    """Print the plan of `cfg` on a slice, as tables or as JSON. Needs libtpu; no TPU, data, weights or network."""
    report = make_plan(cfg, topology=topology, price=price, largest_batch=largest_batch, seq_len=seq_len)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def make_plan(
    cfg: PretrainConfig,
    *,
    topology: str,
    price: float | None = None,
    largest_batch: bool = False,
    seq_len: int | None = None,
) -> dict[str, Any]:
    """The plan as plain values: bytes and FLOPs are those of one chip, times are seconds. price: USD, chip and hour.

    ValueError for an unknown slice, a missing libtpu, and a config that does not suit the slice.
    """
    where = find(topology)
    if price is not None and price < 0:
        raise ValueError(f"--price {price} is below 0; give USD per chip and hour")
    if seq_len is not None and seq_len < 8:
        raise ValueError(f"--seq-len {seq_len} is below 8; give tokens per example")
    cfg, model_from = _with_shape(cfg)
    length, next_sentence, length_from = _sequences(cfg, seq_len)
    if length > cfg.model.max_position_embeddings:
        most = cfg.model.max_position_embeddings
        raise ValueError(f"sequence length {length} ({length_from}) is above model.max_position_embeddings = {most}")
    on = compiler.devices(where)
    steps = compiler.program(cfg, on)
    log.info("compiling the train step for %s; minutes for BERT-Base", where.topology)
    batch = compiler.abstract_batch(cfg, steps, seq_len=length, next_sentence=next_sentence)
    train = compiler.compile_train(steps, batch)
    useful = cfg.batch_size / where.chips * train_flops(cfg.model, seq_len=length, predictions=cfg.data.max_predictions)
    report: dict[str, Any] = {
        "slice": _slice(where),
        "model": {"from": model_from, "dtype": cfg.model.dtype, "params": elements(steps.abstract.params)},
        "mesh": dict(steps.mesh.shape),
        "batch": {
            "sequences": cfg.batch_size,
            "per_chip": cfg.batch_size / where.chips,
            "seq_len": length,
            "seq_len_from": length_from,
        },
        "fits": not train.refused,
        "refused": train.refused,
    }
    if not train.refused:
        report |= _measure(cfg, where, steps, batch, train, length, useful, price)
    if largest_batch:
        report["largest_batch_per_chip"] = _largest(cfg, where, on, length, next_sentence)
    return report


def _measure(cfg, where: Slice, steps, batch, train, length: int, useful: float, price: float | None) -> dict[str, Any]:
    module = parse(train.text)
    crossing = collectives(module, where.chips)
    made = products(module)
    flops = sum(p.flops for p in made)
    passes = sum(p.flops * p.passes for p in made)
    moved, _ = hbm_bytes(module)
    train_bound = roofline(
        where.chip, where.ici_rate, flops=passes, hbm_bytes=moved, wire_bytes=sum(c.count * c.wire for c in crossing)
    )
    prunes = len(plan_of(cfg.prune, cfg.steps))
    prune_bound, prune_report = None, None
    if prunes:
        log.info("compiling the prune step")
        prune_bound, prune_report = _prune(where, steps)
    return {
        "memory": {**memory_parts(steps.abstract, batch, train.memory), "hbm": where.chip.hbm},
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
            steps=cfg.steps,
            prunes=prunes,
            tokens_per_step=cfg.batch_size * length,
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


def _largest(cfg: PretrainConfig, where: Slice, on: list[Any], length: int, next_sentence: bool) -> int:
    """The most sequences a chip whose train step the compiler accepts, in steps of train.accumulate."""
    accumulate = cfg.train.accumulate

    def fits(micro: int) -> bool:
        tried = cfg.model_copy(update={"batch_size": micro * accumulate * where.chips})
        steps = compiler.program(tried, on)
        batch = compiler.abstract_batch(tried, steps, seq_len=length, next_sentence=next_sentence)
        good = not compiler.compile_train(steps, batch).refused
        log.info("%d sequences a chip: %s", micro * accumulate, "fits" if good else "does not fit")
        return good

    return accumulate * largest(fits, max(cfg.batch_size // where.chips // accumulate, 1))


def _with_shape(cfg: PretrainConfig) -> tuple[PretrainConfig, str]:
    """The config with the shape of the weights that it starts from if they lie here, and where the shape is from."""
    for place in (Path(cfg.init_from).expanduser(), Path(cfg.init_from).expanduser() / "hf"):
        if cfg.init_from and (place / "config.json").is_file():
            found = read_hf_config(place)
            keep = {name: getattr(cfg.model, name) for name in ("dtype", "hidden_dropout_prob")}
            keep["attention_probs_dropout_prob"] = cfg.model.attention_probs_dropout_prob
            return cfg.model_copy(update={"model": found.model_copy(update=keep)}), str(place)
    note = f"; init_from = {cfg.init_from} is not looked up" if cfg.init_from else ""
    return cfg, f"the config's model section{note}"


def _sequences(cfg: PretrainConfig, seq_len: int | None) -> tuple[int, bool, str]:
    """Tokens per sequence, whether there are pairs, and what says so."""
    folder = Path(cfg.data.path).expanduser()
    if cfg.data.path and (folder / MANIFEST).is_file() and seq_len is None:
        manifest = read_manifest(folder)
        return manifest["seq_len"], manifest["next_sentence"], f"the data in {cfg.data.path}"
    if seq_len is not None:
        return seq_len, True, "--seq-len"
    return _DEFAULT_SEQ_LEN, True, "the default; no prepared data at data.path, no --seq-len"


def _slice(where: Slice) -> dict[str, Any]:
    chip = where.chip
    rates = {"peak_flops": chip.flops, "hbm": chip.hbm, "hbm_rate": chip.hbm_rate, "ici_rate": where.ici_rate}
    return {"topology": where.topology, "chip": chip.name, "chips": where.chips} | rates
