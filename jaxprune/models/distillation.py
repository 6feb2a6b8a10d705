"""What a model learns from a teacher: distances between the outputs of both. Shape suffixes: see `layers.py`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxprune.models.layers import split_heads, visible
from jaxprune.models.losses import LOSSES, Apply, LossFn, Sums, example_weights
from jaxprune.models.model import Head
from jaxprune.models.paths import layer_name

TEACHER = "teacher_"
"""What the terms that compare two models begin with: `teacher_mlm` stands beside `mlm`."""


class Compared(NamedTuple):
    """What of two models is compared."""

    logits: bool
    temperature: float
    hidden: bool
    relations: int
    """Heads into which queries, keys and values are split; 0 compares no relations."""
    layers: tuple[int, ...]
    """The teacher's layer, from 0, for each of the student's."""


def evenly_spaced(layers: int, teachers: int) -> tuple[int, ...]:
    """The teacher's layer, from 0, for each of so many of the student's: the last for the last, others as evenly."""
    return tuple(-(-(i + 1) * teachers // layers) - 1 for i in range(layers))


def said_before(_: Any, batch: Mapping[str, Array], **__: Any) -> dict[str, Array]:
    """A teacher whose logits lie in the batch, as `teacher_logits`, example by example."""
    return {"logits": batch["teacher_logits"]}


def distillation_loss(head: Head, apply: Apply, teacher: Apply, compared: Compared) -> LossFn:
    """Return the loss of `head` with the terms that compare the model to a teacher, whose params are `frozen`.

    The teacher runs once, without dropout, and gets no gradient. Terms beside the head's own, each a mean over what the
    head's term is a mean over, or over tokens:

    - logits: `teacher_mlm`, `teacher_nsp`, `teacher_classification`: T^2 KL(teacher || student) of softmax(logits / T),
      in nats (Hinton et al. 2015); `teacher_multi_label`: the same of every label's two outcomes, its mean over labels;
      `teacher_regression`, `teacher_similarity`: the squared difference of scores, of cosines.
    - `teacher_hidden`: squared difference of hidden states, its mean over D and the student's layers.
    - `teacher_relations`: KL(teacher || student) of softmax(x x^T / sqrt(K)), x the queries, keys or values of the
      student's last layer and of the teacher's for it, split into heads; in nats, its mean over the three and over
      heads (MiniLMv2, Wang et al. 2021).
    """
    states = compared.hidden or compared.relations > 0

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        ours = apply(params, batch, key=key, hidden_states=states)
        theirs = lax.stop_gradient(teacher(frozen, batch, hidden_states=states))
        terms, metrics = LOSSES[head](lambda *_, **__: ours)(params, (), batch, key)
        if compared.logits:
            terms |= _logit_terms(head, ours, theirs, batch, compared.temperature)
        if compared.hidden:
            pairs = zip(ours["hidden_states"][1:], (theirs["hidden_states"][1 + i] for i in compared.layers))
            terms["teacher_hidden"] = _over_tokens([_squares(a, b) for a, b in pairs], batch)
        if compared.relations:
            mine = _relations(params, ours["hidden_states"], len(compared.layers) - 1, compared.relations, batch)
            target = _relations(frozen, theirs["hidden_states"], compared.layers[-1], compared.relations, batch)
            kl = [jnp.mean(_divergence(a, lax.stop_gradient(b)), 1) for a, b in zip(mine, target, strict=True)]
            terms["teacher_relations"] = _over_tokens(kl, batch)
        return terms, metrics

    return loss_fn


def _logit_terms(head: Head, ours: Any, theirs: Any, batch: Mapping[str, Array], temperature: float) -> Sums:
    def softened(a: Array, b: Array) -> Array:
        logs = (jax.nn.log_softmax(logits / temperature, -1) for logits in (a, b))
        return temperature**2 * _divergence(*logs)

    if head == "pretraining":
        weights_B = example_weights(batch)
        weights_BP = batch["masked_weights"].astype(jnp.float32) * weights_B[:, None]
        terms = {"teacher_mlm": _mean(softened(ours["mlm_logits"], theirs["mlm_logits"]), weights_BP)}
        if "next_sentence_label" in batch and "nsp_logits" in ours and "nsp_logits" in theirs:
            terms["teacher_nsp"] = _mean(softened(ours["nsp_logits"], theirs["nsp_logits"]), weights_B)
        return terms
    a, b = ours["logits"], theirs["logits"]
    if head == "classification":
        return {"teacher_classification": _mean(softened(a, b), example_weights(batch))}
    if head == "multi_label":  # of two outcomes with logits x and 0
        distances = jnp.mean(softened(*(jnp.stack([x, jnp.zeros_like(x)], -1) for x in (a, b))), -1)
        return {"teacher_multi_label": _mean(distances, example_weights(batch))}
    weights = batch["example_weights"].astype(jnp.float32) if "example_weights" in batch else jnp.ones_like(a)
    return {TEACHER + head: _mean((a - b) ** 2, weights)}


def _relations(
    params: Any, states: tuple[Array, ...], layer: int, heads: int, batch: Mapping[str, Array]
) -> list[Array]:
    """Log-probabilities (B, heads, L, L) of each token's queries, keys and values to those of its example's tokens."""
    relations, x_BLD = [], states[layer]
    for name in ("query", "key", "value"):
        kernel, bias = (params["encoder"][layer_name(layer)]["attention"][name][part] for part in ("kernel", "bias"))
        x_BLHK = split_heads(x_BLD @ kernel.astype(x_BLD.dtype) + bias.astype(x_BLD.dtype)[None, None], heads)
        x_BLHK = x_BLHK * jnp.asarray(x_BLHK.shape[-1] ** -0.25, x_BLHK.dtype)
        scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", x_BLHK, x_BLHK, preferred_element_type=jnp.float32)
        scores_BHLM = jnp.where(visible(batch), scores_BHLM, jnp.finfo(jnp.float32).min)
        relations.append(jax.nn.log_softmax(scores_BHLM, -1))
    return relations


def _divergence(log_ours: Array, log_theirs: Array) -> Array:
    """KL(theirs || ours) over the last axis, in nats."""
    return optax.losses.kl_divergence_with_log_targets(log_ours, log_theirs)


def _squares(a_BLD: Array, b_BLD: Array) -> Array:
    return jnp.mean((a_BLD.astype(jnp.float32) - b_BLD.astype(jnp.float32)) ** 2, -1)


def _over_tokens(distances_BL: list[Array], batch: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return (sum, count) over the tokens of a batch of the distances' mean."""
    real_BL = batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"] != 0
    return _mean(sum(distances_BL[1:], distances_BL[0]) / len(distances_BL), real_BL.astype(jnp.float32))


def _mean(distances: Array, weights: Array) -> tuple[Array, Array]:
    return jnp.sum(weights * distances), jnp.sum(weights)
