"""Vectors at chosen positions of a row, and where its examples begin. Shape suffixes: see `layers.py`."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array


def take_positions(x_BLD: Array, positions_BP: Array) -> Array:
    """Return (B, P, D): for each example the vectors at its positions; one outside [0, L) gives NaN."""
    return jnp.take_along_axis(
        x_BLD, positions_BP[..., None], 1, mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )


def first_positions(batch: Mapping[str, Array]) -> Array:
    """Where the examples of a row begin, int32 (B, S): at `starts` (B, S), else at 0."""
    return batch["starts"] if "starts" in batch else jnp.zeros_like(batch["input_ids"][:, :1])


def first_tokens(x_BLD: Array, batch: Mapping[str, Array], at_BS: Array | None = None) -> Array:
    """The vectors of each example's first token: (B, D); of rows that hold several (B, S, D).

    With `at_BS`, `x_BLD` has those positions alone.
    """
    if at_BS is None:
        x_BLD = take_positions(x_BLD, first_positions(batch))
    return x_BLD if "starts" in batch else x_BLD[:, 0]
