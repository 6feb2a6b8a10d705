"""The forward pass of BERT, RoBERTa, XLM-R and DistilBERT in numpy or torch alone, of what `jaxprune_sparse` reads.

A copy of this file, `jaxprune_encoder.py`, lies beside the weights. `xp` is the module that computes: numpy or torch.
Shapes: B texts, L tokens, D hidden size, H heads.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]

_TODAY = (
    *(("attention.q_lin", "attention.self.query"), ("attention.k_lin", "attention.self.key")),
    *(("attention.v_lin", "attention.self.value"), ("attention.out_lin", "attention.output.dense")),
    *(("sa_layer_norm", "attention.output.LayerNorm"), ("output_layer_norm", "output.LayerNorm")),
    *(("ffn.lin1", "intermediate.dense"), ("ffn.lin2", "output.dense"), ("transformer.layer.", "encoder.layer.")),
    *(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
)
"""DistilBERT's and old names -> BERT's."""


def arrays(tensors: Mapping[str, Any], xp: ModuleType = np, *, compressed_embeddings: bool = False) -> dict[str, Any]:
    """{BERT's name without a prefix: array of `xp`} of the tensors that `jaxprune_sparse.read` returns.

    With `compressed_embeddings` the word embeddings stay as they are in the file; rows are decoded as they are looked
    up.
    """
    packed = ("embeddings.word_embeddings.weight",) if compressed_embeddings else ()
    return {
        name: tensor if name in packed else xp.asarray(np.array(tensor.dense()))
        for name, tensor in named(tensors).items()
    }


def named(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under BERT's names, without a prefix."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _TODAY:
            name = name.replace(old, new)
        renamed[name.removeprefix("bert.").removeprefix("roberta.").removeprefix("distilbert.")] = tensor
    return renamed


def encode(
    arrays: Arrays, config: Mapping[str, Any], input_ids: Any, attention_mask: Any = None, xp: ModuleType = np
) -> Any:
    """The last hidden states (B, L, D) of token ids (B, L); `attention_mask` (B, L) is 0 at padding.

    All tokens are of segment type 0. ValueError for an id that the vocabulary does not have.
    """
    words = arrays["embeddings.word_embeddings.weight"]
    if not hasattr(input_ids, "requires_grad"):  # torch's may be traced
        input_ids = np.asarray(input_ids)
        low, high = input_ids.min(), input_ids.max()
        if low < 0 or high >= words.shape[0]:
            raise ValueError(f"token ids are in [0, {words.shape[0]}), and these reach from {low} to {high}")
    ids = xp.asarray(input_ids)
    real = xp.ones_like(ids) if attention_mask is None else xp.asarray(attention_mask)
    x = xp.asarray(words.rows(np.asarray(ids))) if hasattr(words, "rows") else words[ids]
    positions = np.arange(int(ids.shape[1]))[None]
    if config.get("model_type") in ("roberta", "xlm-roberta"):
        pad = config.get("pad_token_id", 1)
        positions = pad + xp.cumsum(ids != pad, 1) * (ids != pad)
    x = x + arrays["embeddings.position_embeddings.weight"][xp.asarray(positions)]
    if (types := arrays.get("embeddings.token_type_embeddings.weight")) is not None:
        x = x + types[0].reshape(1, 1, -1)
    eps = config.get("layer_norm_eps", 1e-12)
    x = _layer_norm(x, arrays, "embeddings.LayerNorm", eps, xp)
    lowest = xp.asarray(np.finfo(np.float32).min)  # a plain float would make all that follows float64 in numpy
    unseen = (real == 0)[:, None, None, :] * lowest
    names = ("n_heads", "n_layers"), ("num_attention_heads", "num_hidden_layers")
    ours, others = names if config.get("model_type") == "distilbert" else names[::-1]  # both may stand there
    heads, layers = (config.get(our, config.get(other)) for our, other in zip(ours, others))
    by_layer = config.get("layer_heads") or [heads] * layers
    gelu = _gelu if config.get("hidden_act", config.get("activation", "gelu")) == "gelu" else _tanh_gelu
    sublayer = (lambda y: y * (y > 0)) if config.get("sublayer_relu") else (lambda y: y)
    for number in range(layers):
        at = f"encoder.layer.{number}"
        mixed = _attention(x, unseen, arrays, f"{at}.attention.self", by_layer[number], xp)
        y = sublayer(_dense(mixed, arrays, f"{at}.attention.output.dense"))
        x = _layer_norm(x + y, arrays, f"{at}.attention.output.LayerNorm", eps, xp)
        y = gelu(_dense(x, arrays, f"{at}.intermediate.dense"), xp)
        y = sublayer(_dense(y, arrays, f"{at}.output.dense"))
        x = _layer_norm(x + y, arrays, f"{at}.output.LayerNorm", eps, xp)
    return x


def mean_vectors(hidden: Any, attention_mask: Any, xp: ModuleType = np) -> Any:
    """The mean over each text's tokens (B, D), of length 1: a sentence-transformer's embeddings."""
    real = xp.asarray(np.asarray(attention_mask)[..., None].astype(np.float32))
    means = (hidden * real).sum(1) / real.sum(1)
    return means / xp.sqrt((means * means).sum(-1))[:, None]


def class_logits(hidden: Any, arrays: Arrays, xp: ModuleType = np) -> Any:
    """The logits (B, classes) of a model that was fine-tuned for a task."""
    first = hidden[:, 0]
    if "pooler.dense.weight" in arrays and "classifier.weight" in arrays:
        return _dense(xp.tanh(_dense(first, arrays, "pooler.dense")), arrays, "classifier")
    if "pre_classifier.weight" in arrays:
        y = _dense(first, arrays, "pre_classifier")
        return _dense(y * (y > 0), arrays, "classifier")
    return _dense(xp.tanh(_dense(first, arrays, "classifier.dense")), arrays, "classifier.out_proj")


def _dense(x: Any, arrays: Arrays, name: str) -> Any:
    return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def _layer_norm(x: Any, arrays: Arrays, name: str, eps: float, xp: ModuleType) -> Any:
    x = x - x.mean(-1)[..., None]
    return x / xp.sqrt((x * x).mean(-1)[..., None] + eps) * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def _attention(x: Any, unseen: Any, arrays: Arrays, name: str, heads: int, xp: ModuleType) -> Any:
    B, L = int(x.shape[0]), int(x.shape[1])
    query, key, value = (
        _dense(x, arrays, f"{name}.{part}").reshape(B, L, heads, -1).swapaxes(1, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.swapaxes(2, 3) / math.sqrt(int(query.shape[-1])) + unseen
    weights = xp.exp(scores - xp.amax(scores, -1)[..., None])
    mixed = weights / weights.sum(-1)[..., None] @ value
    return mixed.swapaxes(1, 2).reshape(B, L, -1)


def _gelu(x: Any, xp: ModuleType) -> Any:
    """Exact to 2e-7: numpy has no erf, so it is Abramowitz and Stegun's 7.1.26."""
    if hasattr(xp, "erf"):
        return x * 0.5 * (1 + xp.erf(x * math.sqrt(0.5)))
    z = xp.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = xp.exp(-z * z) * t
    factors = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    series = np.float32(factors[0])
    for factor in factors[1:]:
        series = series * t + np.float32(factor)
    tail = tail * series
    return x * 0.5 * xp.where(x < 0, tail, 2 - tail)


def _tanh_gelu(x: Any, xp: ModuleType) -> Any:
    return x * 0.5 * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
