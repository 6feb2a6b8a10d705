"""From an NNX module to a pair of pure functions over a plain dict of arrays."""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.model import HEADS, Batch, Head, Model, Params, Pooling
from jaxprune.models.pooling import pair_cosines, sentence_vectors

_once: Any = lru_cache(maxsize=32)  # untyped: frozen pydantic models have a hash, though their type says no


@_once  # runs of one shape ask for it many times, and what JAX traced of it is found again
def functions(
    module: Callable[[ModelConfig, Head, int, nnx.Rngs], Any],
    cfg: ModelConfig,
    *,
    head: Head,
    num_labels: int,
    pooling: Pooling,
) -> Model:
    """The model of `module(cfg, head, classes, rngs)`; classes: 1 with a regression head, 0 where there are none.

    The module is called with `(batch, key, hidden_states)` and returns outputs; with the similarity head, which has no
    params, the hidden states alone. `apply` makes of them `embeddings`, one vector per sentence (`pooling.py`), and of
    an even number `logits`, the cosine of each with the next: of rows 2 i and 2 i + 1, or in rows that hold several
    examples of the segments 2 k + 1 and 2 k + 2. UserError for an unknown head, or a `num_labels` that does not suit
    it.
    """
    if head not in HEADS:
        raise UserError(f"head = {head!r} is none of {', '.join(HEADS)}")
    least = {"classification": 2, "multi_label": 1}.get(head, 0)
    if num_labels < least or (num_labels and not least):
        remedy = f"give the number of classes, >= {least}" if least else "leave it 0"
        raise UserError(f"num_labels = {num_labels} does not suit head = {head!r}; {remedy}")
    classes = 1 if head == "regression" else num_labels
    graphdef, state = nnx.split(nnx.eval_shape(lambda: module(cfg, head, classes, nnx.Rngs(0))))
    abstract: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(state))
    shapes = {path: leaf.shape for path, leaf in abstract.items()}

    def init(key: Array) -> Params:
        return _initial(shapes, cfg.initializer_range, key)

    def apply(
        params: Params, batch: Batch, *, key: Array | None = None, hidden_states: bool = False, inputs: bool = False
    ) -> dict[str, Any]:
        params, batch = jax.tree.map(jnp.asarray, (params, dict(batch)))  # numpy arrays are welcome
        model = nnx.merge(graphdef, params)
        arguments = batch, key, hidden_states or head == "similarity"
        if inputs:
            out, left = nnx.capture(model, nnx.Intermediate)(*arguments)
            flat: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(left))
            out = out | {"inputs": {"/".join((*path[:-1], "kernel")): x for path, (x,) in flat.items()}}
        else:
            out = model(*arguments)
        if head != "similarity":
            return out
        vectors = sentence_vectors(out["hidden_states"][-1], batch, pooling)
        cosines = {} if vectors.shape[-2] % 2 else {"logits": pair_cosines(vectors)}
        out = {name: out[name] for name, asked in (("hidden_states", hidden_states), ("inputs", inputs)) if asked}
        return out | {"embeddings": vectors} | cosines

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
