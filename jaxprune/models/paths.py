"""What the paths of an encoder's params say: which are prunable, which tensors they are, what belongs together."""

import re

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.pruning.interface import Scope

WORD_EMBEDDINGS = "embeddings/word_embeddings/embedding"
ENCODER_MATRICES = (
    WORD_EMBEDDINGS,
    r"encoder/layer_\d+/attention/(query|key|value|output)/kernel",
    r"encoder/layer_\d+/(intermediate|output)/kernel",
)
PARTS = (
    ("word embeddings", WORD_EMBEDDINGS),
    ("attention", r"encoder/layer_\d+/attention/.+"),
    ("feed-forward", r"encoder/layer_\d+/(intermediate|output|layer_norm)/.+"),
    ("heads", r"(mlm|nsp|pre_classifier|classifier)/.+"),
    ("other", r".+"),
)
"""The paper's parts (sec. 3.1, 6): attention and feed-forward with biases and LayerNorm; `other`: positions, types,
their LayerNorm and the pooler."""
_LAYER = re.compile(r"(encoder/layer_\d+)/.+")
_ATTENTION = re.compile(r"(encoder/layer_(\d+)/attention)/(query|key|value|output)/kernel")


def scopes(cfg: ModelConfig) -> dict[str, Scope]:
    """`layer`: the leaves of an encoder layer are one group. `head`: so are the Q, K, V columns and O rows of a head.

    Any other leaf is a group of its own. UserError when the heads do not divide a leaf.
    """

    def layer(path: str, shape: tuple[int, ...]) -> tuple[str, int | None, int] | None:
        match = _LAYER.fullmatch(path)
        return (match[1], None, 1) if match else None

    def head(path: str, shape: tuple[int, ...]) -> tuple[str, int | None, int] | None:
        match = _ATTENTION.fullmatch(path)
        if not match:
            return None
        axis, heads = 0 if match[3] == "output" else 1, cfg.with_layers([int(match[2])]).num_attention_heads
        if len(shape) != 2 or shape[axis] % heads:
            fault = f"num_attention_heads = {heads} does not divide axis {axis} of {path}, a leaf of shape {shape}"
            raise UserError(f"scope = head: {fault}; use another scope")
        return match[1], axis, heads

    return {"layer": layer, "head": head}


def encoder_tensors(prefix: str) -> tuple[tuple[str, str], ...]:
    """The rows of `Architecture.tensors` for embeddings, encoder and pooler, as BERT and RoBERTa name them."""
    return (
        (r"embeddings/(word|position|token_type)_embeddings", rf"{prefix}embeddings.\1_embeddings"),
        (r"embeddings/layer_norm", rf"{prefix}embeddings.LayerNorm"),
        (r"encoder/layer_0*(\d+)/attention/(query|key|value)", rf"{prefix}encoder.layer.\1.attention.self.\2"),
        (r"encoder/layer_0*(\d+)/attention/output", rf"{prefix}encoder.layer.\1.attention.output.dense"),
        (r"encoder/layer_0*(\d+)/attention/layer_norm", rf"{prefix}encoder.layer.\1.attention.output.LayerNorm"),
        (r"encoder/layer_0*(\d+)/(intermediate|output)", rf"{prefix}encoder.layer.\1.\2.dense"),
        (r"encoder/layer_0*(\d+)/layer_norm", rf"{prefix}encoder.layer.\1.output.LayerNorm"),
        (r"pooler", rf"{prefix}pooler.dense"),
    )


def layer_name(index: int) -> str:
    """The key of encoder layer `index` in params: `layer_00`, `layer_01`, ..."""
    return f"layer_{index:02d}"
