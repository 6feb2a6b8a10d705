"""What all figures are drawn on: colours that follow the page, axes, labels, and the way to one SVG string.

Colours are CSS variables with a light fallback (`var(--ink, #1d2329)`), so an inline figure follows the page's light or
dark scheme. Categories use Okabe & Ito's colour-blind safe set, ordered series a stretch of viridis. All figures are
drawn 372 points wide, so that a column of a phone shows their text at its own size.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

WIDTH = 372
CATEGORIES, SHADES = 8, 64
_viridis = matplotlib.colormaps["viridis"]
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1d2329", "#e8eaed"),
    "muted": ("#5f6873", "#a2abb5"),
    "grid": ("#e3e6ea", "#353b43"),
    "paper": ("#ffffff", "#16191d"),
    "band1": ("#f1f5f2", "#1d2522"),
    "band2": ("#fbf1dc", "#302817"),
    "band3": ("#f8e3dc", "#371f19"),
    "band0": ("#f3f3f5", "#202329"),
    "c0": ("#0072b2", "#5eb3e8"),
    "c1": ("#c04e00", "#f58a4b"),
    "c2": ("#00805f", "#35c39c"),
    "c3": ("#a8437f", "#e38fc0"),
    "c4": ("#8a6a00", "#e6bf3d"),
    "c5": ("#2f7fae", "#8fd0f7"),
    "c6": ("#5b4a9c", "#b1a3ee"),
    "c7": ("#4d5660", "#c3cad2"),
    # The ends of viridis that vanish against the page are left out: yellow on white, violet on black.
    **{
        f"o{i}": (to_hex(_viridis(0.78 * (1 - i / (SHADES - 1)))), to_hex(_viridis(0.45 + 0.52 * i / (SHADES - 1))))
        for i in range(SHADES)
    },
}
"""Name: (light, dark). Figures are drawn in the light colours, each of which stands for its name."""
INK = {name: light for name, (light, _) in PALETTE.items()}


class Figure(NamedTuple):
    """A figure of a page; its SVG's ids are its own, `inline` of the page makes them differ from other figures'."""

    caption: str
    svg: str


def style() -> str:
    """CSS: the variables of `PALETTE`, light and dark."""
    light, dark = ("".join(f"--{name}:{colors[i]};" for name, colors in PALETTE.items()) for i in (0, 1))
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def category(number: int) -> str:
    """The colour of a category."""
    return INK[f"c{number % CATEGORIES}"]


def ordinal(rank: float) -> str:
    """The colour of a place in [0, 1] on the ordered scale."""
    return INK[f"o{round(max(0.0, min(1.0, rank)) * (SHADES - 1))}"]


def new_axes(*, height: float, left: float = 0.095, right: float = 0.97) -> tuple[Any, Any]:
    """(figure, axes) of this height in points; left and right are fractions of the width."""
    figure = MatplotlibFigure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((left, 48 / height, right - left, max(1, height - 48 - 26) / height))
    axes.patch.set_visible(False)
    return figure, axes


def finish(axes: Any, label: str, xlabel: str) -> None:
    """Name the axes, the y axis above it, and give both the look of the page; ticks are times 100 where the name says
    so with `%` or `× 100`."""
    top = axes.get_position().y1 + 8 / (72 * axes.figure.get_size_inches()[1])
    axes.figure.text(0.0, top, label, fontsize=12, color=INK["muted"])
    axes.set_xlabel(xlabel, color=INK["muted"], fontsize=11.5)
    for axis, text, count in ((axes.xaxis, xlabel, 6), (axes.yaxis, label, 5)):
        axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
        if "%" in text or "× 100" in text:
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
        else:
            axis.set_major_formatter(_tick)
    axes.grid(axis="y", color=INK["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK["muted"])
    axes.tick_params(axis="both", length=0, labelsize=11.5, labelcolor=INK["muted"])
    axes.tick_params(axis="x", length=3, color=INK["muted"])


def _tick(value: float, _: object) -> str:
    """A number as short as an axis needs it: 0.25, 1,500, 80k."""
    text = f"{value / 1000:,.6g}k" if abs(value) >= 10_000 else f"{value:,.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def spaced(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights moved apart to at least `gap`, order kept, each crowd centred on its own mean, from `low` upwards."""
    order, steps = np.argsort(heights, kind="stable"), gap * np.arange(len(heights))
    moved = isotonic_regression(np.asarray(heights, float)[order] - steps).x + steps
    placed = np.empty(len(heights))
    placed[order] = np.maximum(np.minimum(moved, high - steps[::-1]), low + steps)
    return placed.tolist()


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of curves at the right edge: (height, name, colour) each, moved apart."""
    if not ends:
        return
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_size_inches()[1] * 72
    heights = spaced([min(max(y, low), high) for y, *_ in ends], 14 / points * (high - low), low, high)
    for height, (_, name, color) in zip(heights, ends):
        y = (height - low) / (high - low)
        axes.text(1.02, y, name, transform=axes.transAxes, va="center", fontsize=12, color=color, fontweight="bold")


def to_figure(figure: Any, caption: str) -> Figure:
    """The drawing as an inline SVG whose colours are CSS variables."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "DejaVu Sans", "text.parse_math": False}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        for text in figure.findobj(match=lambda artist: hasattr(artist, "set_parse_math")):
            text.set_parse_math(False)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    names = {light: name for name, light in INK.items()}
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{names[m[0]]}, {m[0]})" if m[0] in names else m[0], svg)
    label = f'role="img" aria-label="{escape(caption)}"'
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', lambda m: f"<svg {m[1]}{label}", svg, count=1)
    return Figure(caption, svg)
