"""Weight pruning on pytrees: masks, criteria, thresholds, schedules. Imports JAX alone."""

from jaxprune.pruning.criteria import CRITERIA, Criterion, magnitude, random
from jaxprune.pruning.masks import apply_masks, changed_counts, init_masks, leaf_counts, smallest_kept, sparsity
from jaxprune.pruning.schedules import SCHEDULES, cubic, linear, one_shot, plan
from jaxprune.pruning.scopes import SCOPES
from jaxprune.pruning.thresholds import METHODS, keep_top, kth_largest, prune, select

__all__ = [
    "CRITERIA",
    "METHODS",
    "SCHEDULES",
    "SCOPES",
    "Criterion",
    "apply_masks",
    "changed_counts",
    "cubic",
    "init_masks",
    "keep_top",
    "kth_largest",
    "leaf_counts",
    "linear",
    "magnitude",
    "one_shot",
    "plan",
    "prune",
    "random",
    "select",
    "smallest_kept",
    "sparsity",
]
