"""The three regimes of pruning in words: their names, and what a study or a demo found, in one sentence."""

from collections.abc import Sequence

from jaxprune.analysis.pruning_cost import FITTING, FREE, INFORMATION, PruningCost
from jaxprune.reports.number_text import listed, percent

NAMES = {FREE: "Free", INFORMATION: "Knowledge lost", FITTING: "Fitting hampered", None: "Cannot tell"}


def headline(cost: PruningCost) -> str:
    """The verdict in one sentence."""
    if cost.why:
        return f"Cannot tell what pruning costs: {cost.why}."
    if len(cost.levels) < 2:
        return "Only the unpruned model was measured."
    free, first = cost.free_up_to, cost.levels[1]
    lost, fitting, unknown = (cost.span(regime) for regime in (INFORMATION, FITTING, None))
    parts = []
    if free > 0:
        parts.append(f"pruning up to {percent(free)} is free within the noise")
    elif first.regime in (INFORMATION, FITTING):
        parts.append(f"no sparsity measured is free: {percent(first.target)} already costs score")
    if lost and (free > 0 or len(cost.levels) > 2):
        parts.append(f"{stretch(lost, cost)} {'loses' if len(lost) == 1 else 'lose'} pre-training knowledge")
    if fitting:
        also, verb = "also " if parts else "", "hampers" if len(fitting) == 1 else "hamper"
        parts.append(f"{stretch(fitting, cost)} {also}{verb} fitting the tasks")
    if unknown:
        parts.append(f"about {listed([*map(percent, unknown)])} the seeds do not tell")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def stretch(targets: Sequence[float], cost: PruningCost) -> str:
    """Neighbouring measured targets in short: `up to 50 %`, `70 % to 90 %`; others one by one."""
    measured = [level.target for level in cost.levels]
    first, last, count = measured.index(targets[0]), percent(targets[-1]), len(targets)
    if measured[first : first + count] == list(targets) and (count > 2 or first == 0):
        return f"{percent(targets[0])} to {last}" if first else f"up to {last}" if count > 1 else last
    return listed([*map(percent, targets)])
