"""The names that a config may use: the keys of the registries."""

from jaxprune.config.sections import ModelConfig
from jaxprune.data.corpus_files import FORMATS
from jaxprune.data.metrics import METRICS
from jaxprune.data.tasks import TASKS
from jaxprune.models import ARCHITECTURES
from jaxprune.models.units import structures
from jaxprune.pruning.criteria import BY_INPUTS, CRITERIA, REGROWTHS
from jaxprune.pruning.distributions import DISTRIBUTIONS
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.schedules import SCHEDULES
from jaxprune.pruning.structures import STRUCTURES
from jaxprune.pruning.thresholds import METHODS


def one_shot_criteria() -> list[str]:
    """The criteria that `jaxprune prune` takes, some with --calibration alone."""
    return [*CRITERIA, *BY_INPUTS]


def offers() -> dict[str, list[str]]:
    """Config key -> the names it takes."""
    scopes = (
        name for record in ARCHITECTURES.values() for name in record.scopes(ModelConfig(architecture=record.name))
    )
    units = (name for record in ARCHITECTURES.values() for name in structures(record.units, ModelConfig()))
    return {
        "criterion": [*CRITERIA],
        "distribution": [*DISTRIBUTIONS],
        "scope": [*SCOPES, *dict.fromkeys(scopes)],
        "structure": [*STRUCTURES, *dict.fromkeys(units)],
        "method": [*METHODS],
        "schedule": [*SCHEDULES],
        "regrow": [*REGROWTHS],
        "architecture": [*ARCHITECTURES],
        "format": ["auto", *FORMATS],
        "tasks": [*TASKS],
        "metrics": [*METRICS],
    }
