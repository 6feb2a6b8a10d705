"""A config's train and prune steps, compiled for a TPU slice on a machine without one."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxprune.config import PretrainConfig
from jaxprune.models.bert import bert
from jaxprune.models.losses import pretraining_loss
from jaxprune.plan.slices import Slice
from jaxprune.pruning import init_masks
from jaxprune.training.compile import Program, compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.sharding import batch_sharding, check_batch, make_mesh, within


class Compiled(NamedTuple):
    """A step as the TPU compiler made it, or why it made none."""

    text: str
    """The optimized HLO; empty if the step does not fit."""
    memory: Any
    """Bytes on one chip, as `memory_analysis()` has them."""
    bytes_accessed: float
    """Bytes that its instructions read and write, memory on the chip's core included; loops count once."""
    refused: str
    """The compiler's words if HBM does not suffice, else empty."""


def devices(where: Slice) -> list[Any]:
    """The slice's devices, to compile for. ValueError without libtpu, and for a shape that the compiler refuses."""
    if importlib.util.find_spec("libtpu") is None and not Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file():
        raise ValueError("libtpu, the TPU compiler, is not installed; run `pip install 'jaxprune[tpu]'` on Linux")
    extra = {"chip_config_name": where.chip.config} if where.chip.config else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **extra).devices
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"--topology {where.topology}: {said}; choose another shape") from None
    return list(found)


def program(cfg: PretrainConfig, on: list[Any]) -> Program:
    """The steps of a config on a mesh of these devices. ValueError if batch or mesh do not fit them."""
    model = bert(cfg.model, head="pretraining")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mesh = make_mesh(cfg.mesh, on)
    check_batch(cfg.batch_size, cfg.train.accumulate, mesh)
    return compile_steps(
        shapes,
        init_masks(shapes, cfg.prune.include, cfg.prune.exclude),
        mesh,
        loss_fn=pretraining_loss(model.apply),
        tx=adamw(cfg.optimizer, cfg.steps),
        prune=cfg.prune,
        num_heads=cfg.model.num_attention_heads,
        accumulate=cfg.train.accumulate,
    )


def abstract_batch(cfg: PretrainConfig, steps: Program, *, seq_len: int, next_sentence: bool) -> dict[str, Any]:
    """The global batch that `data/mlm.py` makes, as shapes with shardings."""
    B, P = cfg.batch_size, cfg.data.max_predictions
    tokens = ("input_ids", "token_type_ids", "attention_mask")
    fields: dict[str, Any] = dict.fromkeys(tokens, ((B, seq_len), jnp.int32))
    fields |= dict.fromkeys(("masked_positions", "masked_ids"), ((B, P), jnp.int32))
    fields |= {"masked_weights": ((B, P), jnp.float32)}
    if next_sentence:
        fields["next_sentence_label"] = ((B,), jnp.int32)
    rows = batch_sharding(steps.mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in fields.items()}


def compile_train(steps: Program, batch: dict[str, Any]) -> Compiled:
    """The train step for a batch of these shapes."""
    return _compile(steps, steps.train, batch, _key())


def compile_prune(steps: Program) -> Compiled:
    """The prune step."""
    return _compile(steps, steps.prune, jax.ShapeDtypeStruct((), jnp.float32), _key())


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _compile(steps: Program, step: Any, *arguments: Any) -> Compiled:
    with within(steps.mesh):
        lowered = step.lower(steps.abstract, *arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled("", None, 0.0, str(error).splitlines()[0])
    cost = compiled.cost_analysis() or {}
    return Compiled(compiled.as_text(), compiled.memory_analysis(), cost.get("bytes accessed", 0.0), "")
