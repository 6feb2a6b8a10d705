"""The figures of all pages: numbers in, one SVG out; no files, no global state."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import escape

from jaxprune.analysis.paths import kinds, layer_of
from jaxprune.reports.svg import INK, Figure, category, end_labels, finish, new_axes, to_figure

SPARSITY = "sparsity (% of the prunable weights)"
"""The x axis of most figures."""
SHADES = 12
"""Of a heatmap."""
DASHED = {"lw": 1.2, "ls": (0, (4, 3)), "zorder": 1}


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve, named at its right end."""

    name: str
    x: Sequence[float]
    """Ascending."""
    y: Sequence[float]
    color: str = INK["c0"]
    half: Sequence[float] = ()
    """Half of the 95 % interval of each y; NaN draws an open dot without one."""
    low: Sequence[float] = ()
    """With `high`: a band about the curve."""
    high: Sequence[float] = ()
    seeds: Sequence[Sequence[float]] = ()
    """The values that each y is the mean of: drawn as their range with a tick for each."""
    line: bool = True
    dots: float = 4.6
    """Size of the dots in points."""


def curves(
    caption: str,
    series: Sequence[Series],
    label: str,
    xlabel: str = SPARSITY,
    *,
    dashed: Sequence[tuple[float, str, str]] = (),
    bands: Sequence[tuple[float, float, int | None]] = (),
    first: float = 0.0,
) -> Figure:
    """Curves against sparsity or anything else; an axis whose label has `%` or `× 100` prints fractions times 100.

    dashed: (height, name, colour) of horizontal lines. bands: (from, to, number) of shaded stretches of x, None reads
    as `?`. first: this first fraction of each curve may leave the y axis, lest it flattens the rest.
    """
    longest = max((len(name) for name in (*(s.name for s in series), *(name for _, name, _ in dashed))), default=0)
    figure, axes = new_axes(height=252, right=max(0.97 - 0.021 * longest, 0.6))
    for s in series:
        _draw(axes, s)
    for height, _, color in dashed:
        axes.axhline(height, color=color, **DASHED)
    axes.margins(x=0.03)
    if first:
        heights = np.concatenate([np.asarray(s.y, float)[int(first * len(s.y)) :] for s in series])
        low, high = float(heights.min()), float(heights.max())
        pad = 0.06 * (high - low or 1)
        axes.set_ylim(low - pad, high + pad)
    if bands:
        _shade(axes, bands)
    lines = [(height, name, INK["muted"]) for height, name, _ in dashed if name]
    end_labels(axes, [*((s.y[-1], s.name, s.color) for s in series if s.name and len(s.y)), *lines])
    finish(axes, label, xlabel)
    if xlabel == SPARSITY:
        axes.set_xticks(_apart(sorted({x for s in series for x in s.x})))
    return to_figure(figure, caption)


def _draw(axes: Any, s: Series) -> None:
    if len(s.low):
        axes.fill_between(s.x, s.low, s.high, color=s.color, alpha=0.2, lw=0)
    axes.plot(s.x, s.y, ls="-" if s.line else "none", color=s.color, lw=1.9, zorder=3)
    for x, y, half in zip(s.x, s.y, s.half or [0.0] * len(s.x)):
        if half > 0:
            axes.plot([x, x], [y - half, y + half], color=s.color, lw=1.3, alpha=0.8, solid_capstyle="butt", zorder=2)
        if s.dots:
            face = INK["paper"] if math.isnan(half) else s.color
            axes.plot([x], [y], "o", color=s.color, mfc=face, ms=s.dots, mew=1.2 if s.line else 0, zorder=4)
    for x, values in zip(s.x, s.seeds):
        if len(values) > 1:
            axes.plot([x, x], [min(values), max(values)], color=s.color, lw=1.4, alpha=0.75, solid_capstyle="butt")
            axes.plot([x] * len(values), values, "_", color=s.color, ms=7, mew=1.2)


