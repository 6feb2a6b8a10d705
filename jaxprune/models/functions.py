"""From an NNX module to a pair of pure functions over a plain dict of arrays."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.architecture import HEADS, Batch, Head, Model, Params


def functions(
    module: Callable[[ModelConfig, int, nnx.Rngs], Any], cfg: ModelConfig, *, head: Head, num_labels: int
) -> Model:
    """The model of `module(cfg, classes, rngs)`; classes: 0 with the pre-training head, 1 with a regression head.

    The module is called with `(batch, key, hidden_states)`. UserError for an unknown head, or a `num_labels` that does
    not suit it.
    """
    if head not in HEADS:
        raise UserError(f"head = {head!r} is none of {', '.join(HEADS)}")
    if (head == "classification") != (num_labels > 1) or num_labels < 0:
        remedy = "give the number of classes, >= 2" if head == "classification" else "leave it 0"
        raise UserError(f"num_labels = {num_labels} does not suit head = {head!r}; {remedy}")
    classes = {"pretraining": 0, "classification": num_labels, "regression": 1}[head]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(cfg, classes, nnx.Rngs(0))))
    abstract: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(state))
    shapes = {path: leaf.shape for path, leaf in abstract.items()}

    def init(key: Array) -> Params:
        return _initial(shapes, cfg.initializer_range, key)

    def apply(params: Params, batch: Batch, *, key: Array | None = None, hidden_states: bool = False) -> dict[str, Any]:
        params, batch = jax.tree.map(jnp.asarray, (params, dict(batch)))  # numpy arrays are welcome
        return nnx.merge(graphdef, params)(batch, key, hidden_states)

    return Model(init, apply)


def _initial(shapes: Mapping[tuple[str, ...], tuple[int, ...]], scale: float, key: Array) -> Params:
    """Draw params as the original BERT does: matrices from a normal of deviation `scale` cut at two of them.

    A matrix's values depend on its path and `key` alone, not on the head or the rest of the model. Matrices of one
    shape are drawn together, so that compilation grows with the number of shapes and not of layers.
    """
    leaves: dict[tuple[str, ...], Array] = {}
    groups: dict[tuple[int, ...], list[tuple[str, ...]]] = {}
    for path, shape in shapes.items():
        if path[-1] in ("kernel", "embedding"):
            groups.setdefault(shape, []).append(path)
        else:
            leaves[path] = jnp.full(shape, path[-1] == "scale", jnp.float32)
    for shape, paths in groups.items():
        seeds = jnp.array([zlib.crc32("/".join(path).encode()) for path in paths], jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)
        draw = jax.vmap(partial(jax.random.truncated_normal, lower=-2.0, upper=2.0, shape=shape, dtype=jnp.float32))
        leaves |= dict(zip(paths, scale * draw(keys), strict=True))
    return unflatten_dict({path: leaves[path] for path in shapes})
