"""Losses as sums and counts, so that micro-batches, devices and evaluation batches add up exactly.

A loss function maps `(params, frozen, batch, key)` to `(terms, metrics)`, each a dict of `(sum, count)` pairs of
float32 scalars. The loss to minimise is the sum over terms of `sum / count`; counts never depend on params and may be 0
(an empty batch): whoever divides guards. `frozen` is any tree that the loss reads and nobody trains, such as a
teacher's params; the losses here read none, so that it is `()`. `key=None` turns dropout off. Shape suffixes: see
`layers.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxprune.models.model import Head

Sums = dict[str, tuple[Array, Array]]
LossFn = Callable[[Any, Any, Mapping[str, Array], Array | None], tuple[Sums, Sums]]
Apply = Callable[..., dict[str, Any]]


def pretraining_loss(apply: Apply) -> LossFn:
    """Return the masked-LM (+ next-sentence) loss of a model with the pretraining head.

    The batch holds `masked_positions` and `masked_ids`, int32 (B, P), `masked_weights`, float (B, P) with 1 at a real
    prediction and 0 at padding, and optionally `next_sentence_label`, int32 (B,) with 0 = follows, 1 = random; without
    it, or with a model that has no `nsp_logits`, there is no `nsp` term. `example_weights`, float (B,), optionally
    removes rows (0) from both terms. Terms: `mlm`, `nsp`, in nats; metrics: `mlm_accuracy`, `nsp_accuracy`.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        out = apply(params, batch, key=key)
        weights_B = example_weights(batch)
        weights_BP = batch["masked_weights"].astype(jnp.float32) * weights_B[:, None]
        terms, metrics = {}, {}
        terms["mlm"], metrics["mlm_accuracy"] = _classify(out["mlm_logits"], batch["masked_ids"], weights_BP)
        if "next_sentence_label" in batch and "nsp_logits" in out:
            nsp = _classify(out["nsp_logits"], batch["next_sentence_label"], weights_B)
            terms["nsp"], metrics["nsp_accuracy"] = nsp
        return terms, metrics

    return loss_fn


def classification_loss(apply: Apply) -> LossFn:
    """Return the cross-entropy of a classification head: `labels` int32 (B,) in [0, C), `example_weights` as above,
    into which class weights go; (B, S) each in rows that hold several examples.

    Term: `classification`, in nats; metric: `accuracy`.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        logits_BC = apply(params, batch, key=key)["logits"]
        term, accuracy = _classify(logits_BC, batch["labels"], example_weights(batch))
        return {"classification": term}, {"accuracy": accuracy}

    return loss_fn


def multi_label_loss(apply: Apply) -> LossFn:
    """Return the cross-entropy of a multi-label head's yes-or-no decisions, its mean over labels: `labels` float of 0
    and 1 (B, C), `example_weights` as above; (B, S, C) and (B, S) in rows that hold several examples.

    Term: `multi_label`, in nats; metric: `label_accuracy`, the share of right decisions.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        logits, labels = apply(params, batch, key=key)["logits"], batch["labels"].astype(jnp.float32)
        weights, nats = example_weights(batch), jax.nn.softplus(logits) - labels * logits
        right = (lax.stop_gradient(logits) > 0) == (labels > 0)
        count = jnp.sum(weights)
        term = jnp.sum(weights * jnp.mean(nats, -1)), count
        return {"multi_label": term}, {"label_accuracy": (jnp.sum(weights * jnp.mean(right, -1)), count)}

    return loss_fn


def regression_loss(apply: Apply) -> LossFn:
    """Return the squared error of a regression head: `labels` float (B,) or (B, S), `example_weights` as above.

    Term: `regression`, in squared label units; metric: `absolute_error`, in label units.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        labels_B = batch["labels"].astype(jnp.float32)
        term, error = _regress(apply(params, batch, key=key)["logits"], labels_B, example_weights(batch))
        return {"regression": term}, {"absolute_error": error}

    return loss_fn


def similarity_loss(apply: Apply) -> LossFn:
    """Return the squared error of the similarity head: the cosine of a pair of examples against its label.

    The pairs are rows 2 i and 2 i + 1, with float `labels` and `example_weights` (B / 2,); in rows that hold several
    examples they are segments 2 k + 1 and 2 k + 2, with `labels` and `example_weights` (B, S / 2). Term: `similarity`,
    in squared units of the cosine; metric: `absolute_error`.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        labels = batch["labels"].astype(jnp.float32)
        weights = batch.get("example_weights", jnp.ones_like(labels)).astype(jnp.float32)
        term, error = _regress(apply(params, batch, key=key)["logits"], labels, weights)
        return {"similarity": term}, {"absolute_error": error}

    return loss_fn


LOSSES: dict[Head, Callable[[Apply], LossFn]] = {
    "pretraining": pretraining_loss,
    "classification": classification_loss,
    "multi_label": multi_label_loss,
    "regression": regression_loss,
    "similarity": similarity_loss,
}
"""The loss that trains each head."""


def example_weights(batch: Mapping[str, Array]) -> Array:
    """What each example of a batch counts for, float32 (B,) or (B, S): `example_weights`, or 1."""
    if "example_weights" in batch:
        return batch["example_weights"].astype(jnp.float32)
    return jnp.ones(batch["starts"].shape if "starts" in batch else batch["input_ids"].shape[:1], jnp.float32)


def _classify(logits: Array, labels: Array, weights: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return weighted (sum, count) of the cross-entropy and of the hits, over the last axis of float32 logits."""
    nats = _cross_entropy(logits, labels)
    hits = jnp.argmax(lax.stop_gradient(logits), -1).astype(labels.dtype) == labels
    count = jnp.sum(weights)
    return (jnp.sum(weights * nats), count), (jnp.sum(weights * hits), count)


def _regress(scores: Array, labels: Array, weights: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return weighted (sum, count) of the squared and of the absolute error."""
    error, count = scores - labels, jnp.sum(weights)
    return (jnp.sum(weights * error**2), count), (jnp.sum(weights * jnp.abs(error)), count)


@jax.custom_jvp
def _cross_entropy(logits: Array, labels: Array) -> Array:
    """Return `logsumexp(logits) - logits[label]` over the last axis; a label outside [0, V) gives NaN.

    The derivative is written out, `softmax - one_hot`, so that the backward pass is one elementwise kernel: no scatter
    for the label, no exponentials kept from the forward pass.
    """
    label_logits = jnp.take_along_axis(logits, labels[..., None], -1, mode="fill", wrap_negative_indices=False)
    return jax.nn.logsumexp(logits, -1) - label_logits[..., 0]


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    logits, labels = primals
    log_z = jax.nn.logsumexp(logits, -1, keepdims=True)
    is_label = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    slope = jnp.exp(logits - log_z) - is_label
    return _cross_entropy(logits, labels), jnp.sum(slope * tangents[0], -1)
