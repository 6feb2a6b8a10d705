"""Figures of the demo's report: data in, one SVG string out; no files, no global state."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.canvas import (
    CATEGORIES,
    INK,
    end_labels,
    finish,
    locator,
    new_axes,
    ordinal,
    percent_tick,
    svg_of,
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One series against sparsity."""

    name: str
    x: Sequence[float]
    """Sparsity in [0, 1], ascending."""
    values: Sequence[Sequence[float]]
    """Per x the values of all seeds; drawn as mean, range and points."""
    reference: float | None = None
    """Height of a dashed line in the same colour: the majority class."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One series against steps."""

    name: str
    rank: float
    """Place in [0, 1] on the ordered colour scale: the final sparsity."""
    steps: Sequence[float]
    values: Sequence[float]


Bands = Sequence[tuple[float, float, int | None]]
"""(from, to, regime) in sparsity; None: cannot tell."""


def against_sparsity(lines: Sequence[Line], *, label: str, percent: bool, bands: Bands = (), title: str) -> str:
    """Lines over sparsity with the range over seeds, majority lines and numbered bands for the regimes.

    `label` names the y axis with its unit; `percent` prints fractions as per cent and lets the axis run over them.
    """
    figure, axes = new_axes(height=272, right=0.72 if len(lines) > 1 or lines[0].name else 0.97)
    xs = sorted({x for line in lines for x in line.x})
    span = max(xs) - min(xs) or 0.1
    axes.set_xlim(min(xs) - 0.04 * span, max(xs) + 0.04 * span)
    for begin, end, regime in bands:
        low, high = max(begin, axes.get_xlim()[0]), min(end, axes.get_xlim()[1])
        axes.axvspan(low, high, color=INK[f"band{regime or 0}"], lw=0, zorder=0)
        axes.text(
            (low + high) / 2,
            0.955,
            str(regime or "?"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            color=INK["muted"],
        )
    ends = []
    for i, line in enumerate(lines):
        color = INK[f"c{i % CATEGORIES}"]
        means = [float(np.mean(v)) for v in line.values]
        for x, values in zip(line.x, line.values):
            if len(values) > 1:
                axes.plot([x, x], [min(values), max(values)], color=color, lw=1.4, alpha=0.75, solid_capstyle="butt")
                axes.plot([x] * len(values), values, "_", color=color, ms=7, mew=1.2)
        axes.plot(line.x, means, "-", color=color, lw=2, marker="o", ms=5, mec=INK["paper"], mew=0.8, zorder=3)
        if line.reference is not None:
            axes.axhline(line.reference, color=color, lw=1.2, ls=(0, (4, 3)), alpha=0.9, zorder=1)
        ends.append((means[-1], line.name, color))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    end_labels(axes, [end for end in ends if end[1]])
    _majority_label(axes, lines)
    axes.set_xticks(_thin(xs, span), [f"{100 * x:.3g}" for x in _thin(xs, span)])
    axes.set_xlabel("sparsity (% of the prunable weights)")
    finish(axes, label, percent_tick if percent else None)
    return svg_of(figure, title)


def over_steps(
    curves: Sequence[Curve],
    *,
    label: str,
    percent: bool,
    title: str,
    marks: Sequence[Curve] = (),
    clip: float | None = None,
) -> str:
    """Curves over steps, named at their right ends and coloured by final sparsity; `marks` are dots (prune events).

    `clip` cuts the y axis at this quantile of all values, so that the first steps do not flatten the rest.
    """
    figure, axes = new_axes(height=232, right=0.86)
    for curve in curves:
        steps, values = _thinned(curve.steps, curve.values)
        axes.plot(steps, values, "-", color=ordinal(curve.rank), lw=1.7)
    for curve in marks:
        axes.plot(curve.steps, curve.values, ".", color=ordinal(curve.rank), ms=4)
    every = np.concatenate([np.asarray(c.values, float) for c in [*curves, *marks]])
    if clip is not None:
        low, high = float(every.min()), float(np.quantile(every, clip))
        pad = 0.06 * (high - low or 1)
        axes.set_ylim(low - pad, high + pad)
    named = curves or marks
    end_labels(axes, [(float(c.values[-1]), c.name, ordinal(c.rank)) for c in named if len(c.values)])
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(locator(5))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    finish(axes, label, percent_tick if percent else None)
    return svg_of(figure, title)


def matrix_map(leaf_sparsity: Mapping[str, float], *, target: float, spread: float, title: str) -> str:
    """Sparsity of every matrix: layers down, kinds across, matrices outside the layers below.

    A cell prints its per cent; its colour is the distance from `target` on a scale of +- `spread` (orange: pruned more,
    blue: pruned less; white and the page's colour mean as much as the target).
    """
    inside: dict[int, dict[str, float]] = {}
    outside: dict[str, float] = {}
    for path, value in leaf_sparsity.items():
        if found := re.search(r"(?:^|/)layer[s_]*[_/](\d+)/(.+)$", path):
            inside.setdefault(int(found[1]), {})[found[2]] = value
        else:
            outside[path] = value
    names = _kinds(list(dict.fromkeys(path for row in inside.values() for path in row)))
    rows = {layer: {names[path]: value for path, value in row.items()} for layer, row in inside.items()}
    others = {" ".join(_parts(path)): value for path, value in outside.items()}
    kinds = list(names.values())
    columns, lines = max(1, len(kinds)), len(rows) + len(others)
    head = 66 if kinds else 12
    figure, axes = new_axes(height=head + 20 * lines + (8 if others and rows else 0) + 8, left=0.17, right=0.985)
    height = figure.get_size_inches()[1] * 72
    axes.set_position((0.17, 6 / height, 0.815, (height - head - 6) / height))

    def cell(x: float, y: float, wide: float, value: float, name: str = "") -> None:
        share = max(-1.0, min(1.0, (value - target) / spread)) if spread > 0 else 0.0
        axes.barh(y, wide - 0.06, left=x + 0.03, height=0.9, color=INK["band0"], lw=0)
        color = INK["c1" if share > 0 else "c0"]
        axes.barh(y, wide - 0.06, left=x + 0.03, height=0.9, color=color, alpha=0.62 * abs(share), lw=0)
        text = f"{name}{100 * value:.1f}" if wide > 1 or columns <= 7 else f"{100 * value:.0f}"
        axes.text(x + wide / 2, y, text, ha="center", va="center", fontsize=10, color=INK["ink"])

    ticks = []
    for y, (layer, row) in enumerate(sorted(rows.items())):
        ticks.append((y, f"layer {layer}"))
        for kind, value in row.items():
            cell(kinds.index(kind), y, 1, value)
    for y, (name, value) in enumerate(others.items(), len(rows)):
        cell(0, y + (0.4 if rows else 0), columns, value, f"{name}  ")
    axes.set(xlim=(0, columns), ylim=(lines - 0.5 + (0.4 if others and rows else 0), -0.5))
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axes.set_xticks([])
    for x, kind in enumerate(kinds):
        axes.text(x + 0.35, -0.62, kind, rotation=38, rotation_mode="anchor", ha="left", va="bottom", fontsize=10)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelcolor=INK["ink"])
    for text in axes.texts:
        text.set_color(INK["ink"])
    return svg_of(figure, title)


