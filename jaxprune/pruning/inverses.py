"""Inverses of symmetric, positive definite matrices, in XLA's own operations.

`jnp.linalg` calls LAPACK on a CPU, whose wrapper waits within the pool of threads for work that it gives to the same
pool: once every thread waits, the program never ends. Several matrices at once on two cores are enough (jaxlib 0.10).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

product = functools.partial(jnp.matmul, precision="highest")
"""A matrix product in full float32, which a TPU would otherwise take in bfloat16."""


def inverse(matrices: jax.Array) -> jax.Array:
    """Inverses of `matrices` (..., n, n), float32, symmetric and positive definite: none other, as nothing pivots."""
    n = matrices.shape[-1]
    panel = math.ceil(n / math.ceil(n / max(12, math.isqrt(n))))  # rows at once
    more = -n % panel  # of the unit matrix, which change nothing
    padded = jnp.pad(matrices, [(0, 0)] * (matrices.ndim - 2) + [(0, more)] * 2)
    padded += jnp.expand_dims(jnp.diag(jnp.arange(n + more) >= n), [*range(matrices.ndim - 2)])
    return _eliminated(padded, panel, lambda pivot: _eliminated(pivot, 1, jnp.reciprocal))[..., :n, :n]


def unit_like(matrices: jax.Array) -> jax.Array:
    """The unit matrix, of as many axes as `matrices` (..., n, n)."""
    return jnp.expand_dims(jnp.eye(matrices.shape[-1]), [*range(matrices.ndim - 2)])


def among(matrices: jax.Array, some: jax.Array) -> jax.Array:
    """`matrices` (..., n, n) of `some` (..., n) alone; the others have the unit matrix, so that inverses exist."""
    return jnp.where(some[..., :, None] & some[..., None, :], matrices, unit_like(matrices))


def _eliminated(matrices: jax.Array, panel: int, inverted: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Gauss-Jordan elimination in place, `panel` rows at a time, whose square on the diagonal `inverted` inverts."""

    def step(i, m):
        at = i * panel
        rows, columns = (lax.dynamic_slice_in_dim(m, at, panel, axis) for axis in (-2, -1))
        pivot = inverted(lax.dynamic_slice_in_dim(rows, at, panel, -1))
        rows = product(pivot, rows)
        left = lax.dynamic_update_slice_in_dim(-product(columns, pivot), pivot, at, -2)
        m = lax.dynamic_update_slice_in_dim(m - product(columns, rows), rows, at, -2)
        return lax.dynamic_update_slice_in_dim(m, left, at, -1)

    return lax.fori_loop(0, matrices.shape[-1] // panel, step, matrices)
