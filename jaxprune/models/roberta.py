"""RoBERTa (Liu et al. 2019): BERT without segment types, pooler and next sentences. Shape suffixes: see
`layers.py`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.errors import UserError
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


def roberta(cfg: ModelConfig, *, head: Head, num_labels: int = 0, pooling: Pooling = "mean") -> Model:
    """Return RoBERTa (Liu et al. 2019) with one of five heads.

    `apply` reads int32 `input_ids` and `attention_mask` (1 = token, 0 = padding), both (B, L), and returns float32
    outputs: with the pretraining head `mlm_logits` (B, P, V) at int32 `masked_positions` (B, P) if the batch has them,
    else (B, L, V); `logits` (B, num_labels) of a classification or (B,) of a regression head; those of the similarity
    head, rows that hold several examples and `hidden_states=True` are as with `bert`. All tokens are of segment type 0:
    `token_type_ids` are not read. Positions lie behind row `pad_token_id` of their table, which is the padding's.

    Raises UserError for a setting that RoBERTa lacks, an unknown head, or a `num_labels` that does not suit it.
    """
    if cfg.sublayer_relu:
        raise UserError("model.sublayer_relu = True: RoBERTa's is always False; remove it")
    if _max_tokens(cfg) < 1:
        raise UserError(
            f"model.max_position_embeddings = {cfg.max_position_embeddings}: none is left behind pad_token_id = "
            f"{cfg.pad_token_id}; raise it"
        )
    return functions(_Roberta, cfg, head=head, num_labels=num_labels, pooling=pooling)


class _Roberta(nnx.Module):
    """Embeddings, encoder and head."""

    def __init__(self, cfg: ModelConfig, head: Head, classes: int, rngs: nnx.Rngs):
        self.cfg = cfg
        self.head: Head = head
        self.embeddings = Embeddings(cfg, segments=True)
        self.encoder = Encoder(cfg, rngs)
        if classes:
            self.pre_classifier = dense(cfg, cfg.hidden_size, cfg.hidden_size, rngs)
            self.classifier = dense(cfg, cfg.hidden_size, classes, rngs)
        elif head == "pretraining":
            self.mlm = MaskedLM(cfg.model_copy(update={"hidden_act": "gelu"}), rngs)  # whatever the encoder's

    def __call__(self, batch: Batch, key: Array | None, hidden_states: bool) -> dict[str, Any]:
        n = self.cfg.num_hidden_layers
        sites = 3 + 3 * n
        seeds: list[Array | None] = [None] * sites if key is None else list(dropout_seeds(key, sites))
        ids_BL = batch["input_ids"]
        x_BLD = self.embeddings(ids_BL, jnp.zeros_like(ids_BL), seeds[0], _positions(batch, self.cfg.pad_token_id))
        at_BS = first_positions(batch) if self.head in TASK_HEADS and not hidden_states else None
        states = self.encoder(x_BLD, visible(batch), [seeds[3 + 3 * i : 6 + 3 * i] for i in range(n)], at_BS)
        x_BLD = states[-1]
        out: dict[str, Any] = {"hidden_states": states} if hidden_states else {}
        if self.head == "similarity":
            return out
        if self.head != "pretraining":
            first = classifier_dropout(self.cfg, first_tokens(x_BLD, batch, at_BS), seeds[1])
            first = classifier_dropout(self.cfg, jnp.tanh(self.pre_classifier(first)), seeds[2])
            return out | {"logits": class_scores(self.head, self.classifier(first))}
        if "masked_positions" in batch:
            x_BLD = take_positions(x_BLD, batch["masked_positions"])
        return out | {"mlm_logits": self.mlm(x_BLD, self.embeddings.word_embeddings.embedding[...])}


def _positions(batch: Batch, pad: int) -> Array:
    """Rows of the position table (B, L): `pad` for padding; an example's other tokens are counted from `pad` + 1."""
    real_BL = (batch["input_ids"] != pad).astype(jnp.int32)
    counts_BL = jnp.cumsum(real_BL, 1)
    if "position_ids" in batch:
        starts_BL = jnp.arange(real_BL.shape[1])[None] - batch["position_ids"]
        counts_BL -= jnp.take_along_axis(counts_BL - real_BL, starts_BL, 1)
    return pad + real_BL * counts_BL


def _max_tokens(cfg: ModelConfig) -> int:
    return cfg.max_position_embeddings - cfg.pad_token_id - 1


def _train_flops(cfg: ModelConfig, *, seq_len: int, predictions: int) -> float:
    return 3.0 * forward_flops(cfg, seq_len=seq_len, predictions=predictions)


def config_from_hf(raw: Mapping[str, Any], where: str, *, architecture: str) -> ModelConfig:
    """`Architecture.config_from_hf` of RoBERTa and its kin."""
    return shape_from_hf({"pad_token_id": 1, **raw}, where, architecture=architecture, keys=_KEYS)


_KEYS = {field: field for field in ModelConfig.model_fields if field not in ("architecture", "dtype", "sublayer_relu")}

ROBERTA = Architecture(
    name="roberta",
    build=roberta,
    config_from_hf=partial(config_from_hf, architecture="roberta"),
    config_to_hf=partial(shape_to_hf, keys=_KEYS),
    classes={
        "pretraining": "RobertaForMaskedLM",
        "classification": "RobertaForSequenceClassification",
        "multi_label": "RobertaForSequenceClassification",
        "regression": "RobertaForSequenceClassification",
        "similarity": "RobertaModel",
    },
    tensors=(
        *encoder_tensors("roberta."),
        (r"mlm", r"lm_head"),
        (r"mlm/transform", r"lm_head.dense"),
        (r"mlm/layer_norm", r"lm_head.layer_norm"),
        (r"pre_classifier", r"classifier.dense"),
        (r"classifier", r"classifier.out_proj"),
    ),
    prefix="roberta.",
    tied=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    optional=(r"pooler/.+", r"mlm/.+", r"(pre_classifier|classifier)/.+"),
    prunable=ENCODER_MATRICES,
    scopes=scopes,
    special_tokens=SpecialTokens(pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>"),
    max_tokens=_max_tokens,
    word_embeddings=WORD_EMBEDDINGS,
    parts=PARTS,
    next_sentence=False,
    train_flops=_train_flops,
    units=UNITS,
)
