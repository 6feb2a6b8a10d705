"""Criteria that look at what goes into each matrix: how much of its output is lost with a weight."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg

from jaxprune.pruning.interface import Criterion
from jaxprune.pruning.inverses import among, inverse, product
from jaxprune.pruning.masks import on_prunable

DAMPING = 0.01
"""What is added to the diagonal of the inputs' products, as a share of its mean (SparseGPT's)."""
_AT_ONCE = 8  # inverses
_TOLERANCE, _ROUNDS = 1e-4, 200  # of the conjugate gradients


def _none(params, masks):
    return on_prunable(lambda w: jnp.zeros((w.shape[-2], w.shape[-2]), jnp.float32), masks, params)


def _added(state, params, masks, inputs):
    return on_prunable(jnp.add, masks, state, inputs)


def _damped(products: jax.Array) -> jax.Array:
    """X^T X (n, n) with a diagonal that makes it definite."""
    return products + (DAMPING * jnp.mean(jnp.diagonal(products)) + 1e-12) * jnp.eye(products.shape[-1])


def _share(products: jax.Array, w: jax.Array) -> jax.Array:
    """abs(w) times the norm of the input that it multiplies, over all tokens."""
    return jnp.abs(w.astype(jnp.float32)) * jnp.sqrt(jnp.diagonal(products))[:, None]


def _worth(products: jax.Array, w: jax.Array, live: jax.Array) -> jax.Array:
    """w^2 / (2 [H^-1]_ii): how an output's squared error rises without a weight that the other live ones make up for.

    One inverse where all of w (n, m) is live; else one for each of the m outputs, of what is live of its inputs.
    """
    matrix = _damped(products)

    def of_all(_):
        return jnp.broadcast_to(jnp.diagonal(inverse(matrix))[:, None], w.shape)

    def of_each(live):
        return lax.map(lambda some: jnp.diagonal(inverse(among(matrix, some))), live.T, batch_size=_AT_ONCE).T

    diagonal = lax.cond(jnp.all(live), of_all, of_each, live)
    return jnp.square(w.astype(jnp.float32)) / (2 * diagonal)


def _compensate(products: jax.Array, w: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    """The kept weights (n, m) that give the output of `w` with the least squared error; the others 0.

    All m outputs at once by conjugate gradients: products with (n, n) alone.
    """
    matrix, wide = _damped(products), w.astype(jnp.float32)
    scale = 1 / jnp.diagonal(matrix)[:, None]

    def seen(x):
        return jnp.where(after, product(matrix, jnp.where(after, x, 0)), 0)

    wanted = jnp.where(after, product(matrix, jnp.where(before, wide, 0)), 0)
    start = jnp.where(after, wide, 0)
    solved, _ = cg(seen, wanted, start, tol=_TOLERANCE, maxiter=_ROUNDS, M=lambda x: scale * x)
    return solved.astype(w.dtype)


wanda = Criterion(
    init=_none,
    observe=_added,
    score=lambda state, params, masks, key: on_prunable(_share, masks, state, params),
    watches="inputs",
)
"""abs(w) times the norm of its input (Sun et al. 2023; there compared among the weights of each output)."""
obs = Criterion(
    init=_none,
    observe=_added,
    score=lambda state, params, masks, key: on_prunable(_worth, masks, state, params, masks),
    compensate=lambda state, params, before, after: on_prunable(_compensate, after, state, params, before, after),
    watches="inputs",
)
"""Optimal Brain Surgeon of each matrix by itself: w^2 / (2 [H^-1]_ii) by the products H of its inputs, and the least
squares that go with it (Hassibi & Stork 1993). SparseGPT (Frantar & Alistarh 2023) goes through the inputs one by one
instead, each weight made up for by later ones alone: quicker for matrices of many thousand inputs."""
