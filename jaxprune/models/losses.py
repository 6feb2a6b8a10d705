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

from jaxprune.models.architecture import Head

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
        weights_B = _example_weights(batch)
        weights_BP = batch["masked_weights"].astype(jnp.float32) * weights_B[:, None]
        terms, metrics = {}, {}
        terms["mlm"], metrics["mlm_accuracy"] = _classify(out["mlm_logits"], batch["masked_ids"], weights_BP)
        if "next_sentence_label" in batch and "nsp_logits" in out:
            nsp = _classify(out["nsp_logits"], batch["next_sentence_label"], weights_B)
            terms["nsp"], metrics["nsp_accuracy"] = nsp
        return terms, metrics

    return loss_fn


def classification_loss(apply: Apply) -> LossFn:
    """Return the cross-entropy of a classification head: `labels` int32 (B,) in [0, C), `example_weights` as above.

    Term: `classification`, in nats; metric: `accuracy`.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        logits_BC = apply(params, batch, key=key)["logits"]
        term, accuracy = _classify(logits_BC, batch["labels"], _example_weights(batch))
        return {"classification": term}, {"accuracy": accuracy}

    return loss_fn


def regression_loss(apply: Apply) -> LossFn:
    """Return the squared error of a regression head: `labels` float (B,), `example_weights` as above.

    Term: `regression`, in squared label units; metric: `absolute_error`, in label units.
    """

    def loss_fn(params: Any, frozen: Any, batch: Mapping[str, Array], key: Array | None = None) -> tuple[Sums, Sums]:
        error_B = apply(params, batch, key=key)["logits"] - batch["labels"].astype(jnp.float32)
        weights_B = _example_weights(batch)
        count = jnp.sum(weights_B)
        squared, absolute = jnp.sum(weights_B * error_B**2), jnp.sum(weights_B * jnp.abs(error_B))
        return {"regression": (squared, count)}, {"absolute_error": (absolute, count)}

    return loss_fn


LOSSES: dict[Head, Callable[[Apply], LossFn]] = {
    "pretraining": pretraining_loss,
    "classification": classification_loss,
    "regression": regression_loss,
}
"""The loss that trains each head."""


def _example_weights(batch: Mapping[str, Array]) -> Array:
    if "example_weights" in batch:
        return batch["example_weights"].astype(jnp.float32)
    return jnp.ones(batch["input_ids"].shape[:1], jnp.float32)


def _classify(logits: Array, labels: Array, weights: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return weighted (sum, count) of the cross-entropy and of the hits, over the last axis of float32 logits."""
    nats = _cross_entropy(logits, labels)
    hits = jnp.argmax(lax.stop_gradient(logits), -1).astype(labels.dtype) == labels
    count = jnp.sum(weights)
    return (jnp.sum(weights * nats), count), (jnp.sum(weights * hits), count)


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
