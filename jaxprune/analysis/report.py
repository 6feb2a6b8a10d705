"""One self-contained HTML page (and CSV files) about a set of pruning runs, from plain records."""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxprune.analysis import canvas, figures, page, prose
from jaxprune.analysis.regimes import FITTING_RISE, Regimes, Row, cells, regimes


def report(
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
    Raises ValueError, before anything is written, for a record that lacks a key or holds no finite number in it.
    """
    runs = _records(runs, "runs", ("target", "sparsity", "dev_loss"), ("target", "sparsity", "dev_loss"))
    scores = _records(scores, "scores", ("target", "task", "seed", "metric", "score"), ("target", "score"))
    if not runs:
        raise ValueError("runs: no records, so there is nothing to report")
    runs.sort(key=lambda run: float(run["target"]))
    verdict = regimes(runs, scores)
    plans = _plans(plan or {}, runs)
    tables = _tables(runs, scores, plans, verdict)

    total = sum((timings or {}).values())
    text = page.render(
        "report.html.j2",
        title=title,
        headline=prose.headline(verdict),
        explanation=prose.explanation(verdict, runs),
        cards=prose.cards(verdict, scores),
        verdict=verdict,
        rise=FITTING_RISE,
        levels=[prose.level_row(level) for level in verdict.levels],
        style=Markup(canvas.style()),
        trio=[(name, Markup(svg)) for name, svg in _trio(runs, scores, verdict)],
        over_steps=[(name, Markup(svg)) for name, svg in _over_steps(runs, plans)],
        maps=[(name, Markup(svg)) for name, svg in _maps(runs)],
        spread=_spread(runs),
        timings=[(name, _seconds(s), 100 * s / total if total else 0) for name, s in (timings or {}).items()],
        total=_seconds(total),
        facts=facts or {},
        commands=commands,
        config=config,
        notes=notes,
        tables=tables,
        shown=[
            ("Pre-training runs", _head(tables["runs"]), _body(tables["runs"])),
            ("Fine-tuning runs", _head(tables["scores"]), _body(tables["scores"])),
        ],
    )
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if rows:
            (out / f"{name}.csv").write_text(_csv(rows), encoding="utf-8")
    path = out / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _trio(runs: Sequence[Row], scores: Sequence[Row], verdict: Regimes) -> list[tuple[str, str]]:
    targets = sorted({float(run["target"]) for run in runs})
    edges = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(targets)), math.inf]
    bands: list[tuple[float, float, int | None]] = []
    if not verdict.why and len(targets) > 1:
        for level, low, high in zip(verdict.levels, edges, edges[1:]):
            if bands and bands[-1][2] == level.regime:
                bands[-1] = (bands[-1][0], high, level.regime)
            else:
                bands.append((low, high, level.regime))
    loss = figures.Line("", targets, [[float(r["dev_loss"]) for r in runs if r["target"] == t] for t in targets])
    label = "dev loss, MLM + NSP (nats)" if any(_number(r.get("dev_nsp_loss")) for r in runs) else "dev loss (nats)"
    out = [
        (
            "Pre-training: loss on held-out text",
            figures.against_sparsity(
                [loss], label=label, percent=False, bands=bands, title="Pre-training dev loss against sparsity"
            ),
        )
    ]
    for column, name, label, percent in (
        ("score", "Tasks: scores after fine-tuning", "dev score (× 100)", True),
        ("train_loss", "Tasks: fit to their training data", "training loss after fine-tuning (nats)", False),
    ):
        table = cells(scores, column)
        lines = []
        for task in dict.fromkeys(str(s["task"]) for s in scores):
            xs = sorted(target for target, other in table if other == task)
            reference = next(
                (s.get("majority") for s in scores if s["task"] == task and _number(s.get("majority"))), None
            )
            if xs:
                values = [table[x, task] for x in xs]
                lines.append(figures.Line(task, xs, values, reference if column == "score" else None))
        if lines:
            title = "Task scores against sparsity" if percent else "Training loss of the tasks against sparsity"
            svg = figures.against_sparsity(lines, label=label, percent=percent, bands=bands, title=title)
            out.append((name, svg))
    return out


def _over_steps(runs: Sequence[Row], plans: Mapping[float, Mapping[int, float]]) -> list[tuple[str, str]]:
    out = []
    steps = {float(r["target"]): r["curve"] for r in runs if r.get("curve") is not None and len(r["curve"])}

    def curves(column: str) -> list[figures.Curve]:
        found = []
        for target, points in steps.items():
            kept = [p for p in points if _number(p.get(column))]
            if kept:
                values = [float(p[column]) for p in kept]
                found.append(figures.Curve(prose.percent(target), target, [float(p["step"]) for p in kept], values))
        return found

    marks = [
        figures.Curve(prose.percent(t), t, list(map(float, p)), list(map(float, p.values())))
        for t, p in plans.items()
        if p
    ]
    sparsity = curves("sparsity")
    if sparsity or marks:
        svg = figures.over_steps(
            sparsity, label="sparsity (%)", percent=True, title="The plan: sparsity over steps", marks=marks
        )
        out.append(("The plan" + (" (dots: prune events)" if marks else ""), svg))
    if loss := curves("loss"):
        svg = figures.over_steps(
            loss, label="pre-training loss (nats)", percent=False, title="Pre-training loss over steps", clip=0.97
        )
        out.append(("Pre-training loss over the same steps", svg))
    return out


def _spread(runs: Sequence[Row]) -> float:
    """Largest distance of a matrix from its run's target; the scale of the maps."""
    far = [abs(float(v) - float(r["sparsity"])) for r in runs for v in (r.get("leaf_sparsity") or {}).values()]
    return max(far, default=0.0) if max(far, default=0.0) > 0.001 else 0.01


def _maps(runs: Sequence[Row]) -> list[tuple[str, str]]:
    return [
        (
            f"{prose.percent(run['target'])} asked for, {prose.percent(run['sparsity'])} over all matrices",
            figures.matrix_map(
                run["leaf_sparsity"],
                target=float(run["sparsity"]),
                spread=_spread(runs),
                title=f"Sparsity per matrix at {prose.percent(float(run['target']))}, run {i + 1}",
            ),
        )
        for i, run in enumerate(runs)
        if run.get("leaf_sparsity") and float(run["target"]) > 0
    ]


def _tables(
    runs: Sequence[Row], scores: Sequence[Row], plans: Mapping[float, Mapping[int, float]], verdict: Regimes
) -> dict[str, list[dict[str, Any]]]:
    nested = ("curve", "leaf_sparsity")
    summary = []
    for level in verdict.levels:
        row: dict[str, Any] = {
            "target": level.target,
            "dev_loss": level.dev_loss,
            "dev_loss_change": level.dev_loss_change,
        }
        for name, difference in (("score", level.score), ("train_loss", level.train_loss)):
            row[f"{name}_change"] = difference.change if difference else None
            row[f"{name}_noise"] = difference.noise if difference else None
        summary.append({**row, "regime": prose.NAMES[level.regime], "why": level.why or verdict.why})
    return {
        "runs": [{k: v for k, v in run.items() if k not in nested} for run in runs],
        "scores": [dict(score) for score in scores],
        "verdict": summary,
        "curves": [{"target": r["target"], **p} for r in runs if r.get("curve") is not None for p in r["curve"]],
        "matrices": [
            {"target": run["target"], "path": path, "sparsity": value}
            for run in runs
            for path, value in (run.get("leaf_sparsity") or {}).items()
        ],
        "plan": [{"target": t, "step": step, "sparsity": s} for t, p in plans.items() for step, s in p.items()],
    }


def _records(rows: Any, name: str, keys: Sequence[str], numbers: Sequence[str]) -> list[dict[str, Any]]:
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else [dict(row) for row in rows]
    for i, row in enumerate(rows):
        for key in keys:
            if key not in row:
                raise ValueError(f"{name}[{i}]: no key {key!r}; it has {', '.join(map(str, row))}")
        for key in numbers:
            if not _number(row[key]):
                raise ValueError(f"{name}[{i}]: {key} = {row[key]!r} is not a finite number")
        if not 0 <= row["target"] <= 1:
            raise ValueError(f"{name}[{i}]: target = {row['target']!r} is outside [0, 1]; sparsity is a fraction")
    return rows


def _plans(plan: Mapping[Any, Any], runs: Sequence[Row]) -> dict[float, Mapping[int, float]]:
    if any(isinstance(value, Mapping) for value in plan.values()):
        return {float(target): events for target, events in plan.items()}
    return {max(float(run["target"]) for run in runs): plan} if plan else {}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return (
        f"{seconds:,.0f} s ({seconds / 60:.1f} min)" if seconds < 7200 else f"{seconds:,.0f} s ({seconds / 3600:.1f} h)"
    )


def _text(value: Any) -> str:
    """A cell: four digits after the point, a dash for nothing."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
    return str(value)


def _head(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def _body(rows: Sequence[Row]) -> list[list[tuple[str, bool]]]:
    """(text, is a number) of every cell."""
    return [[(_text(row.get(key)), _number(row.get(key))) for key in _head(rows)] for row in rows]


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _head(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
