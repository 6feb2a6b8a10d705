"""Frozen, validated settings: the only place with defaults. Imports no jax."""

from jaxprune.config.commands import DemoConfig, FinetuneConfig, PrepareConfig, PretrainConfig
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
from jaxprune.config.study import StudyConfig
from jaxprune.config.teacher import TeacherConfig

COMMANDS: dict[str, type[Section]] = {
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "study": StudyConfig,
}

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
    "StudyConfig",
    "TeacherConfig",
    "TokenizerConfig",
    "TrainConfig",
]
