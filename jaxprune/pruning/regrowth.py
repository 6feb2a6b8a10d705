"""Regrowth: at each prune some of the kept weights go, the lowest, and as many pruned ones come back, from 0."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.pruning.integers import wide_part, wide_sub
from jaxprune.pruning.interface import Amounts, Criterion

Fraction = float | Callable[[jax.Array], jax.Array]
"""A fraction in [0, 1], or (step, an int32 scalar) -> one."""


class Regrowth(NamedTuple):
    """`criterion` says which pruned weights come back: those that score highest. `fraction`: how many of those that a
    prune keeps."""

    criterion: Criterion
    fraction: Fraction


def fewer(amounts: Amounts, regrowth: Regrowth, step: jax.Array | int) -> Amounts:
    """What is kept before any weight comes back: of every group floor(fraction x kept) tiles less."""
    fraction = regrowth.fraction
    value = jnp.asarray(fraction(jnp.asarray(step, jnp.int32)) if callable(fraction) else fraction, jnp.float32)
    return Amounts(
        wide_sub(amounts.kept, wide_part(amounts.kept, value)), amounts.sparsity, amounts.regexes, amounts.sizes
    )


def ahead(kept: jax.Array, scores: jax.Array) -> jax.Array:
    """Scores that rank what is kept before everything else."""
    return jnp.where(kept, jnp.inf, jnp.minimum(scores.astype(jnp.float32), jnp.finfo(jnp.float32).max))
