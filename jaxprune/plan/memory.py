"""Where the HBM of one chip goes."""

import math
from typing import Any

import jax

from jaxprune.training.state import TrainState


def memory_parts(state: TrainState, frozen: Any, batch: Any, found: Any) -> dict[str, int]:
    """Bytes on one chip: the step's arguments by part, what layouts add to them, and what it needs besides.

    state, frozen (a teacher) and batch are ShapeDtypeStructs with shardings, found is the executable's
    `memory_analysis()`. The total counts temporaries as if they were all alive at once: a little above the peak.
    """
    parts = {
        "params": shard_bytes(state.params),
        "masks": shard_bytes(state.masks),
        "optimizer": shard_bytes(state.opt_state),
        "criterion": shard_bytes(state.pruner),
        "teacher": shard_bytes(frozen),
        "batch": shard_bytes(batch),
    }
    parts["layout_padding"] = found.argument_size_in_bytes - sum(parts.values())
    parts["activations_and_temporaries"] = found.temp_size_in_bytes
    parts["outputs_not_in_place"] = found.output_size_in_bytes - found.alias_size_in_bytes
    parts["code"] = found.generated_code_size_in_bytes
    return parts | {"total": sum(parts.values())}


def shard_bytes(tree: Any) -> int:
    """Bytes of one device's shards."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def elements(tree: Any) -> int:
    """Elements of all arrays."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
