"""BERT as a pair of pure functions over a plain dict of arrays. Shape suffixes: see `layers.py`."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.models.dropout import dropout, dropout_seeds
from jaxprune.models.layers import DROPOUTS_PER_LAYER, Embeddings, Layer, MaskedLM, dense, take_positions

Head = Literal["pretraining", "classification", "regression"]
HEADS: tuple[Head, ...] = ("pretraining", "classification", "regression")
Params = dict[str, Any]
Batch = Mapping[str, Array]


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]
    """`init(key) -> params`: a nested dict of float32 arrays; works under `jit` and `eval_shape`."""
    apply: Callable[..., dict[str, Any]]
    """`apply(params, batch, *, key=None, hidden_states=False) -> outputs`; without a key there is no dropout."""


def bert(cfg: ModelConfig, *, head: Head, num_labels: int = 0) -> Model:
    """Return BERT (Devlin et al. 2019) with one of three heads.

    `apply` reads int32 `input_ids`, `token_type_ids` and `attention_mask` (1 = token, 0 = padding), all (B, L), and
    returns float32 outputs:

    - pretraining: `mlm_logits` (B, P, V) at int32 `masked_positions` (B, P) if the batch has them, else (B, L, V);
      `nsp_logits` (B, 2), where class 0 says that segment B follows segment A and class 1 that it is random. Its
      params exist also when training has no next-sentence task; the loss leaves them alone then.
    - classification: `logits` (B, num_labels); regression: `logits` (B,).

    With `hidden_states=True` also `hidden_states`: the embeddings' output and each layer's, a tuple of
    `num_hidden_layers + 1` arrays (B, L, D) in `cfg.dtype`.

    Raises ValueError for an unknown head, or a `num_labels` that does not suit it.
    """
    if head not in HEADS:
        raise ValueError(f"head = {head!r} is none of {', '.join(HEADS)}")
    if (head == "classification") != (num_labels > 1) or num_labels < 0:
        remedy = "give the number of classes, >= 2" if head == "classification" else "leave it 0"
        raise ValueError(f"num_labels = {num_labels} does not suit head = {head!r}; {remedy}")
    classes = {"pretraining": 0, "classification": num_labels, "regression": 1}[head]
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _Bert(cfg, classes, nnx.Rngs(0))))
    abstract: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(state))
    shapes = {path: leaf.shape for path, leaf in abstract.items()}

    def init(key: Array) -> Params:
        return _initial(shapes, cfg.initializer_range, key)

    def apply(params: Params, batch: Batch, *, key: Array | None = None, hidden_states: bool = False) -> dict[str, Any]:
        params, batch = jax.tree.map(jnp.asarray, (params, dict(batch)))  # numpy arrays are welcome
        return nnx.merge(graphdef, params)(batch, key, hidden_states)

    return Model(init, apply)


class _Bert(nnx.Module):
    """Embeddings, encoder, pooler and heads; `classes` = 0 stands for the pre-training heads."""

    def __init__(self, cfg: ModelConfig, classes: int, rngs: nnx.Rngs):
        self.cfg, self.classes = cfg, classes
        self.embeddings = Embeddings(cfg)
        self.encoder = nnx.Dict({layer_name(i): Layer(cfg, rngs) for i in range(cfg.num_hidden_layers)})
        self.pooler = dense(cfg, cfg.hidden_size, cfg.hidden_size, rngs)
        if classes:
            self.classifier = dense(cfg, cfg.hidden_size, classes, rngs)
        else:
            self.mlm = MaskedLM(cfg, rngs)
            self.nsp = dense(cfg, cfg.hidden_size, 2, rngs)

    def __call__(self, batch: Batch, key: Array | None, hidden_states: bool) -> dict[str, Any]:
        cfg, n = self.cfg, self.cfg.num_hidden_layers
        sites = 2 + DROPOUTS_PER_LAYER * n
        seeds: list[Array | None] = [None] * sites if key is None else list(dropout_seeds(key, sites))
        x_BLD = self.embeddings(batch["input_ids"], batch["token_type_ids"], seeds[0])
        states = [x_BLD]
        for i in range(n):
            first = 2 + DROPOUTS_PER_LAYER * i
            x_BLD = self.encoder[layer_name(i)](x_BLD, batch["attention_mask"], seeds[first : first + 3])
            states.append(x_BLD)
        pooled_BD = jnp.tanh(self.pooler(x_BLD[:, 0]))
        out: dict[str, Any] = {"hidden_states": tuple(states)} if hidden_states else {}
        if self.classes:
            pooled_BD = dropout(pooled_BD, cfg.hidden_dropout_prob, seeds[1])
            logits_BC = self.classifier(pooled_BD).astype(jnp.float32)
            return out | {"logits": logits_BC if self.classes > 1 else logits_BC[:, 0]}
        if "masked_positions" in batch:
            x_BLD = take_positions(x_BLD, batch["masked_positions"])
        out["mlm_logits"] = self.mlm(x_BLD, self.embeddings.word_embeddings.embedding[...])
        out["nsp_logits"] = self.nsp(pooled_BD).astype(jnp.float32)
        return out


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


def layer_name(index: int) -> str:
    """Return the key of encoder layer `index` in params: `layer_00`, `layer_01`, ..."""
    return f"layer_{index:02d}"
