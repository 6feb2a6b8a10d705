"""What a pre-training config would do on a TPU slice, without one."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.config.commands import PretrainConfig
from jaxprune.config.sections import ModelConfig
from jaxprune.data.data_manifest import MANIFEST, read_manifest
from jaxprune.errors import UserError
from jaxprune.experiments.pretrain import blueprint_of
from jaxprune.experiments.program import compile_program
from jaxprune.experiments.pruning_plan import included, plan_of
from jaxprune.experiments.weights import source_model
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_config
from jaxprune.plan.report import Planned, make_report
from jaxprune.plan.slices import find
from jaxprune.plan.tables import show
from jaxprune.training.compile import Program
from jaxprune.training.sharding import batch_sharding, check_batch

_DEFAULT_SEQ_LEN = 128


def plan_slice(
    cfg: PretrainConfig,
    *,
    topology: str,
    as_json: bool = False,
    price: float | None = None,
    largest_batch: bool = False,
    seq_len: int | None = None,
) -> None:
    """Print the plan of `cfg` on a slice, as tables or as JSON. Needs libtpu; no TPU, data, weights or network.

    UserError for an unknown slice, and a config that does not suit it.
    """
    where = find(topology)
    report = make_report(planned(cfg, seq_len), where, price=price, largest_batch=largest_batch)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


def planned(cfg: PretrainConfig, seq_len: int | None) -> Planned:
    """What a plan needs of a config."""
    if seq_len is not None and seq_len < 8:
        raise UserError(f"--seq-len {seq_len} is below 8; give tokens per example")
    cfg, model_from = _with_shape(cfg)
    cfg = cfg.model_copy(update={"prune": included(cfg.prune, cfg.model)})
    length, pairs, length_from = _sequences(cfg, seq_len)
    record = architecture_named(cfg.model.architecture)
    if length > (most := record.max_tokens(cfg.model)):
        raise UserError(
            f"sequence length {length} ({length_from}) is above the {most} tokens of "
            f"model.max_position_embeddings = {cfg.model.max_position_embeddings}"
        )
    predictions = cfg.data.predictions(length)
    flops = record.train_flops(cfg.model, seq_len=length, predictions=predictions)
    blueprint, teacher = blueprint_of(cfg, lambda: _shape_of(cfg)[0]), None
    if blueprint.teacher:
        part = blueprint.teacher.flops(seq_len=length, predictions=predictions)
        teacher = {"from": _shape_of(cfg)[1], "dtype": blueprint.teacher.model.dtype, "flops": part}
        flops += part

    def program(sequences: int, devices: list[Any]) -> tuple[Program, dict[str, Any]]:
        steps = compile_program(blueprint, devices)
        check_batch(sequences, cfg.train.accumulate, steps.mesh)
        return steps, abstract_batch(steps, sequences, length, predictions, next_sentence=pairs)

    return Planned(
        program=program,
        sequences=cfg.batch_size,
        seq_len=length,
        accumulate=cfg.train.accumulate,
        steps=cfg.steps,
        prunes=len(plan_of(cfg.prune, cfg.steps, "steps")),
        flops=flops,
        dtype=cfg.model.dtype,
        model_from=model_from,
        seq_len_from=length_from,
        teacher=teacher,
    )


def abstract_batch(
    steps: Program, sequences: int, seq_len: int, predictions: int, *, next_sentence: bool
) -> dict[str, Any]:
    """The global batch that `data/mlm.py` makes, as shapes with shardings."""
    tokens = ("input_ids", "token_type_ids", "attention_mask")
    fields: dict[str, Any] = dict.fromkeys(tokens, ((sequences, seq_len), jnp.int32))
    fields |= dict.fromkeys(("masked_positions", "masked_ids"), ((sequences, predictions), jnp.int32))
    fields |= {"masked_weights": ((sequences, predictions), jnp.float32)}
    if next_sentence:
        fields["next_sentence_label"] = ((sequences,), jnp.int32)
    rows = batch_sharding(steps.mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in fields.items()}


def _with_shape(cfg: PretrainConfig) -> tuple[PretrainConfig, str]:
    """The config with the shape of the weights that it starts from if they lie here, and where the shape is from."""
    for folder in (Path(cfg.init_from).expanduser(), Path(cfg.init_from).expanduser() / "hf"):
        if cfg.init_from and (folder / "config.json").is_file():
            names = ("dtype", "hidden_dropout_prob", "attention_probs_dropout_prob")
            kept = {name: getattr(cfg.model, name) for name in names}
            return cfg.model_copy(update={"model": read_config(folder).model_copy(update=kept)}), str(folder)
    note = f"; init_from = {cfg.init_from} is not looked up" if cfg.init_from else ""
    return cfg, f"the config's model section{note}"


def _shape_of(cfg: PretrainConfig) -> tuple[ModelConfig, str]:
    """The shape of the teacher, and where it is from: its own folder if that lies here, else the model's."""
    if Path(cfg.teacher.source).expanduser().exists():
        return source_model(cfg.teacher.source, cfg.teacher.revision), cfg.teacher.source
    return cfg.model, f"the model's shape; teacher.source = {cfg.teacher.source} is not looked up"


def _sequences(cfg: PretrainConfig, seq_len: int | None) -> tuple[int, bool, str]:
    """Tokens per sequence, whether there are pairs, and what says so."""
    pairs = architecture_named(cfg.model.architecture).next_sentence
    folder = Path(cfg.data.path).expanduser()
    if cfg.data.path and (folder / MANIFEST).is_file() and seq_len is None:
        manifest = read_manifest(folder)
        return manifest["seq_len"], manifest["next_sentence"] and pairs, f"the data in {cfg.data.path}"
    if seq_len is not None:
        return seq_len, pairs, "--seq-len"
    return _DEFAULT_SEQ_LEN, pairs, "the default; no prepared data at data.path, no --seq-len"
