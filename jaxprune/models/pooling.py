"""Vectors of sentences, and how alike two of them are. Shape suffixes: see `layers.py`."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxprune.models.model import Batch, Pooling
from jaxprune.models.positions import first_tokens


def sentence_vectors(x_BLD: Array, batch: Batch, pooling: Pooling) -> Array:
    """Return one float32 vector per example, not normalised: (B, D); of rows that hold several examples (B, S, D).

    `mean`: of its tokens' vectors, 0 where it has none; `cls`: the vector of its first token.
    """
    x_BLD = x_BLD.astype(jnp.float32)
    if pooling == "cls":
        return first_tokens(x_BLD, batch)
    if "segment_ids" in batch:
        own_BLS = jax.nn.one_hot(batch["segment_ids"] - 1, batch["starts"].shape[1], dtype=jnp.float32)
    else:
        own_BLS = (batch["attention_mask"] != 0)[..., None].astype(jnp.float32)
    sums_BSD = jnp.einsum("bls,bld->bsd", own_BLS, x_BLD, precision="highest")
    means_BSD = sums_BSD / jnp.maximum(jnp.sum(own_BLS, 1), 1.0)[..., None]
    return means_BSD if "segment_ids" in batch else means_BSD[:, 0]


def pair_cosines(vectors: Array) -> Array:
    """Return the cosine of each vector of even index on the last axis but one with the next: (..., 2 N, D) -> (..., N).

    Of a vector that is 0 it is 0.
    """
    pairs = vectors.reshape(*vectors.shape[:-2], vectors.shape[-2] // 2, 2, vectors.shape[-1])
    pairs = pairs * jax.lax.rsqrt(jnp.maximum(jnp.sum(pairs * pairs, -1, keepdims=True), 1e-12))
    return jnp.sum(pairs[..., 0, :] * pairs[..., 1, :], -1)
