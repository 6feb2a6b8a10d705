"""What jaxprune knows of an architecture: one record, written in the architecture's own file."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from jaxprune.config.sections import ModelConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.models.model import Head, Model, Pooling
from jaxprune.models.units import Units
from jaxprune.pruning.interface import Scope


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
    units: Mapping[str, Units] = MappingProxyType({})
    """What of a layer can be left out with all its weights, and a structure of pruning: `heads`, `neurons`."""


def encoder_matrices(architecture: Architecture, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are matrices of encoder layers: prunable, but neither embeddings, pooler nor heads."""
    others = re.compile("|".join((re.escape(architecture.word_embeddings), *architecture.optional)))
    prunable = re.compile("|".join(architecture.prunable))
    return [path for path in paths if prunable.fullmatch(path) and not others.fullmatch(path)]
