"""The page about single runs, one or several side by side: loss, sparsity, learning rate, scores, matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune.reports.charts import Series, block_means, curves, matrix_map
from jaxprune.reports.html_page import write_page
from jaxprune.reports.number_text import is_number, percent
from jaxprune.reports.section import Grid
from jaxprune.reports.svg import Figure, category, ordinal

Run = Mapping[str, Any]
NAMED, MAPPED, POINTS = 8, 6, 240
"""Most runs that a figure names, most of whose matrices are drawn, most points of a curve."""
_FIGURES = (
    ("loss", 1.0, "Training loss", "loss (nats)"),
    ("dev_loss", 1.0, "Loss on held-out data", "dev loss (nats)"),
    ("sparsity", 1.0, "Sparsity of the prunable weights", "sparsity (%)"),
    ("learning_rate", 1e5, "Learning rate", "learning rate, in 0.00001"),
    ("tokens_per_second", 1e-3, "Speed", "thousand tokens per second"),
)
"""(column, unit, caption, axis)."""


def workdir_page(
    path: Path,
    runs: Sequence[Run],
    *,
    title: str,
    headline: str,
    warnings: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    config: str = "",
    links: Sequence[str] = (),
) -> Path:
    """Write the page to `path`, which comes back.

    runs      dicts: `name`; `row` {column: value} of the table of results; `curve` [{`step`, `loss`, ...}, ...] as in
              metrics.jsonl and prunes.jsonl; `leaves` {path: sparsity} and `sparsity`, fractions
    warnings  sentences below the headline; facts, commands, config, links: as on every page
    """
    names = [run["name"] for run in runs]
    labels = [str(number) for number in range(1, len(runs) + 1)] if 1 < len(runs) <= NAMED else [""] * len(runs)
    columns = list(dict.fromkeys(column for run in runs for column in run["row"]))
    rows = [
        [f"{label}  {name}".strip(), *(run["row"].get(column, "–") for column in columns)]
        for label, name, run in zip(labels, names, runs)
    ]
    pruned = [run for run in runs if run["leaves"] and run["sparsity"] > 0]
    far = [abs(value - run["sparsity"]) for run in pruned for value in run["leaves"].values()]
    spread = max(far, default=0.0) if max(far, default=0.0) > 0.001 else 0.01
    return write_page(
        path,
        "workdir.html.j2",
        title=title,
        headline=headline,
        warnings=warnings,
        results=Grid("", ("run", *columns), rows),
        figures=[figure for about in _FIGURES if (figure := _figure(labels, runs, *about)) is not None],
        maps=[
            matrix_map(
                f"{name}: {percent(round(run['sparsity'], 4))} of all prunable weights",
                run["leaves"],
                target=run["sparsity"],
                spread=spread,
            )
            for name, run in zip(names, runs)
            if run in pruned[:MAPPED]
        ],
        left_out=max(0, len(pruned) - MAPPED),
        spread=spread,
        timings={},
        facts=facts or {},
        commands=commands,
        config=config,
        links=links,
    )


def _figure(
    labels: Sequence[str], runs: Sequence[Run], column: str, unit: float, caption: str, axis: str
) -> Figure | None:
    """A curve per run; None where no run has two points, or nothing was pruned."""
    series = []
    for number, (label, run) in enumerate(zip(labels, runs)):
        points = [point for point in run["curve"] if is_number(point.get(column))]
        if len(points) > 1:
            x, y = block_means([p["step"] for p in points], [unit * p[column] for p in points], POINTS)
            color = category(number) if len(runs) <= NAMED else ordinal(number / (len(runs) - 1))
            series.append(Series(label, x, y, color, dots=3.6 if column == "dev_loss" else 0))
    if not series or (column == "sparsity" and not any(any(s.y) for s in series)):
        return None
    return curves(caption, series, axis, "step", first=0.1 if column == "loss" else 0)
