"""What jaxprune knows of an architecture: one record, written in the architecture's own file."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from jax import Array

from jaxprune.config.sections import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens

Head = Literal["pretraining", "classification", "multi_label", "regression", "similarity"]
HEADS: tuple[Head, ...] = ("pretraining", "classification", "multi_label", "regression", "similarity")
TASK_HEADS: tuple[Head, ...] = ("classification", "multi_label", "regression")
"""Those that read the first token's vector alone."""
Pooling = Literal["mean", "cls"]
"""How a sentence's vector comes from its tokens': their mean, or the first one."""
Params = dict[str, Any]
Batch = Mapping[str, Array]
Scope = Callable[[str, tuple[int, ...]], tuple[str, int | None, int] | None]
"""What `pruning` takes: (path, shape) -> (group, axis along which a leaf is split into `parts` groups or None, parts);
None where a leaf is a group of its own."""


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]
    """`init(key) -> params`: a nested dict of float32 arrays; works under `jit` and `eval_shape`."""
    apply: Callable[..., dict[str, Any]]
    """`apply(params, batch, *, key=None, hidden_states=False) -> outputs`; without a key there is no dropout.

    Rows of fine-tuning hold several examples, kept apart by `segment_ids`; `bert` tells what a batch has.
    """


class Build(Protocol):
    """`build(cfg, head=..., num_labels=...)` returns the model; UserError for a cfg or head that it cannot have.

    `pooling` concerns the similarity head alone.
    """

    def __call__(self, cfg: ModelConfig, *, head: Head, num_labels: int = 0, pooling: Pooling = "mean") -> Model: ...


class TrainFlops(Protocol):
    """FLOPs of forward and backward for one sequence: 3 x the forward matrix products (a multiply-add is 2)."""

    def __call__(self, cfg: ModelConfig, *, seq_len: int, predictions: int) -> float: ...


class Architecture(NamedTuple):
    """An architecture as the rest of the house sees it. Paths read `encoder/layer_00/attention/query/kernel`."""

    name: str
    """Hugging Face's `model_type`, and the key in ARCHITECTURES."""
    build: Build
    config_from_hf: Callable[[Mapping[str, Any], str], ModelConfig]
    """`(config.json, where it lies)` -> shape; UserError for what `build` does not compute exactly."""
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    """The shape under Hugging Face's keys."""
    classes: Mapping[Head, str]
    """The transformers class that loads each head."""
    tensors: tuple[tuple[str, str], ...]
    """(regex of a whole module path, Hugging Face's name of the module): `encoder/layer_0*(\\d+)/output`, ..."""
    prefix: str
    """What the encoder's tensor names begin with, and old files leave out: `bert.`"""
    tied: tuple[tuple[str, str], ...]
    """(tensor that a file may hold as a copy, tensor that it is a copy of)."""
    optional: tuple[str, ...]
    """Regexes of the paths that a file may lack, and a head leave unread: a pooler's, the heads'."""
    prunable: tuple[str, ...]
    """Regexes of the prunable paths where a config names none."""
    scopes: Callable[[ModelConfig], dict[str, Scope]]
    """Scopes beside `global` and `matrix`: `layer`, `head`."""
    special_tokens: SpecialTokens
    max_tokens: Callable[[ModelConfig], int]
    """Tokens of the longest sequence."""
    word_embeddings: str
    """Path of the word embedding table (V, D)."""
    parts: tuple[tuple[str, str], ...]
    """(part, regex of its paths), first match: what memory is reported by."""
    next_sentence: bool
    """Whether the pretraining head has a next-sentence task."""
    train_flops: TrainFlops
