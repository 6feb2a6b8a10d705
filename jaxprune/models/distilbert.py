"""DistilBERT (Sanh et al. 2019): BERT without segment types, pooler and next sentences. Suffixes: see `layers.py`."""

from collections.abc import Mapping
from typing import Any

import jax
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
from jaxprune.models.paths import ENCODER_MATRICES, PARTS, WORD_EMBEDDINGS, scopes
from jaxprune.models.positions import first_positions, first_tokens, take_positions
from jaxprune.models.shape import shape_from_hf, shape_to_hf
from jaxprune.models.units import UNITS

_FIXED = ("type_vocab_size", "layer_norm_eps", "sublayer_relu")


def distilbert(cfg: ModelConfig, *, head: Head, num_labels: int = 0, pooling: Pooling = "mean") -> Model:
    """Return DistilBERT (Sanh et al. 2019) with one of five heads.

    `apply` reads int32 `input_ids` and `attention_mask` (1 = token, 0 = padding), both (B, L), and returns float32
    outputs: with the pretraining head `mlm_logits` (B, P, V) at int32 `masked_positions` (B, P) if the batch has them,
    else (B, L, V); `logits` (B, num_labels) of a classification or (B,) of a regression head; those of the similarity
    head, rows that hold several examples and `hidden_states=True` are as with `bert`. There are no segment types:
    `token_type_ids` are not read. Positions are a trained table: drawn at random from scratch, as transformers does by
    default; a folder always brings its own, also where its `sinusoidal_pos_embds` says that it started as sinusoids.

    Raises UserError for a setting that DistilBERT lacks, an unknown head, or a `num_labels` that does not suit it.
    """
    for name in _FIXED:
        if getattr(cfg, name) != (default := ModelConfig.model_fields[name].default):
            raise UserError(f"model.{name} = {getattr(cfg, name)}: DistilBERT's is always {default}; remove it")
    return functions(_DistilBert, cfg, head=head, num_labels=num_labels, pooling=pooling)


class _DistilBert(nnx.Module):
    """Embeddings, encoder and head."""

    def __init__(self, cfg: ModelConfig, head: Head, classes: int, rngs: nnx.Rngs):
        self.cfg = cfg
        self.head: Head = head
        self.embeddings = Embeddings(cfg, segments=False)
        self.encoder = Encoder(cfg, rngs)
        if classes:
            self.pre_classifier = dense(cfg, cfg.hidden_size, cfg.hidden_size, rngs)
            self.classifier = dense(cfg, cfg.hidden_size, classes, rngs)
        elif head == "pretraining":
            self.mlm = MaskedLM(cfg, rngs)

    def __call__(self, batch: Batch, key: Array | None, hidden_states: bool) -> dict[str, Any]:
        n = self.cfg.num_hidden_layers
        sites = 2 + 2 * n
        seeds: list[Array | None] = [None] * sites if key is None else list(dropout_seeds(key, sites))
        x_BLD = self.embeddings(batch["input_ids"], None, seeds[0], batch.get("position_ids"))
        # No dropout on the output of attention, as in transformers.
        layer_seeds = [(seeds[2 + 2 * i], None, seeds[3 + 2 * i]) for i in range(n)]
        at_BS = first_positions(batch) if self.head in TASK_HEADS and not hidden_states else None
        states = self.encoder(x_BLD, visible(batch), layer_seeds, at_BS)
        x_BLD = states[-1]
        out: dict[str, Any] = {"hidden_states": states} if hidden_states else {}
        if self.head == "similarity":
            return out
        if self.head != "pretraining":
            first = jax.nn.relu(self.pre_classifier(first_tokens(x_BLD, batch, at_BS)))
            return out | {
                "logits": class_scores(self.head, self.classifier(classifier_dropout(self.cfg, first, seeds[1])))
            }
        if "masked_positions" in batch:
            x_BLD = take_positions(x_BLD, batch["masked_positions"])
        return out | {"mlm_logits": self.mlm(x_BLD, self.embeddings.word_embeddings.embedding[...])}


def _config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    return shape_from_hf({"seq_classif_dropout": 0.2, **raw}, where, architecture="distilbert", keys=_KEYS)


def _config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    rate = cfg.hidden_dropout_prob if cfg.classifier_dropout is None else cfg.classifier_dropout
    return shape_to_hf(cfg, keys=_KEYS) | {"seq_classif_dropout": rate}


def _train_flops(cfg: ModelConfig, *, seq_len: int, predictions: int) -> float:
    return 3.0 * forward_flops(cfg, seq_len=seq_len, predictions=predictions)


_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "head_dim": "head_dim",
    "layer_heads": "layer_heads",
    "layer_neurons": "layer_neurons",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}

DISTILBERT = Architecture(
    name="distilbert",
    build=distilbert,
    config_from_hf=_config_from_hf,
    config_to_hf=_config_to_hf,
    classes={
        "pretraining": "DistilBertForMaskedLM",
        "classification": "DistilBertForSequenceClassification",
        "multi_label": "DistilBertForSequenceClassification",
        "regression": "DistilBertForSequenceClassification",
        "similarity": "DistilBertModel",
    },
    tensors=(
        (r"embeddings/(word|position)_embeddings", r"distilbert.embeddings.\1_embeddings"),
        (r"embeddings/layer_norm", r"distilbert.embeddings.LayerNorm"),
        (r"encoder/layer_0*(\d+)/attention/query", r"distilbert.transformer.layer.\1.attention.q_lin"),
        (r"encoder/layer_0*(\d+)/attention/key", r"distilbert.transformer.layer.\1.attention.k_lin"),
        (r"encoder/layer_0*(\d+)/attention/value", r"distilbert.transformer.layer.\1.attention.v_lin"),
        (r"encoder/layer_0*(\d+)/attention/output", r"distilbert.transformer.layer.\1.attention.out_lin"),
        (r"encoder/layer_0*(\d+)/attention/layer_norm", r"distilbert.transformer.layer.\1.sa_layer_norm"),
        (r"encoder/layer_0*(\d+)/intermediate", r"distilbert.transformer.layer.\1.ffn.lin1"),
        (r"encoder/layer_0*(\d+)/output", r"distilbert.transformer.layer.\1.ffn.lin2"),
        (r"encoder/layer_0*(\d+)/layer_norm", r"distilbert.transformer.layer.\1.output_layer_norm"),
        (r"mlm", r"vocab_projector"),
        (r"mlm/transform", r"vocab_transform"),
        (r"mlm/layer_norm", r"vocab_layer_norm"),
        (r"pre_classifier", r"pre_classifier"),
        (r"classifier", r"classifier"),
    ),
    prefix="distilbert.",
    tied=(("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
    optional=(r"mlm/.+", r"(pre_classifier|classifier)/.+"),
    prunable=ENCODER_MATRICES,
    scopes=scopes,
    special_tokens=SpecialTokens(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    max_tokens=lambda cfg: cfg.max_position_embeddings,
    word_embeddings=WORD_EMBEDDINGS,
    parts=PARTS,
    next_sentence=False,
    train_flops=_train_flops,
    units=UNITS,
)