def _kinds(paths: Sequence[str]) -> dict[str, str]:
    """Short names of matrices: `attention/query/kernel` -> `query`; as many parts as it takes to tell them apart."""
    names = {path: _parts(path) for path in paths}
    out = {}
    for path, parts in names.items():
        length = 1
        while length < len(parts) and sum(o[-length:] == parts[-length:] for o in names.values()) > 1:
            length += 1
        out[path] = " ".join(parts[-length:])
    return out


def _parts(path: str) -> list[str]:
    kept = [p for p in path.split("/") if p not in ("kernel", "embedding", "weight", "encoder", "bert")]
    return [p.replace("_", " ") for p in kept or [path]]


def _thin(xs: Sequence[float], span: float) -> list[float]:
    """Ticks at the measured places, as far as they leave room for their text."""
    kept = [xs[-1]]
    for x in reversed(xs[:-1]):
        if kept[-1] - x > 0.085 * span:
            kept.append(x)
    return kept[::-1]


def _thinned(steps: Sequence[float], values: Sequence[float], limit: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal stretches, so that a long run stays a small file."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) <= limit:
        return x, y
    groups = np.array_split(np.arange(len(x)), limit)
    return np.array([x[g[-1]] for g in groups]), np.array([y[g].mean() for g in groups])


def _majority_label(axes: Any, lines: Sequence[Line]) -> None:
    """Name the lowest dashed line, for all."""
    references = [line.reference for line in lines if line.reference is not None]
    if references:
        place = (0.0, min(references))
        style = {"va": "bottom", "fontsize": 10.5, "color": INK["muted"]}
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, 3), "textcoords": "offset points"}
        axes.annotate("majority class", place, **where, **style)
