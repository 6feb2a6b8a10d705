"""Which of the paper's three regimes a sparsity falls in, judged against the noise of the seeds.

Gordon et al. 2020 (arXiv:2002.08307): low sparsity changes neither pre-training loss nor transfer; medium sparsity
raises the pre-training loss and keeps useful pre-training information from the tasks; high sparsity also keeps the
model from fitting the tasks' training data. The paper has one run per cell; here a change counts once it is larger than
the 95 % interval that fine-tuning seeds leave.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.contrast import Difference, contrast, pooled
from jaxprune.analysis.statistics import t975

Row = Mapping[str, Any]
FREE, INFORMATION, FITTING = 1, 2, 3

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
    score: Difference | None
    """In units of the metrics; None if nothing was measured on both sides."""
    train_loss: Difference | None
    """Nats."""
    regime: int | None
    """FREE, INFORMATION or FITTING; None: cannot tell."""
    why: str = ""
    """Why it cannot be told."""


@dataclasses.dataclass(frozen=True)
class Regimes:
    """The verdict over all sparsities, ascending, the unpruned one first."""

    levels: tuple[Level, ...]
    why: str = ""
    """Why nothing can be told at all; empty if something can."""
    tasks: tuple[str, ...] = ()
    """Tasks the verdict rests on."""
    left_out: tuple[str, ...] = ()
    """Tasks whose unpruned model does not beat the majority line: they have nothing to lose."""
    lead: float = math.nan
    """Mean over `tasks` of (unpruned score - majority line)."""

    def span(self, regime: int | None) -> tuple[float, ...]:
        """Targets of a regime, ascending, the unpruned one left out."""
        return tuple(level.target for level in self.levels[1:] if level.regime == regime)

    @property
    def free_up_to(self) -> float:
        """The highest target below which, itself included, every target is free; 0 if none is; NaN if unknown."""
        if self.why or not self.levels:
            return math.nan
        best = self.levels[0].target
        for level in self.levels[1:]:
            if level.regime != FREE:
                break
            best = level.target
        return best


def regimes(runs: Sequence[Row], scores: Sequence[Row]) -> Regimes:
    """Judge every target of `runs` against the run with target 0; the records are those of `report.report`.

    Per task the variance of a score is pooled over all targets; the noise of a change is Student's t (97.5 %,
    Welch-Satterthwaite degrees of freedom over tasks) times the standard error of the difference of two means.
    A change that stays inside the noise counts as free only if the noise is at most half of the unpruned model's lead
    over the majority line: else a loss of half of what pre-training gave could hide in it, and the verdict is "cannot
    tell". A loss of score is FITTING if the training loss rises too, by more than its noise and `FITTING_RISE`, else
    INFORMATION. The regimes speak of averages over tasks, each by the first metric its records name.
    """
    targets = sorted({float(run["target"]) for run in runs})
    loss = {t: float(np.mean([float(run["dev_loss"]) for run in runs if float(run["target"]) == t])) for t in targets}
    if not targets or targets[0] != 0:
        levels = tuple(Level(t, loss[t], math.nan, None, None, None) for t in targets)
        return Regimes(levels, "no run is unpruned (target 0), so there is nothing to compare with")

    table = cells(scores, "score")
    base = loss[targets[0]]
    plain = tuple(Level(t, loss[t], loss[t] - base, None, None, None) for t in targets)
    if not any((0.0, task) in table for task in _tasks(table)):
        return Regimes(plain, "no task was scored on the unpruned model")
    spread = {task: pooled(table, task) for task in _tasks(table)}
    if not any(dof for _, dof in spread.values()):
        return Regimes(
            tuple(_level(t, loss, base, table, cells(scores, "train_loss"), _tasks(table)) for t in targets),
            "every task was fine-tuned with one seed, so chance cannot be told from an effect",
        )
    majority = {str(row["task"]): float(row["majority"]) for row in scores if row.get("majority") is not None}
    used, left_out, leads = [], [], []
    for task in _tasks(table):
        values = table.get((0.0, task))
        variance, dof = spread[task]
        if values is None or not dof:
            left_out.append(task)
            continue
        lead = float(np.mean(values)) - majority.get(task, 0.0)
        if lead > t975(dof) * math.sqrt(variance / len(values)):
            used.append(task)
            leads.append(lead)
        else:
            left_out.append(task)
    if not used:
        why = f"the unpruned model does not beat the majority line on {', '.join(left_out)}, so it has nothing to lose"
        return Regimes(plain, why, (), tuple(left_out))
    lead = float(np.mean(leads))
    losses = cells(scores, "train_loss")
    levels = tuple(_judge(_level(t, loss, base, table, losses, used), lead) for t in targets)
    return Regimes(levels, "", tuple(used), tuple(left_out), lead)


def cells(scores: Sequence[Row], column: str) -> dict[tuple[float, str], list[float]]:
    """(target, task) -> the values of its seeds, for the first metric of each task; empty values are left out."""
    first: dict[str, str] = {}
    out: dict[tuple[float, str], list[float]] = {}
    for row in scores:
        task, value = str(row["task"]), row.get(column)
        main = first.setdefault(task, str(row["metric"])) == str(row["metric"])
        if main and value is not None and math.isfinite(float(value)):
            out.setdefault((float(row["target"]), task), []).append(float(value))
    return out


def _tasks(table: Mapping[tuple[float, str], Any]) -> list[str]:
    return list(dict.fromkeys(task for _, task in table))


def _level(
    target: float,
    loss: Mapping[float, float],
    base: float,
    scores: Mapping[tuple[float, str], list[float]],
    losses: Mapping[tuple[float, str], list[float]],
    tasks: Sequence[str],
) -> Level:
    """One target's changes, not yet judged."""
    score, train_loss = contrast(scores, target, 0.0, tasks), contrast(losses, target, 0.0, tasks)
    return Level(target, loss[target], loss[target] - base, score, train_loss, None)


def _judge(level: Level, lead: float) -> Level:
    if level.target == 0:
        return dataclasses.replace(level, regime=FREE)
    score, train = level.score, level.train_loss
    if score is None:
        return dataclasses.replace(level, why="no task was scored at this sparsity")
    if math.isnan(score.noise):
        return dataclasses.replace(level, why="one seed only")
    if score.change < -score.noise:
        worse = train is not None and train.change > max(train.noise, FITTING_RISE)
        return dataclasses.replace(level, regime=FITTING if worse else INFORMATION)
    if score.noise > lead / 2:
        why = f"the seeds leave ±{100 * score.noise:.1f} points, more than half of the {100 * lead:.1f} points to lose"
        return dataclasses.replace(level, why=why)
    return dataclasses.replace(level, regime=FREE)
