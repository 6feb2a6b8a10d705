"""Frozen, validated settings: the only place with defaults. Imports no jax."""

from jaxprune.config.commands import COMMANDS, DemoConfig, FinetuneConfig, PrepareConfig, PretrainConfig
from jaxprune.config.sections import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PruneConfig,
    Section,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "COMMANDS",
    "DataConfig",
    "DemoConfig",
    "FinetuneConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PruneConfig",
    "Section",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
]
