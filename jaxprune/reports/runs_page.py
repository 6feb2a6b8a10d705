"""The page (and CSV files) about a set of pruning runs of one model, from plain records: the demo's."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from jaxprune.analysis.intervals import seed_values
from jaxprune.analysis.pruning_cost import FITTING_RISE, FREE, PruningCost, pruning_cost
from jaxprune.errors import UserError
from jaxprune.reports.charts import Series, block_means, curves, matrix_map
from jaxprune.reports.html_page import write_page
from jaxprune.reports.number_text import is_number, percent
from jaxprune.reports.regimes import NAMES, headline, stretch
from jaxprune.reports.svg import Figure, category, ordinal

Row = Mapping[str, Any]


def runs_page(
    runs: Iterable[Row],
    scores: Iterable[Row] = (),
    *,
    out_dir: str | Path,
    title: str,
    plan: Mapping[Any, Any] | None = None,
    facts: Mapping[str, str] | None = None,
    timings: Mapping[str, float] | None = None,
    commands: Sequence[str] = (),
    config: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write `out_dir/report.html` and one CSV file per table beside it; returns the path of the page.

    runs      one record per pre-training run (a list of dicts or a DataFrame): `target` (asked for) and `sparsity`
              (realised), fractions; `dev_loss` = MLM + NSP, nats; optional `dev_mlm_loss`, `dev_nsp_loss` (nats),
              `mlm_accuracy`, `nsp_accuracy` (fractions), `seconds`,
              `curve` [{`step`, `loss`, `sparsity`}, ...] and `leaf_sparsity` {path: fraction}
    scores    one record per fine-tuning run: `target`, `task`, `seed`, `metric`, `score` (fraction); optional
              `train_loss` (nats) and `majority` (score of always answering the commonest class, same metric)
    plan      {step: sparsity}, or {target: {step: sparsity}} with one plan per run
    facts     {label: text}: model, data, tokens, hardware, versions
    timings   {phase: seconds}
    commands, config, notes   the command lines, the resolved config as text, remarks on the data

    Further keys of a record go to the tables as they are. The page holds no script and refers to nothing outside.
    Raises UserError, before anything is written, for a record that lacks a key or holds no finite number in it.
    """
    runs = _records(runs, "runs", ("target", "sparsity", "dev_loss"), ("target", "sparsity", "dev_loss"))
    scores = _records(scores, "scores", ("target", "task", "seed", "metric", "score"), ("target", "score"))
    if not runs:
        raise UserError("runs: no records, so there is nothing to report")
    runs.sort(key=lambda run: float(run["target"]))
    cost = pruning_cost(runs, scores)
    plans = _plans(plan or {}, runs)
    tables = _tables(runs, scores, plans, cost)
    matrices = [run for run in runs if run.get("leaf_sparsity") and float(run["target"]) > 0]
    far = [abs(float(v) - float(run["sparsity"])) for run in matrices for v in run["leaf_sparsity"].values()]
    spread = max(far, default=0.0) if max(far, default=0.0) > 0.001 else 0.01
    targets = [run["target"] for run in runs]
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    return write_page(
        out / "report.html",
        "runs.html.j2",
        title=title,
        headline=headline(cost),
        cost=cost,
        names=NAMES,
        stretch=lambda chosen: stretch(chosen, cost),
        at_floor=_at_floor(scores, cost),
        single_runs=len({*targets}) == len(targets),
        rise=FITTING_RISE,
        against_sparsity=_against_sparsity(runs, scores, cost),
        over_steps=_over_steps(runs, plans),
        maps=[
            matrix_map(
                f"{percent(run['target'])} asked for, {percent(run['sparsity'])} over all matrices",
                run["leaf_sparsity"],
                target=float(run["sparsity"]),
                spread=spread,
            )
            for run in matrices
        ],
        spread=spread,
        timings=timings or {},
        facts=facts or {},
        commands=commands,
        config=config,
        notes=notes,
        tables=tables,
        links=[f"{name}.csv" for name in tables],
    )


def _at_floor(scores: Sequence[Row], cost: PruningCost) -> dict[float, list[str]]:
    """{target: tasks whose mean score is no better than the majority class's}."""
    cells, majority = seed_values(pandas.DataFrame(scores), "score", ["target"]), _majority(scores)
    return {
        level.target: [t for t in cost.tasks if np.mean(cells.get((level.target, t), 9)) <= majority.get(t, -9)]
        for level in cost.levels
    }


def _majority(scores: Sequence[Row]) -> dict[str, float]:
    return {row["task"]: float(row["majority"]) for row in scores if is_number(row.get("majority"))}


