"""Weight pruning on pytrees: masks, criteria, structures, thresholds, schedules. Imports JAX alone."""

from jaxprune.pruning.criteria import CRITERIA, Criterion
from jaxprune.pruning.distributions import DISTRIBUTIONS
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.interface import Amounts, Pruner, PruneReport, Scope, Structure, Tile
from jaxprune.pruning.masks import apply_masks, init_masks, leaf_counts, sparsity
from jaxprune.pruning.pruner import keep_top, pruner, select
from jaxprune.pruning.schedules import SCHEDULES, cubic, linear, one_shot, plan
from jaxprune.pruning.structures import STRUCTURES
from jaxprune.pruning.thresholds import METHODS

__all__ = [
    "CRITERIA",
    "DISTRIBUTIONS",
    "METHODS",
    "SCHEDULES",
    "SCOPES",
    "STRUCTURES",
    "Amounts",
    "Criterion",
    "PruneReport",
    "Pruner",
    "Scope",
    "Structure",
    "Tile",
    "apply_masks",
    "cubic",
    "init_masks",
    "keep_top",
    "leaf_counts",
    "linear",
    "one_shot",
    "plan",
    "pruner",
    "select",
    "sparsity",
]
