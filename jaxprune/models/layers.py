"""The layers of BERT (Devlin et al. 2019) and its kin as NNX modules. They declare params; `functions.py` draws values.

Shape suffixes: B batch, L sequence length, D hidden size, H heads, K width of a head (D / H as a rule), F intermediate
size, P predictions per example, S examples per row, T segment types, V vocabulary, C classes; M is L again, on the key
side of attention.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxprune.config.sections import ModelConfig
from jaxprune.models.decoder import tied_logits
from jaxprune.models.dropout import dropout
from jaxprune.models.model import Batch, Head
from jaxprune.models.paths import layer_name
from jaxprune.models.positions import take_positions


class Dense(nnx.Linear):
    """A linear layer that leaves what goes into it behind, for who asks (`functions.py`).

    It sees its batch as rows: over two axes, XLA's CPU backend would transpose and copy what a kernel's gradient sums.
    """

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        if hasattr(self, "__captures__"):  # within nnx.capture
            self.sow(nnx.Intermediate, "inputs", inputs)
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return rows.reshape(*inputs.shape[:-1], rows.shape[-1])


def dense(cfg: ModelConfig, n_in: int, n_out: int, rngs: nnx.Rngs) -> Dense:
    """Return a linear layer with a kernel (n_in, n_out), a bias and products in `cfg.dtype`."""
    return Dense(n_in, n_out, dtype=jnp.dtype(cfg.dtype), rngs=rngs)


def activation(cfg: ModelConfig, x: Array) -> Array:
    """Return GELU of `x`: exact for `hidden_act = gelu`, the tanh approximation for `gelu_new`."""
    return jax.nn.gelu(x, approximate=cfg.hidden_act == "gelu_new")


def sublayer(cfg: ModelConfig, x: Array) -> Array:
    """Return a sub-layer's output `x`, through a ReLU with `sublayer_relu`."""
    return jax.nn.relu(x) if cfg.sublayer_relu else x


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis: statistics in float32, result in `cfg.dtype`."""

    def __init__(self, cfg: ModelConfig):
        self.eps, self.dtype = cfg.layer_norm_eps, jnp.dtype(cfg.dtype)
        self.scale = nnx.Param(jnp.ones((cfg.hidden_size,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((cfg.hidden_size,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, -1, keepdims=True)
        x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (x * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(self.dtype)


def classifier_dropout(cfg: ModelConfig, x: Array, seed_2: Array | None) -> Array:
    """Return what goes into a classifier, with its dropout."""
    rate = cfg.hidden_dropout_prob if cfg.classifier_dropout is None else cfg.classifier_dropout
    return dropout(x, rate, seed_2)


class Table(nnx.Module):
    """An embedding table (rows, D)."""

    def __init__(self, cfg: ModelConfig, rows: int):
        self.embedding = nnx.Param(jnp.zeros((rows, cfg.hidden_size), jnp.float32))


class Embeddings(nnx.Module):
    """Sum of word, position and (with `segments`) segment-type embeddings, normalised: ids (B, L) -> (B, L, D).

    Positions count from 0 in each row, unless `positions_BL` gives them.
    """

    def __init__(self, cfg: ModelConfig, *, segments: bool):
        self.cfg = cfg
        self.word_embeddings = Table(cfg, cfg.vocab_size)
        self.position_embeddings = Table(cfg, cfg.max_position_embeddings)
        if segments:
            self.token_type_embeddings = Table(cfg, cfg.type_vocab_size)
        self.layer_norm = LayerNorm(cfg)

    def __call__(
        self, ids_BL: Array, types_BL: Array | None, seed_2: Array | None, positions_BL: Array | None = None
    ) -> Array:
        x_BLD = take_rows(self.word_embeddings.embedding[...], ids_BL)
        if types_BL is not None:
            # A product with one-hot types: its gradient is a small product too, where a gather's is a long scatter.
            types_BLT = jax.nn.one_hot(types_BL, self.cfg.type_vocab_size, dtype=jnp.float32)
            x_BLD += jnp.matmul(types_BLT, self.token_type_embeddings.embedding[...], precision="highest")
        positions = self.position_embeddings.embedding
        if positions_BL is None:
            x_BLD += positions[: ids_BL.shape[1]][None]
        else:
            x_BLD += take_rows(positions[...], positions_BL)
        return dropout(self.layer_norm(x_BLD), self.cfg.hidden_dropout_prob, seed_2)


class Attention(nnx.Module):
    """Multi-head self-attention with its residual and normalisation: (B, L, D) -> (B, L, D).

    With `at_BS`, at those positions alone: -> (B, S, D).
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, HK = cfg.hidden_size, cfg.num_attention_heads * cfg.head_width
        self.cfg = cfg
        self.query, self.key, self.value = (dense(cfg, D, HK, rngs) for _ in range(3))
        self.output = dense(cfg, HK, D, rngs)
        self.layer_norm = LayerNorm(cfg)

    def __call__(
        self, x_BMD: Array, keep_B1LM: Array, seeds: Sequence[Array | None], at_BS: Array | None = None
    ) -> Array:
        H, K = self.cfg.num_attention_heads, self.cfg.head_width
        x_BLD = x_BMD
        if at_BS is not None:
            x_BLD = take_positions(x_BMD, at_BS)
            if keep_B1LM.shape[2] > 1:
                keep_B1LM = jnp.take_along_axis(keep_B1LM, at_BS[:, None, :, None], 2)
        q_BLHK = split_heads(self.query(x_BLD), H)
        k_BMHK, v_BMHK = (split_heads(layer(x_BMD), H) for layer in (self.key, self.value))
        q_BLHK = q_BLHK * jnp.asarray(K**-0.5, q_BLHK.dtype)
        scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=jnp.float32)
        scores_BHLM = jnp.where(keep_B1LM, scores_BHLM, jnp.finfo(jnp.float32).min)
        probs_BHLM = jax.nn.softmax(scores_BHLM, axis=-1).astype(x_BLD.dtype)
        probs_BHLM = dropout(probs_BHLM, self.cfg.attention_probs_dropout_prob, seeds[0])
        mixed_BLHK = jnp.einsum("bhlm,bmhk->blhk", probs_BHLM, v_BMHK)
        out_BLD = sublayer(self.cfg, self.output(mixed_BLHK.reshape(*x_BLD.shape[:2], H * K)))
        return self.layer_norm(x_BLD + dropout(out_BLD, self.cfg.hidden_dropout_prob, seeds[1]))


