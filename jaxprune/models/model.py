"""A model as two pure functions, and what goes in and out of them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jax import Array

Head = Literal["pretraining", "classification", "multi_label", "regression", "similarity"]
HEADS: tuple[Head, ...] = ("pretraining", "classification", "multi_label", "regression", "similarity")
TASK_HEADS: tuple[Head, ...] = ("classification", "multi_label", "regression")
"""Those that read the first token's vector alone."""
Pooling = Literal["mean", "cls"]
"""How a sentence's vector comes from its tokens': their mean, or the first one."""
Params = dict[str, Any]
Batch = Mapping[str, Array]


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]
    """`init(key) -> params`: a nested dict of float32 arrays; works under `jit` and `eval_shape`."""
    apply: Callable[..., dict[str, Any]]
    """`apply(params, batch, *, key=None, hidden_states=False, inputs=False) -> outputs`; without a key no dropout.
    With `inputs` they hold {path of a kernel: what it multiplies, (B, L, n)} under that name.

    Rows of fine-tuning hold several examples, kept apart by `segment_ids`; `bert` tells what a batch has.
    """
