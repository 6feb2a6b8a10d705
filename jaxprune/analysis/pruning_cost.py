"""What each sparsity costs: which of the paper's three regimes it falls in, judged against the noise of the seeds.

Gordon et al. 2020 (arXiv:2002.08307): low sparsity changes neither pre-training loss nor transfer; medium sparsity
raises the pre-training loss and keeps useful pre-training information from the tasks; high sparsity also keeps the
model from fitting the tasks' training data. The paper has one run per cell; here a change counts once it is larger than
the 95 % interval that the seeds leave and than `MATTERS` of what there is to lose.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from jaxprune.analysis.intervals import (
    Estimate,
    Replicates,
    difference,
    paired_change,
    pooled_variance,
    replicates,
    shared_tasks,
    t975,
)

FREE, INFORMATION, FITTING = 1, 2, 3
"""Regimes."""
MATTERS = 0.025
"""The share of the unpruned model's lead over the majority line from which a change of the score counts, whatever a
model has learned. Applied to Table 1 of the paper, where it is 0.9 points, it leaves free what the paper calls so, 30
to 40 %."""
FITTING_RISE = 0.1
"""Rise of the tasks' training loss, nats, from which fitting counts as hampered: the right labels of the training set
get 1 - exp(-0.1) = a tenth less probability. Applied to Table 1 of the paper it puts 70 % and above there, where the
paper's information-deletion models (same start, all weights free to train) begin to score better."""


@dataclasses.dataclass(frozen=True)
class Level:
    """What one sparsity costs."""

    target: float
    dev_loss: float
    """Mean over the runs with this target, nats."""
    dev_loss_change: float
    """Against the unpruned model, over the seeds that both were pre-trained with."""
    score: Estimate | None
    """Change in units of the metrics; None if nothing was measured on both sides."""
    train_loss: Estimate | None
    """Change in nats."""
    tasks: tuple[str, ...] = ()
    """Tasks that the change of the score is over: those of the verdict that were scored at this sparsity."""
    regime: int | None = None
    """FREE, INFORMATION or FITTING; None: cannot tell."""
    why: str = ""
    """Why it cannot be told."""


@dataclasses.dataclass(frozen=True)
class PruningCost:
    """The verdict over all sparsities, ascending, the unpruned one first."""

    levels: tuple[Level, ...]
    why: str = ""
    """Why nothing can be told at all; empty if something can."""
    tasks: tuple[str, ...] = ()
    """Tasks the verdict rests on."""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The other tasks, and why each is left out."""
    leads: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of `tasks`: unpruned score - majority line, what there is to lose."""

    @property
    def reasons(self) -> str:
        """`left_out` in words, a reason once."""
        tasks = {
            why: [task for task, reason in self.left_out.items() if reason == why] for why in self.left_out.values()
        }
        return "; ".join(f"{', '.join(names)}: {why}" for why, names in tasks.items())

    def matters(self, tasks: Sequence[str] = ()) -> float:
        """The least change of the mean score of `tasks` (none: of all) that counts."""
        return MATTERS * float(np.mean([self.leads[task] for task in tasks or self.tasks]))

    @property
    def visible(self) -> float:
        """The least change of the mean score that the seeds can show at every sparsity; NaN if none."""
        halves = [level.score.half for level in self.levels[1:] if level.score is not None]
        return max(halves, default=math.nan)

    def span(self, regime: int | None) -> tuple[float, ...]:
        """Targets of a regime, ascending, the unpruned one left out."""
        return tuple(level.target for level in self.levels[1:] if level.regime == regime)

    @property
    def free_up_to(self) -> float:
        """The highest target below which, itself included, every target is free; 0 if none is; NaN if unknown."""
        if self.why or not self.levels:
            return math.nan
        costly = (i for i, level in enumerate(self.levels) if i and level.regime != FREE)
        return self.levels[next(costly, len(self.levels)) - 1].target


