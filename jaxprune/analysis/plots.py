"""Figures of the study's report: data in, one SVG string out; no files, no global state."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.canvas import CATEGORIES, INK, end_labels, finish, locator, new_axes, percent_tick, svg_of

LEVELS = 12
"""Shades of a heatmap."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One named curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    """Index into the categories of the palette."""
    half: Sequence[float] = ()
    """Half of the 95 % interval of each y; NaN draws an open dot without one."""
    low: Sequence[float] = ()
    """With `high`: a band instead of intervals."""
    high: Sequence[float] = ()
    points: bool = True
    """Dots at the measured places."""


def curves(
    series: Sequence[Series],
    *,
    label: str,
    xlabel: str,
    title: str,
    percent: bool = False,
    xpercent: bool = True,
    lines: Sequence[tuple[float, str]] = (),
    height: float = 252,
) -> str:
    """Curves named at their right ends; `lines` are dashed heights with a name. `percent`, `xpercent` print fractions
    as per cent."""
    figure, axes = new_axes(height=height, right=0.72 if any(s.name for s in series) else 0.97)
    for s in series:
        color = INK[f"c{s.color % CATEGORIES}"]
        if s.low:
            axes.fill_between(s.x, s.low, s.high, color=color, alpha=0.2, lw=0)
        axes.plot(s.x, s.y, "-", color=color, lw=1.9, zorder=3)
        for i, (x, y) in enumerate(zip(s.x, s.y)):
            half = s.half[i] if s.half else 0.0
            if half > 0:
                axes.plot([x, x], [y - half, y + half], color=color, lw=1.3, alpha=0.8, solid_capstyle="butt", zorder=2)
            if s.points:
                face = INK["paper"] if math.isnan(half) else color
                axes.plot([x], [y], "o", color=color, mfc=face, ms=4.6, mew=1.2, zorder=4)
    _dashed(axes, lines)
    if series:
        end_labels(axes, [(s.y[-1], s.name, INK[f"c{s.color % CATEGORIES}"]) for s in series if s.name and len(s.y)])
    _x_axis(axes, xlabel, xpercent)
    finish(axes, label, percent_tick if percent else None)
    return svg_of(figure, title)


def scatter(
    groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, label: str, xlabel: str, title: str
) -> str:
    """Points of each group with its least-squares line; y are fractions, printed as per cent."""
    figure, axes = new_axes(height=252, right=0.8)
    ends = []
    for i, (name, x, y) in enumerate(groups):
        color = INK[f"c{i % CATEGORIES}"]
        axes.plot(x, y, "o", color=color, ms=4.6, mec=INK["paper"], mew=0.6, zorder=3)
        end = float(y[-1])
        if len({*x}) > 1:
            slope, intercept = np.polyfit(x, y, 1)
            edges = np.array([min(x), max(x)])
            axes.plot(edges, slope * edges + intercept, "-", color=color, lw=1.5)
            end = float(slope * edges[1] + intercept)
        ends.append((end, name, color))
    end_labels(axes, ends)
    _x_axis(axes, xlabel, False)
    finish(axes, label, percent_tick)
    return svg_of(figure, title)


def bars(rows: Sequence[tuple[str, float, float, float]], *, label: str, title: str, line: float) -> str:
    """A horizontal span from lowest to highest with a dot at the mean for each (name, mean, lowest, highest)."""
    figure, axes = new_axes(height=90 + 17 * len(rows), left=0.2, right=0.97)
    for i, (_, mean, low, high) in enumerate(rows):
        axes.plot([low, high], [i, i], "-", color=INK["c0"], lw=3, alpha=0.45, solid_capstyle="butt")
        axes.plot([mean], [i], "o", color=INK["c0"], ms=5)
    axes.axvline(line, color=INK["muted"], lw=1.2, ls=(0, (4, 3)))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    finish(axes, "", None)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.grid(False)
    _x_axis(axes, label, True)
    return svg_of(figure, title)


def heat(values: np.ndarray, *, title: str, top: float | None = None) -> str:
    """An SVG of small squares, darker where a value is higher; `top` is where the scale ends (default: the highest).

    One path per shade, so that 9,216 squares stay a small file; the shade is the page's ink at some opacity.
    """
    rows, columns = values.shape
    top = float(values.max()) if top is None else top
    shade = np.clip(np.ceil(values / top * LEVELS), 0, LEVELS).astype(int) if top > 0 else np.zeros(values.shape, int)
    paths = []
    for level in range(1, LEVELS + 1):
        steps = "".join(f"M{j} {i}h1v1h-1z" for i, j in np.argwhere(shade == level).tolist())
        if steps:
            paths.append(f'<path d="{steps}" fill-opacity="{level / LEVELS:.2f}"/>')
    name = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" role="img" aria-label="{name}"'
    return f'{head} class="heat" fill="var(--c0, #0072b2)" shape-rendering="crispEdges">{"".join(paths)}</svg>'


def _dashed(axes: Any, lines: Sequence[tuple[float, str]]) -> None:
    for height, name in lines:
        axes.axhline(height, color=INK["muted"], lw=1.2, ls=(0, (4, 3)), zorder=1)
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, 3), "textcoords": "offset points"}
        axes.annotate(name, (0.0, height), va="bottom", fontsize=10.5, color=INK["muted"], **where)


def _x_axis(axes: Any, xlabel: str, percent: bool) -> None:
    axes.set_xlabel(xlabel)
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(locator(6))
    if percent:
        axes.xaxis.set_major_formatter(percent_tick)
    else:
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.6g}")
