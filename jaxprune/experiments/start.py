"""Where a run's weights come from: a jaxprune workdir, a Hugging Face directory, a hub name, or a seed."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from jaxprune.config import FinetuneConfig, MeshConfig, ModelConfig, PretrainConfig, PruneConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.models.bert import Head, bert
from jaxprune.models.hf import load_hf, read_hf_config
from jaxprune.models.losses import pretraining_loss
from jaxprune.pruning import init_masks, sparsity
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program, compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.population import compile_population
from jaxprune.training.sharding import make_mesh

log = logging.getLogger("jaxprune")

SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
FUNCTION_FIELDS = ("hidden_act", "sublayer_relu")
"""What the same weights may be asked to compute instead; unset (at its default), the checkpoint decides."""


WEIGHTS = "weights.npz"
"""Where a fine-tuned run keeps its weights: {path: float32 array}."""


class Start(NamedTuple):
    """Weights to start from. masks is None for fresh weights; tokenizer is a directory or hub name."""

    model: ModelConfig
    params: Any
    masks: Any
    tokenizer: str


def is_workdir(place: str) -> bool:
    """Whether `place` is the workdir of a pre-training run."""
    return (Path(place).expanduser() / "config.yaml").is_file()


def workdir_config(place: str) -> PretrainConfig:
    """The config that a pre-training workdir was made with."""
    path = Path(place).expanduser() / "config.yaml"
    return validate(PretrainConfig, read_yaml(path), str(path))


def finetuned_config(place: str) -> FinetuneConfig | None:
    """The config of a fine-tuned run that kept its weights; None where `place` is none."""
    path = Path(place).expanduser() / "config.yaml"
    if not (path.parent / WEIGHTS).is_file():
        return None
    return validate(FinetuneConfig, read_yaml(path), str(path))


def finetuned_weights(place: str) -> Any:
    """The float32 params of a fine-tuned run, classifier included, on the host."""
    with np.load(Path(place).expanduser() / WEIGHTS, allow_pickle=False) as flat:
        return unflatten_dict(dict(flat), sep="/")


def start_config(place: str, revision: str, wanted: ModelConfig) -> ModelConfig:
    """`wanted` with the shape of the weights at `place`, read without reading the weights.

    ValueError when a shape field of `wanted` was set (differs from its default) to another value than the weights have.
    """
    if not place:
        return wanted
    found = workdir_config(place).model if is_workdir(place) else read_hf_config(place, revision=revision or None)
    return shaped(wanted, found, place)


def shaped(wanted: ModelConfig, found: ModelConfig, place: str) -> ModelConfig:
    """`wanted` with the shape of `found`, the model at `place`; ValueError as in `start_config`."""
    for name in SHAPE_FIELDS:
        value, default = getattr(wanted, name), ModelConfig.model_fields[name].default
        if value not in (default, getattr(found, name)):
            raise ValueError(
                f"model.{name} = {value}, but init_from = {place} has {getattr(found, name)}; remove model.{name}"
            )
    shape = {name: getattr(found, name) for name in SHAPE_FIELDS}
    for name in FUNCTION_FIELDS:  # not a shape: the weights fit, so a switch may be turned on where they lack it
        value, default = getattr(wanted, name), ModelConfig.model_fields[name].default
        shape[name] = getattr(found, name) if value == default else value
    return wanted.model_copy(update=shape)


def start(place: str, revision: str, model: ModelConfig, *, head: Head, num_labels: int, key: jax.Array) -> Start:
    """Params for `model` with `head`; what the source lacks (a new classifier) is drawn from `key`."""
    fresh = bert(model, head=head, num_labels=num_labels)
    if not place:
        return Start(model, fresh.init(key), None, "")
    if is_workdir(place):
        cfg, state = restore_state(place)
        params = fresh.init(key)
        params = {name: state.params.get(name, params[name]) for name in params}
        masks = {name: state.masks.get(name, jax.tree.map(lambda _: None, params[name])) for name in params}
        return Start(model, params, masks, str(Path(cfg.data.path) / "tokenizer"))
    _, params = load_hf(place, head=head, num_labels=num_labels, key=key, revision=revision or None)
    return Start(model, params, zeros_as_masks(params, place), place)


def zeros_as_masks(
    params: Any, place: str, include: Sequence[str] = PruneConfig().include, exclude: Sequence[str] = ()
) -> Any:
    """Masks of weights that bring none: exact zeros among the prunable weights are taken as pruned."""
    masks = init_masks(params, include, exclude)
    masks = jax.tree.map(lambda w, m: None if m is None else jnp.asarray(w != 0), params, masks)
    if sparsity(masks) > 0:
        log.info("%s: %.2f %% of its prunable weights are exactly 0 and stay pruned", place, 100 * sparsity(masks))
    return masks


def program_of(cfg: PretrainConfig, mesh: Mesh, *, members: int = 0) -> Program:
    """The steps of a pre-training config on a mesh, from shapes alone; compiled on first use.

    `members` > 0: for a population of so many runs.
    """
    model = bert(cfg.model, head="pretraining")
    params = jax.eval_shape(model.init, jax.random.key(0))
    masks = init_masks(params, cfg.prune.include, cfg.prune.exclude)
    if members:
        params, masks = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), (params, masks))
    return (compile_population if members else compile_steps)(
        params,
        masks,
        mesh,
        loss_fn=pretraining_loss(model.apply),
        tx=adamw(cfg.optimizer, cfg.steps),
        prune=cfg.prune,
        num_heads=cfg.model.num_attention_heads,
        accumulate=cfg.train.accumulate,
    )


def restore_state(place: str) -> tuple[PretrainConfig, Any]:
    """The config and the newest good TrainState of a pre-training workdir, on this process's devices."""
    cfg = workdir_config(place)
    program = program_of(cfg, make_mesh(MeshConfig()))
    with Checkpoints(Path(place).expanduser().resolve(), read_only=True) as checkpoints:
        found = checkpoints.restore(program.abstract)
    if found is None:
        raise ValueError(f"init_from = {place}: has no checkpoint yet; let its run save one first")
    return cfg, found[1]
