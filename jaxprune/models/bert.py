"""BERT (Devlin et al. 2019). Shape suffixes: see `layers.py`."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.models.architecture import Architecture
from jaxprune.models.dropout import dropout_seeds
from jaxprune.models.functions import functions
from jaxprune.models.layers import (
    Embeddings,
    Encoder,
    MaskedLM,
    class_scores,
    classifier_dropout,
    dense,
    forward_flops,
    visible,
)
from jaxprune.models.model import TASK_HEADS, Batch, Head, Model, Pooling
from jaxprune.models.paths import ENCODER_MATRICES, PARTS, WORD_EMBEDDINGS, encoder_tensors, scopes
from jaxprune.models.positions import first_positions, first_tokens, take_positions
from jaxprune.models.shape import shape_from_hf, shape_to_hf
from jaxprune.models.units import UNITS


def bert(cfg: ModelConfig, *, head: Head, num_labels: int = 0, pooling: Pooling = "mean") -> Model:
    """Return BERT (Devlin et al. 2019) with one of five heads.

    `apply` reads int32 `input_ids`, `token_type_ids` and `attention_mask` (1 = token, 0 = padding), all (B, L), and
    returns float32 outputs:

    - pretraining: `mlm_logits` (B, P, V) at int32 `masked_positions` (B, P) if the batch has them, else (B, L, V);
      `nsp_logits` (B, 2), where class 0 says that segment B follows segment A and class 1 that it is random. Its
      params exist also when training has no next-sentence task; the loss leaves them alone then.
    - classification and multi_label: `logits` (B, num_labels); regression: `logits` (B,).
    - similarity: `embeddings` (B, D), sentence vectors by `pooling`, not normalised; `logits` (B / 2,), the cosines of
      rows 2 i and 2 i + 1. Without params of its own, and without the pooler.

    A row may hold several examples (`data/row_packing.py`): int32 `segment_ids` (B, L) takes the place of the attention
    mask, with the number of the example from 1, 0 = padding; `position_ids` (B, L) and `starts` (B, S), the position of
    each example's first token, come with it. Logits are then (B, S, num_labels), (B, S) or (B, S / 2), of the segments
    2 k + 1 and 2 k + 2; embeddings are (B, S, D).

    With `hidden_states=True` also `hidden_states`: the embeddings' output and each layer's, a tuple of
    `num_hidden_layers + 1` arrays (B, L, D) in `cfg.dtype`.

    Raises UserError for an unknown head, or a `num_labels` that does not suit it.
    """
    return functions(_Bert, cfg, head=head, num_labels=num_labels, pooling=pooling)


class _Bert(nnx.Module):
    """Embeddings, encoder, and pooler and heads but for the similarity head."""

    def __init__(self, cfg: ModelConfig, head: Head, classes: int, rngs: nnx.Rngs):
        self.cfg = cfg
        self.head: Head = head
        self.embeddings = Embeddings(cfg, segments=True)
        self.encoder = Encoder(cfg, rngs)
        if head == "similarity":
            return
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
        at_BS = first_positions(batch) if self.head in TASK_HEADS and not hidden_states else None
        states = self.encoder(x_BLD, visible(batch), [seeds[2 + 3 * i : 5 + 3 * i] for i in range(n)], at_BS)
        x_BLD = states[-1]
        out: dict[str, Any] = {"hidden_states": states} if hidden_states else {}
        if self.head == "similarity":
            return out
        pooled = jnp.tanh(self.pooler(first_tokens(x_BLD, batch, at_BS)))
        if self.head != "pretraining":
            return out | {
                "logits": class_scores(self.head, self.classifier(classifier_dropout(self.cfg, pooled, seeds[1])))
            }
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
        "multi_label": "BertForSequenceClassification",
        "regression": "BertForSequenceClassification",
        "similarity": "BertModel",
    },
    tensors=(
        *encoder_tensors("bert."),
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
    max_tokens=lambda cfg: cfg.max_position_embeddings,
    word_embeddings=WORD_EMBEDDINGS,
    parts=PARTS,
    next_sentence=True,
    train_flops=_train_flops,
    units=UNITS,
)