def _shade(axes: Any, bands: Sequence[tuple[float, float, int | None]]) -> None:
    """The bands behind the curves, their numbers above them."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left, right), ylim=(bottom, top + 0.12 * (top - bottom)))
    text = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "center", "fontweight": "bold"}
    for begin, end, number in bands:
        low, high = max(begin, left), min(end, right)
        axes.axvspan(low, high, color=INK[f"band{number or 0}"], lw=0, zorder=0)
        axes.text((low + high) / 2, 0.955, str(number or "?"), fontsize=12, color=INK["muted"], **text)


def _apart(xs: Sequence[float]) -> list[float]:
    """The measured places, as far as they leave room for their text, the last one first."""
    kept = [xs[-1]] if xs else []
    for x in reversed(xs[:-1]):
        if kept[-1] - x > 0.085 * (xs[-1] - xs[0]):
            kept.append(x)
    return kept[::-1]


def block_means(x: Sequence[float], y: Sequence[float], blocks: int) -> tuple[list[float], list[float]]:
    """Means of x and y over at most so many equal stretches, so that a long run stays a small file."""
    count = max(1, min(len(x), blocks))
    parts = ([part.mean() for part in np.array_split(np.asarray(values, float), count)] for values in (x, y))
    means_x, means_y = (list(map(float, part)) for part in parts)
    return means_x, means_y


def ranges(caption: str, rows: Sequence[tuple[str, float, float, float]], label: str, *, line: float) -> Figure:
    """A horizontal bar from lowest to highest with a dot at the mean for each (name, mean, lowest, highest)."""
    figure, axes = new_axes(height=90 + 17 * len(rows), left=0.2)
    for i, (_, mean, low, high) in enumerate(rows):
        axes.plot([low, high], [i, i], "-", color=INK["c0"], lw=3, alpha=0.45, solid_capstyle="butt")
        axes.plot([mean], [i], "o", color=INK["c0"], ms=5)
    axes.axvline(line, color=INK["muted"], **DASHED)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.03)
    finish(axes, "", label)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.grid(False)
    return to_figure(figure, caption)


def heatmap(caption: str, values: np.ndarray, *, top: float) -> Figure:
    """Small squares, darker where a value is higher; the scale ends at `top`.

    One path per shade, so that 9,216 squares stay a small file; the shade is the page's colour at some opacity.
    """
    rows, columns = values.shape
    shade = np.clip(np.ceil(values / top * SHADES), 0, SHADES).astype(int) if top > 0 else np.zeros(values.shape, int)
    paths = []
    for level in range(1, SHADES + 1):
        if steps := "".join(f"M{j} {i}h1v1h-1z" for i, j in np.argwhere(shade == level).tolist()):
            paths.append(f'<path d="{steps}" fill-opacity="{level / SHADES:.2f}"/>')
    head = f'<svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" role="img" aria-label="{escape(caption)}"'
    fill = f'class="heat" fill="var(--c0, {INK["c0"]})" shape-rendering="crispEdges"'
    return Figure(caption, f"{head} {fill}>{''.join(paths)}</svg>")


def matrix_map(caption: str, sparsities: Mapping[str, float], *, target: float, spread: float) -> Figure:
    """Sparsity of every matrix, {path: fraction}: layers down, kinds across, matrices outside the layers below.

    A cell prints its per cent; its colour is the distance from `target` on a scale of +- `spread` (orange: pruned more,
    blue: pruned less; white and the page's colour mean as much as the target).
    """
    names = kinds(sparsities)
    layers = sorted({layer for path in sparsities if (layer := layer_of(path)) is not None})
    columns = list(dict.fromkeys(names[path] for path in sparsities if layer_of(path) is not None))
    outside = [path for path in sparsities if layer_of(path) is None]
    wide, gap = max(1, len(columns)), 0.4 if outside and layers else 0.0
    lines, head = len(layers) + len(outside), 66 if columns else 12
    height = head + 20 * lines + 20 * gap + 8
    figure, axes = new_axes(height=height)
    axes.set_position((0.17, 6 / height, 0.815, (height - head - 6) / height))
    for path, value in sparsities.items():
        share = max(-1.0, min(1.0, (value - target) / spread)) if spread > 0 else 0.0
        if (layer := layer_of(path)) is not None:
            x, y, width = columns.index(names[path]), layers.index(layer), 1
            text = f"{100 * value:.1f}" if wide <= 7 else f"{100 * value:.0f}"
        else:
            x, y, width = 0, len(layers) + outside.index(path) + gap, wide
            text = f"{names[path]}  {100 * value:.1f}"
        box = {"left": x + 0.03, "height": 0.9, "lw": 0}
        axes.barh(y, width - 0.06, color=INK["band0"], **box)
        axes.barh(y, width - 0.06, color=category(share > 0), alpha=0.62 * abs(share), **box)
        axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=10, color=INK["ink"])
    axes.set(xlim=(0, wide), ylim=(lines - 0.5 + gap, -0.5), xticks=[])
    axes.set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    slanted = {"rotation": 38, "rotation_mode": "anchor", "ha": "left", "va": "bottom", "fontsize": 10}
    for x, name in enumerate(columns):
        axes.text(x + 0.35, -0.62, name, color=INK["ink"], **slanted)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK["ink"])
    return to_figure(figure, caption)