def _against_sparsity(runs: Sequence[Row], scores: Sequence[Row], cost: PruningCost) -> list[Figure]:
    """Pre-training loss, scores and training loss of the tasks, over bands for the regimes."""
    targets = [level.target for level in cost.levels]
    edges = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(targets)), math.inf]
    bands: list[tuple[float, float, int | None]] = []
    for level, low, high in zip(cost.levels, edges, edges[1:]) if not cost.why and len(targets) > 1 else ():
        if level.target == 0 and cost.levels[1].regime != FREE:  # unpruned is no regime
            continue
        if bands and bands[-1][2] == level.regime:
            low = bands.pop()[0]
        bands.append((low, high, level.regime))
    losses = [[float(run["dev_loss"]) for run in runs if run["target"] == t] for t in targets]
    label = "dev loss, MLM + NSP (nats)" if any(is_number(r.get("dev_nsp_loss")) for r in runs) else "dev loss (nats)"
    figures = [curves("Pre-training: loss on held-out text", [_seeds("", targets, losses)], label, bands=bands)]
    for column, caption, label in (
        ("score", "Tasks: scores after fine-tuning", "dev score (× 100)"),
        ("train_loss", "Tasks: fit to their training data", "training loss after fine-tuning (nats)"),
    ):
        cells = seed_values(pandas.DataFrame(scores), column, ["target"])
        names = list(dict.fromkeys(task for _, task in cells))
        floors = {t: height for t, height in _majority(scores).items() if t in names and column == "score"}
        dashed = [
            (height, "majority class" if height == min(floors.values()) else "", category(names.index(task)))
            for task, height in floors.items()
        ]
        if names:
            measured = {task: sorted(target for target, other in cells if other == task) for task in names}
            lines = [
                _seeds(task, measured[task], [cells[t, task] for t in measured[task]], category(i))
                for i, task in enumerate(names)
            ]
            figures.append(curves(caption, lines, label, dashed=dashed, bands=bands))
    return figures


def _seeds(name: str, x: Sequence[float], values: Sequence[Sequence[float]], color: str = category(0)) -> Series:
    return Series(name, x, [float(np.mean(v)) for v in values], color, seeds=values)


def _over_steps(runs: Sequence[Row], plans: Mapping[float, Mapping[int, float]]) -> list[Figure]:
    def lines(column: str) -> list[Series]:
        drawn = []
        for run in runs:
            points = [p for p in run.get("curve") or () if is_number(p.get(column))]
            if points:
                x, y = block_means([p["step"] for p in points], [p[column] for p in points], 240)
                drawn.append(Series(percent(run["target"]), x, y, ordinal(float(run["target"])), dots=0))
        return drawn

    figures, sparsity, losses = [], lines("sparsity"), lines("loss")
    named = not sparsity
    events = [
        Series(percent(t) if named else "", [*p], [*p.values()], ordinal(t), line=False, dots=3.6)
        for t, p in plans.items()
        if p
    ]
    if sparsity or events:
        caption = "The plan" + (" (dots: prune events)" if events else "")
        figures.append(curves(caption, [*sparsity, *events], "sparsity (%)", "step"))
    if losses:
        caption = "Pre-training loss over the same steps"
        figures.append(curves(caption, losses, "pre-training loss (nats)", "step", first=0.1))
    return figures


def _tables(
    runs: Sequence[Row], scores: Sequence[Row], plans: Mapping[float, Mapping[int, float]], cost: PruningCost
) -> dict[str, pandas.DataFrame]:
    verdict = []
    for level in cost.levels:
        row = {"target": level.target, "dev_loss": level.dev_loss, "dev_loss_change": level.dev_loss_change}
        for name, change in (("score", level.score), ("train_loss", level.train_loss)):
            row |= {f"{name}_change": change and change.mean, f"{name}_noise": change and change.half}
        verdict.append({**row, "regime": NAMES[level.regime], "why": level.why or cost.why})
    tables = {
        "runs": [{k: v for k, v in run.items() if k not in ("curve", "leaf_sparsity")} for run in runs],
        "scores": [dict(score) for score in scores],
        "verdict": verdict,
        "curves": [{"target": run["target"], **point} for run in runs for point in run.get("curve") or ()],
        "matrices": [
            {"target": run["target"], "path": path, "sparsity": value}
            for run in runs
            for path, value in (run.get("leaf_sparsity") or {}).items()
        ],
        "plan": [{"target": t, "step": step, "sparsity": s} for t, p in plans.items() for step, s in p.items()],
    }
    return {name: pandas.DataFrame(rows) for name, rows in tables.items() if rows}


def _records(rows: Any, name: str, keys: Sequence[str], numbers: Sequence[str]) -> list[dict[str, Any]]:
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else [dict(row) for row in rows]
    for i, row in enumerate(rows):
        for key in keys:
            if key not in row:
                raise UserError(f"{name}[{i}]: no key {key!r}; it has {', '.join(map(str, row))}")
        for key in numbers:
            if not is_number(row[key]):
                raise UserError(f"{name}[{i}]: {key} = {row[key]!r} is not a finite number")
        if not 0 <= row["target"] <= 1:
            raise UserError(f"{name}[{i}]: target = {row['target']!r} is outside [0, 1]; sparsity is a fraction")
    return rows


def _plans(plan: Mapping[Any, Any], runs: Sequence[Row]) -> dict[float, Mapping[int, float]]:
    if any(isinstance(value, Mapping) for value in plan.values()):
        return {float(target): events for target, events in plan.items()}
    return {max(float(run["target"]) for run in runs): plan} if plan else {}
