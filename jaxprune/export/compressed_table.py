"""Word embeddings that stay compressed in memory: rows are decoded as they are looked up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models import architecture_named
from jaxprune.models.model import Batch, Params
from jaxprune.models.sparse_file import Tensor


class CompressedTable(NamedTuple):
    """A packed table (V, D) as a pytree: at 90 % zeros and bfloat16 a tenth of its float32."""

    mask: Array
    """uint8 (V, ceil(D / 8)), the first weight the highest bit."""
    values: Array
    """float32, bfloat16, float16 or int8 (kept,)."""
    starts: Array
    """int32 (V,): where each row's values begin."""
    scales: Array
    """float32 (V,)."""


def compressed(tensor: Tensor, *, name: str) -> CompressedTable:
    """The table of a packed tensor; UserError where it is not packed."""
    if tensor.mask is None or tensor.starts is None:
        raise UserError(f"{name}: its word embeddings are not packed; prune them, or load them without compression")
    values: Any = tensor.values if len(tensor.values) else np.zeros(1, tensor.values.dtype)  # to take from
    values = values.view(jnp.bfloat16) if tensor.dtype == "BF16" else values
    scales = np.ones(tensor.shape[0], np.float32) if tensor.scales is None else tensor.scales
    parts = (tensor.mask, values, tensor.starts.astype(np.int32), scales)
    return CompressedTable(*(jnp.asarray(np.array(part)) for part in parts))


def rows(table: CompressedTable, ids: Array, columns: int) -> Array:
    """Rows (N, D) of a table in float32, of int ids (N,); works under `jit`."""
    shifts = jnp.arange(7, -1, -1, dtype=jnp.uint8)
    bits = (table.mask[ids][..., None] >> shifts[None, None]) & 1
    kept = bits.reshape(len(ids), -1)[:, :columns]
    at = table.starts[ids][:, None] + jnp.cumsum(kept, 1, dtype=jnp.int32) - 1
    values = jnp.take(table.values, at, mode="clip").astype(jnp.float32) * table.scales[ids][:, None]
    return jnp.where(kept == 1, values, 0.0)


def looked_up(params: Params, batch: Batch, model: ModelConfig) -> tuple[Params, Batch]:
    """Params and batch that a model's `apply` takes, of params whose word embeddings are a CompressedTable.

    The table that `apply` sees has a row per token of the batch. Padding keeps its id. Not for the pretraining head,
    which needs all rows.
    """
    path = architecture_named(model.architecture).word_embeddings
    flat: dict[str, Any] = flatten_dict(params, sep="/", is_leaf=lambda _, leaf: isinstance(leaf, CompressedTable))
    if not isinstance(flat[path], CompressedTable):
        return params, batch
    ids, pad = jnp.asarray(batch["input_ids"]), model.pad_token_id
    order = jnp.concatenate([jnp.full(pad + 1, pad), ids.reshape(-1)])
    new = jnp.where(ids == pad, pad, pad + 1 + jnp.arange(ids.size).reshape(ids.shape))
    flat[path] = rows(flat[path], order, model.hidden_size)
    return unflatten_dict(flat, sep="/"), dict(batch) | {"input_ids": new}


def nbytes(table: CompressedTable) -> int:
    """Bytes that a table takes."""
    return sum(part.nbytes for part in jax.tree.leaves(table))
