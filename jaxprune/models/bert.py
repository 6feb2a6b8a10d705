"""BERT (Devlin et al. 2019). Shape suffixes: see `layers.py`."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.models.architecture import Architecture, Batch, Head, Model
from jaxprune.models.dropout import dropout, dropout_seeds
from jaxprune.models.functions import functions
from jaxprune.models.layers import (
    Embeddings,
    Encoder,
    MaskedLM,
    dense,
    first_tokens,
    forward_flops,
    take_positions,
    visible,
)
from jaxprune.models.paths import ENCODER_MATRICES, PARTS, WORD_EMBEDDINGS, scopes
from jaxprune.models.shape import shape_from_hf, shape_to_hf


def bert(cfg: ModelConfig, *, head: Head, num_labels: int = 0) -> Model:
    """Return BERT (Devlin et al. 2019) with one of three heads.

    `apply` reads int32 `input_ids`, `token_type_ids` and `attention_mask` (1 = token, 0 = padding), all (B, L), and
    returns float32 outputs:

    - pretraining: `mlm_logits` (B, P, V) at int32 `masked_positions` (B, P) if the batch has them, else (B, L, V);
      `nsp_logits` (B, 2), where class 0 says that segment B follows segment A and class 1 that it is random. Its
      params exist also when training has no next-sentence task; the loss leaves them alone then.
    - classification: `logits` (B, num_labels); regression: `logits` (B,).

    A row may hold several examples (`data/row_packing.py`): int32 `segment_ids` (B, L) takes the place of the attention
    mask, with the number of the example from 1, 0 = padding; `position_ids` (B, L) and `starts` (B, S), the position of
    each example's first token, come with it. Logits are then (B, S, num_labels) or (B, S).

    With `hidden_states=True` also `hidden_states`: the embeddings' output and each layer's, a tuple of
    `num_hidden_layers + 1` arrays (B, L, D) in `cfg.dtype`.

    Raises UserError for an unknown head, or a `num_labels` that does not suit it.
    """
    return functions(_Bert, cfg, head=head, num_labels=num_labels)


class _Bert(nnx.Module):
    """Embeddings, encoder, pooler and heads; `classes` = 0 stands for the pre-training heads."""

    def __init__(self, cfg: ModelConfig, classes: int, rngs: nnx.Rngs):
        self.cfg, self.classes = cfg, classes
        self.embeddings = Embeddings(cfg, segments=True)
        self.encoder = Encoder(cfg, rngs)
        self.pooler = dense(cfg, cfg.hidden_size, cfg.hidden_size, rngs)
        if classes:
            self.classifier = dense(cfg, cfg.hidden_size, classes, rngs)
        else:
            self.mlm = MaskedLM(cfg, rngs)
            self.nsp = dense(cfg, cfg.hidden_size, 2, rngs)

    def __call__(self, batch: Batch, key: Array | None, hidden_states: bool) -> dict[str, Any]:
        n = self.cfg.num_hidden_layers
        sites = 2 + 3 * n
        seeds: list[Array | None] = [None] * sites if key is None else list(dropout_seeds(key, sites))
        x_BLD = self.embeddings(batch["input_ids"], batch["token_type_ids"], seeds[0], batch.get("position_ids"))
        states = self.encoder(x_BLD, visible(batch), [seeds[2 + 3 * i : 5 + 3 * i] for i in range(n)])
        x_BLD = states[-1]
        pooled = jnp.tanh(self.pooler(first_tokens(x_BLD, batch)))
        out: dict[str, Any] = {"hidden_states": states} if hidden_states else {}
        if self.classes:
            pooled = dropout(pooled, self.cfg.hidden_dropout_prob, seeds[1])
            logits_BC = self.classifier(pooled).astype(jnp.float32)
            return out | {"logits": logits_BC if self.classes > 1 else logits_BC[..., 0]}
        if "masked_positions" in batch:
            x_BLD = take_positions(x_BLD, batch["masked_positions"])
        out["mlm_logits"] = self.mlm(x_BLD, self.embeddings.word_embeddings.embedding[...])
        out["nsp_logits"] = self.nsp(pooled).astype(jnp.float32)
        return out


def _config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    config = shape_to_hf(cfg, keys=_KEYS)
    return config if cfg.sublayer_relu else {key: value for key, value in config.items() if key != "sublayer_relu"}


def _train_flops(cfg: ModelConfig, *, seq_len: int, predictions: int) -> float:
    pooler_and_next_sentence = 2 * (cfg.hidden_size**2 + 2 * cfg.hidden_size)
    return 3.0 * (forward_flops(cfg, seq_len=seq_len, predictions=predictions) + pooler_and_next_sentence)


_KEYS = {field: field for field in ModelConfig.model_fields if field not in ("architecture", "dtype")}

BERT = Architecture(
    name="bert",
    build=bert,
    config_from_hf=partial(shape_from_hf, architecture="bert", keys=_KEYS),
    config_to_hf=_config_to_hf,
    classes={
        "pretraining": "BertForPreTraining",
        "classification": "BertForSequenceClassification",
        "regression": "BertForSequenceClassification",
    },
    tensors=(
        (r"embeddings/(word|position|token_type)_embeddings", r"bert.embeddings.\1_embeddings"),
        (r"embeddings/layer_norm", r"bert.embeddings.LayerNorm"),
        (r"encoder/layer_0*(\d+)/attention/(query|key|value)", r"bert.encoder.layer.\1.attention.self.\2"),
        (r"encoder/layer_0*(\d+)/attention/output", r"bert.encoder.layer.\1.attention.output.dense"),
        (r"encoder/layer_0*(\d+)/attention/layer_norm", r"bert.encoder.layer.\1.attention.output.LayerNorm"),
        (r"encoder/layer_0*(\d+)/(intermediate|output)", r"bert.encoder.layer.\1.\2.dense"),
        (r"encoder/layer_0*(\d+)/layer_norm", r"bert.encoder.layer.\1.output.LayerNorm"),
        (r"pooler", r"bert.pooler.dense"),
        (r"mlm", r"cls.predictions"),
        (r"mlm/transform", r"cls.predictions.transform.dense"),
        (r"mlm/layer_norm", r"cls.predictions.transform.LayerNorm"),
        (r"nsp", r"cls.seq_relationship"),
        (r"classifier", r"classifier"),
    ),
    prefix="bert.",
    tied=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    optional=(r"pooler/.+", r"mlm/.+", r"nsp/.+", r"classifier/.+"),
    prunable=(*ENCODER_MATRICES, r"pooler/kernel"),
    scopes=scopes,
    special_tokens=SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    word_embeddings=WORD_EMBEDDINGS,
    parts=PARTS,
    next_sentence=True,
    train_flops=_train_flops,
)
