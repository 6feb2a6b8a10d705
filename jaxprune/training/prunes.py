"""When a run prunes, and how far."""

from jaxprune.config import PruneConfig
from jaxprune.pruning import SCHEDULES, plan


def plan_of(prune: PruneConfig, steps: int) -> dict[int, float]:
    """Step -> sparsity for every prune within `steps`; empty when nothing is to be pruned."""
    if prune.sparsity == 0:
        return {}
    schedule = SCHEDULES[prune.schedule](prune.sparsity, begin=prune.begin, end=prune.end, initial=prune.initial)
    prunes = plan(schedule, begin=prune.begin, end=prune.end, every=prune.every)
    if prune.refresh:
        prunes |= plan(schedule, begin=prune.begin, end=steps, every=prune.every)
    return prunes