def pruning_cost(runs: Any, scores: Any, others: Any = ()) -> PruningCost:
    """Judge every target of `runs` against the run with target 0; each is a DataFrame or a list of dicts.

    runs: `target`, `dev_loss` (nats), and where known `seed`; scores: `target`, `task`, `metric`, `score`, and where
    known `seed`, `start` (the pre-training run), `train_loss` (nats) and `majority` (the score of always answering the
    commonest class). others: scores of other models of the same study, by `condition` and `variant` too; they are not
    judged, but what chance does is told from them as well.

    A change and its noise are those of `difference`. It is a loss if it lies below 0 by more than its noise, and by at
    least `MATTERS` of the unpruned model's lead over the majority line; it is FREE if it is no loss and its interval
    leaves out a loss of twice that; else the verdict is "cannot tell". A loss is FITTING if the training loss rises
    too, by more than its noise and `FITTING_RISE`, else INFORMATION. The regimes speak of averages over tasks, each by
    the first metric its rows name.
    """
    runs, scores, others = pandas.DataFrame(runs), pandas.DataFrame(scores), pandas.DataFrame(others)
    losses = {float(target): float(loss) for target, loss in runs.groupby("target")["dev_loss"].mean().items()}
    ours, rest = ["target"], ["condition", "variant", "target"]
    cells, train = (
        {**replicates(scores, column, ours), **replicates(others, column, rest)} for column in ("score", "train_loss")
    )
    scored = list(dict.fromkeys(task for setting, task in cells if not isinstance(setting, tuple)))

    def levels(tasks: Sequence[str]) -> tuple[Level, ...]:
        rows = {target: runs[runs["target"] == target] for target in (0.0, *losses)}
        return tuple(
            Level(
                target,
                loss,
                paired_change(rows[target], rows[0.0], "dev_loss"),
                difference(cells, target, 0.0, tasks),
                difference(train, target, 0.0, tasks),
                tuple(shared_tasks(cells, target, 0.0, tasks)),
            )
            for target, loss in losses.items()
        )

    if 0.0 not in losses:
        return PruningCost(levels(()), "no run is unpruned (target 0), so there is nothing to compare with")
    if not any((0.0, task) in cells for task in scored):
        return PruningCost(levels(()), "no task was scored on the unpruned model")
    if not any(pooled_variance(cells, task)[1] for task in scored):
        why = "every task was fine-tuned with one seed, so chance cannot be told from an effect"
        return PruningCost(levels(scored), why)
    majority = scores.dropna(subset="majority").groupby("task")["majority"].last() if "majority" in scores else {}
    found = {task: _lead(cells, task, majority) for task in scored}
    leads = {task: lead for task, lead in found.items() if isinstance(lead, float)}
    left_out = {task: why for task, why in found.items() if isinstance(why, str)}
    cost = PruningCost((), "", tuple(leads), left_out, leads)
    if not leads:
        return dataclasses.replace(cost, levels=levels(()), why=f"no task counts ({cost.reasons})")
    judged = tuple(_judged(level, cost.matters(level.tasks)) for level in levels(cost.tasks))
    return dataclasses.replace(cost, levels=judged)


def _lead(cells: Replicates, task: str, majority: Mapping[str, float]) -> float | str:
    """How far the unpruned model's score lies above the majority line, or why that cannot be counted on."""
    runs, (variance, dof) = cells.get((0.0, task)), pooled_variance(cells, task)
    if runs is None:
        return "not scored on the unpruned model"
    if not dof:
        return "one seed, so chance cannot be told from an effect"
    lead = float(np.mean([run.value for run in runs.values()])) - float(majority.get(task, 0.0))
    above = lead > t975(dof) * math.sqrt(variance / len(runs))
    return lead if above else "the unpruned model does not beat the majority line"


def _judged(level: Level, matters: float) -> Level:
    score, train = level.score, level.train_loss
    if level.target == 0:
        return dataclasses.replace(level, regime=FREE)
    if score is None:
        return dataclasses.replace(level, why="no task was scored at this sparsity")
    if math.isnan(score.half):
        return dataclasses.replace(level, why="one seed only")
    if score.high < 0 and score.mean <= -matters:
        worse = train is not None and train.mean > max(train.half, FITTING_RISE)
        return dataclasses.replace(level, regime=FITTING if worse else INFORMATION)
    if score.low < -2 * matters:
        why = (
            f"the seeds leave ±{100 * score.half:.1f} points, so a loss of {200 * matters:.1f} may hide there, "
            "a twentieth of what there is to lose"
        )
        return dataclasses.replace(level, why=why)
    return dataclasses.replace(level, regime=FREE)
