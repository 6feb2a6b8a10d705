"""Means of a few seeds with their 95 % intervals, and the difference of two settings over several tasks."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as students_t

Frame = Any
"""A pandas.DataFrame; its indexing has too many forms for a type checker."""
Cells = Mapping[tuple[Any, str], Sequence[float]]
"""(setting, task) -> the values of its seeds."""


class Run(NamedTuple):
    """What one fine-tuning run scored."""

    value: float
    start: str = ""
    """The pre-training run it started from; empty where that is none of the setting's own, or not known."""


Replicates = Mapping[tuple[Any, str], Mapping[int, Run]]
"""(setting, task) -> {seed: run}. The same seed is the same order of the data and the same first classifier."""


class Estimate(NamedTuple):
    """A mean over n values, and half of its 95 % interval: NaN where there are no replicates."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def t975(dof: float) -> float:
    """The 97.5 % quantile of Student's t; NaN when dof <= 0."""
    return float(students_t.ppf(0.975, dof)) if dof > 0 else math.nan


def estimate(values: Sequence[float]) -> Estimate:
    """Mean +- t(n - 1) s / sqrt(n); mean and half are NaN without values. Values that are not finite are left out."""
    kept = np.asarray([v for v in values if v is not None and math.isfinite(v)], float)
    n = len(kept)
    half = t975(n - 1) * float(kept.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(kept.mean()) if n else math.nan, half, n)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates; its interval adds their halves in quadrature, NaN if one has none; n is the
    least of theirs."""
    if not estimates:
        return Estimate(math.nan, math.nan, 0)
    count = len(estimates)
    half = math.sqrt(math.fsum(e.half**2 for e in estimates)) / count
    return Estimate(math.fsum(e.mean for e in estimates) / count, half, min(e.n for e in estimates))


def paired_change(ours: Frame, other: Frame, column: str) -> float:
    """Mean of (ours - other) of a column over the values of `seed` that both have, of all rows where they share none
    or have no such column; NaN where either is empty."""
    sides = [rows.groupby("seed")[column].mean() if "seed" in rows else rows[column][:0] for rows in (ours, other)]
    paired = (sides[0] - sides[1]).dropna()
    return float(paired.mean() if len(paired) else ours[column].mean() - other[column].mean())


def seed_values(rows: Frame, column: str, setting: Sequence[str]) -> dict[tuple[Any, str], list[float]]:
    """{(setting, task): finite values of a column}, each task by the first of its metrics, in the order of the rows.

    A setting is the tuple of what the columns `setting` hold, or the plain value of a single one.
    """
    if column not in rows:
        return {}
    rows = rows[rows["metric"] == rows.groupby("task")["metric"].transform("first")].dropna(subset=column)
    groups = rows.groupby([*setting, "task"], sort=False)[column]
    cells = {(key[:-1] if len(setting) > 1 else key[0], str(key[-1])): values.tolist() for key, values in groups}
    return {cell: kept for cell, values in cells.items() if (kept := [float(v) for v in values if math.isfinite(v)])}


def replicates(rows: Frame, column: str, setting: Sequence[str]) -> Replicates:
    """The finite values of a column, as `seed_values` has them, by seed (by place where `rows` has none)."""
    if column not in rows:
        return {}
    rows = rows[rows["metric"] == rows.groupby("task")["metric"].transform("first")].dropna(subset=column)
    seeds = rows["seed"] if "seed" in rows else rows.groupby([*setting, "task"]).cumcount()
    starts = rows["start"] if "start" in rows else [""] * len(rows)
    cells: dict[tuple[Any, str], dict[int, Run]] = {}
    for *key, seed, start, value in zip(*(rows[name] for name in (*setting, "task")), seeds, starts, rows[column]):
        *names, task = key
        if math.isfinite(value):
            cell = cells.setdefault((tuple(names) if len(names) > 1 else names[0], str(task)), {})
            cell[int(seed)] = Run(float(value), start if isinstance(start, str) else "")
    return cells


def pooled_variance(cells: Replicates, task: str) -> tuple[float, int]:
    """Variance within the cells of a task, pooled over all settings, and its degrees of freedom; NaN and 0 if none."""
    groups = [[run.value for run in runs.values()] for (_, name), runs in cells.items() if name == task]
    dof = sum(len(values) - 1 for values in groups)
    return (sum(float(np.var(v)) * len(v) for v in groups) / dof if dof else math.nan), dof


class Noise(NamedTuple):
    """What chance adds to a score of one task: variances, and the degrees of freedom that they rest on."""

    run: float
    """Of a fine-tuning run, without what its seed does to all settings alike."""
    run_dof: int
    start: float
    """Of the pre-training run it starts from, without what its seed does to all of them alike; 0 where no cell was
    pre-trained more than once."""
    start_dof: int
    seed: float
    """Of what a seed of pre-training does to all models alike; 0 where no cell was pre-trained more than once."""
    seed_dof: int


def task_noise(cells: Replicates, task: str) -> Noise:
    """The noise of a task, from what is left of its scores when each setting and each seed has an effect of its own.

    Cells whose runs share a pre-training run show that of fine-tuning; cells pre-trained once per seed show both, those
    that start from the same runs the same chance, so that one of them counts.
    """
    once: list[Mapping[int, Run]] = []
    again: list[Mapping[int, Run]] = []
    seen: set[str] = set()
    for runs in sorted((runs for (_, name), runs in cells.items() if name == task), key=len, reverse=True):
        starts = {run.start for run in runs.values()}
        if len(starts) < 2:
            once.append(runs)
        elif not starts & seen:
            again.append(runs)
            seen |= starts
    (run, run_dof), (both, dof) = _residual(once), _residual(again)
    seed = _seed_variance(once, again, run, both)
    return Noise(run, run_dof, max(both - run, 0.0) if dof else 0.0, dof, *seed)


def _seed_variance(
    once: Sequence[Mapping[int, Run]], again: Sequence[Mapping[int, Run]], run: float, both: float
) -> tuple[float, int]:
    """Variance of what seeds do to cells pre-trained once per seed and not to those pre-trained once, and its degrees
    of freedom: of the difference of the two means, seed by seed, without what the residuals leave in it."""
    seeds = sorted(set.intersection(*(set(cell) for cell in again))) if again else []
    whole = [[[cell[s].value for s in seeds] for cell in cells if {*seeds} <= {*cell}] for cells in (once, again)]
    if len(seeds) < 2 or not all(whole):
        return 0.0, 0
    effect = np.mean(whole[1], axis=0) - np.mean(whole[0], axis=0)
    left = run / len(whole[0]) + both / len(whole[1])
    return max(float(effect.var(ddof=1)) - left, 0.0), len(seeds) - 1


def _residual(cells: Sequence[Mapping[int, Run]]) -> tuple[float, int]:
    """Residual variance of value = setting + seed by least squares, and its degrees of freedom; 0 and 0 without any."""
    values = [(i, seed, run.value) for i, runs in enumerate(cells) for seed, run in runs.items()]
    if not values:
        return 0.0, 0
    setting, seed, y = map(np.asarray, zip(*values, strict=True))
    design = np.hstack([column[:, None] == np.unique(column) for column in (setting, seed)]).astype(float)
    fit, _, rank, _ = np.linalg.lstsq(design, y)
    dof = len(y) - int(rank)
    return (float(np.square(y - design @ fit).sum()) / dof if dof else 0.0), dof


def shared_tasks(cells: Replicates, ours: Hashable, other: Hashable, tasks: Sequence[str]) -> list[str]:
    """Those of `tasks` that both settings have with the same seed: the ones their `difference` is over."""
    return [task for task in tasks if cells.get((ours, task), {}).keys() & cells.get((other, task), {}).keys()]


def difference(cells: Replicates, ours: Hashable, other: Hashable, tasks: Sequence[str]) -> Estimate | None:
    """(ours - other) over the seeds that both have, mean over the n of `shared_tasks`; None where there is none.

    Its interval: per task 2 / seeds times the variance of a fine-tuning run, and for each side that of a pre-training
    run over the number of its own, unless both start from the same (`task_noise`). A seed of pre-training cancels
    between as many runs of the same seeds; one run against k keeps 1 - 1 / k of its variance, k against models that
    were not pre-trained again 1 / k. Student's t with Welch-Satterthwaite degrees of freedom over tasks and parts. NaN
    if a task has no replicate to tell chance by.
    """
    changes, parts = [], []
    for task in shared_tasks(cells, ours, other, tasks):
        sides = cells[ours, task], cells[other, task]
        shared = sorted(sides[0].keys() & sides[1].keys())
        changes.append(float(np.mean([sides[0][seed].value - sides[1][seed].value for seed in shared])))
        noise = task_noise(cells, task)
        starts = [{side[seed].start for seed in shared} - {""} for side in sides]
        own = [1 / len(names) if names else 0.0 for names in starts] if starts[0] != starts[1] else [0.0, 0.0]
        dof = noise.start_dof if any(own) and noise.start else noise.run_dof
        variance = 2 / len(shared) * noise.run + sum(own) * noise.start
        parts.append((variance if dof else math.nan, dof))
        parts.append((abs(own[0] - own[1]) * noise.seed, max(noise.seed_dof, 1)))
    if not changes:
        return None
    mean, total = float(np.mean(changes)), math.fsum(part for part, _ in parts)
    if math.isnan(total) or total == 0:
        return Estimate(mean, total, len(changes))
    dof = total**2 / math.fsum(part**2 / dof for part, dof in parts)
    return Estimate(mean, t975(dof) * math.sqrt(total) / len(changes), len(changes))