class Layer(nnx.Module):
    """One encoder layer, normalised after each residual as in the original BERT: (B, L, D) -> (B, L, D).

    `seeds`: of the dropout on attention probabilities and on the outputs of attention and feed-forward; None for none.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention = Attention(cfg, rngs)
        self.intermediate = dense(cfg, cfg.hidden_size, cfg.intermediate_size, rngs)
        self.output = dense(cfg, cfg.intermediate_size, cfg.hidden_size, rngs)
        self.layer_norm = LayerNorm(cfg)

    def __call__(
        self, x_BLD: Array, keep_B1LM: Array, seeds: Sequence[Array | None], at_BS: Array | None = None
    ) -> Array:
        x_BLD = self.attention(x_BLD, keep_B1LM, seeds[:2], at_BS)
        out_BLD = sublayer(self.cfg, self.output(activation(self.cfg, self.intermediate(x_BLD))))
        return self.layer_norm(x_BLD + dropout(out_BLD, self.cfg.hidden_dropout_prob, seeds[2]))


class Encoder(nnx.Dict):
    """The layers under their keys `layer_00`, ...: (B, L, D) -> what goes in and what each layer gives.

    With `at_BS` the last layer gives (B, S, D), at those positions alone: nothing else of it is computed.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        super().__init__({layer_name(i): Layer(cfg.with_layers([i]), rngs) for i in range(cfg.num_hidden_layers)})

    def __call__(
        self, x_BLD: Array, keep_B1LM: Array, seeds: Sequence[Sequence[Array | None]], at_BS: Array | None = None
    ) -> tuple[Array, ...]:
        states = [x_BLD]
        for i, layer_seeds in enumerate(seeds):
            last = i == len(seeds) - 1
            states.append(self[layer_name(i)](states[-1], keep_B1LM, layer_seeds, at_BS if last else None))
        return tuple(states)


class MaskedLM(nnx.Module):
    """The masked-LM head, its decoder tied to the word embeddings: (B, P, D) -> float32 logits (B, P, V)."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.transform = dense(cfg, cfg.hidden_size, cfg.hidden_size, rngs)
        self.layer_norm = LayerNorm(cfg)
        self.bias = nnx.Param(jnp.zeros((cfg.vocab_size,), jnp.float32))

    def __call__(self, x_BPD: Array, words_VD: Array) -> Array:
        x_BPD = self.layer_norm(activation(self.cfg, self.transform(x_BPD)))
        return tied_logits(x_BPD, words_VD) + self.bias[...][None, None]


def forward_flops(cfg: ModelConfig, *, seq_len: int, predictions: int) -> int:
    """FLOPs of the forward matrix products of encoder and masked-LM head for one sequence (a multiply-add is 2)."""
    d, per_token = cfg.hidden_size, 0
    for layer in (cfg.with_layers([i]) for i in range(cfg.num_hidden_layers)):
        heads = layer.num_attention_heads * layer.head_width
        per_token += 2 * (4 * d * heads + 2 * d * layer.intermediate_size) + 4 * seq_len * heads
    return seq_len * per_token + predictions * 2 * (d * d + d * cfg.vocab_size)


def class_scores(head: Head, logits_BC: Array) -> Array:
    """Return float32 logits (..., C); of a regression head, which gives a score, without the last axis."""
    logits_BC = logits_BC.astype(jnp.float32)
    return logits_BC[..., 0] if head == "regression" else logits_BC


def split_heads(x_BLD: Array, heads: int) -> Array:
    """Return (B, L, D) as (B, L, H, K): head h owns columns [h K, (h + 1) K) of the projection."""
    B, L, D = x_BLD.shape
    return x_BLD.reshape(B, L, heads, D // heads)


def take_rows(table_VD: Array, ids_BL: Array) -> Array:
    """Return the rows (B, L, D) of a table; an id outside [0, V) gives NaN, never another row.

    The axis of length 1 costs nothing. Without it XLA would scatter the gradient into the decoder's of the tied table,
    and sum both over devices, one after the other.
    """
    V, D = table_VD.shape
    rows = table_VD.reshape(V, 1, D).at[ids_BL]
    out = rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=_sharding_of(ids_BL))
    return out.reshape(*ids_BL.shape, D)


def visible(batch: Batch) -> Array:
    """Which keys a query sees, bool (B, 1, L or 1, M): the row's tokens by `attention_mask`; in rows that hold several
    examples (`segment_ids` (B, L), 0 = padding) those of its own example alone."""
    if "segment_ids" in batch:
        segments_BL = batch["segment_ids"]
        return segments_BL[:, None, :, None] == segments_BL[:, None, None, :]
    return batch["attention_mask"][:, None, None, :] != 0


def _sharding_of(ids_BL: Array) -> PartitionSpec | None:
    """The spec (B, L, 1, D) of looked-up rows, split as their ids are; None unless the mesh has Explicit axes."""
    sharding = jax.typeof(ids_BL).sharding
    return PartitionSpec(*sharding.spec, None, None) if sharding.mesh.explicit_axes else None
