"""What all figures are drawn on: colours that follow the page, axes, labels, and the way to one SVG string.

Colours are CSS variables with a light fallback (`var(--ink, #1d2329)`), so an inline figure follows the page's light or
dark scheme. Categories use Okabe & Ito's colour-blind safe set, ordered series a stretch of viridis. All figures are
drawn 372 points wide, so that a column of a phone shows their text at its own size.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# name: (light, dark)
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
}
CATEGORIES = 8
WIDTH = 372
# Stand-ins that Matplotlib can draw with; `svg_of` puts the CSS variable back. Kept apart from any colour in use.
INK = {name: f"#01{i:02x}fe" for i, name in enumerate(PALETTE)}
_ORDINALS = 64
_ORDINAL = [f"#02{i:02x}fe" for i in range(_ORDINALS)]


def style() -> str:
    """CSS: the variables of `PALETTE` and of the ordered scale, light and dark."""
    light, dark = ("".join(f"--{name}:{_color(name, d)};" for name in _names()) for d in (False, True))
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def _names() -> list[str]:
    return [*PALETTE, *(f"o{i}" for i in range(_ORDINALS))]


def _color(name: str, dark: bool) -> str:
    if name in PALETTE:
        return PALETTE[name][dark]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # The ends of viridis that vanish against the page are left out: yellow on white, violet on black.
    place = int(name[1:]) / (_ORDINALS - 1)
    return to_hex(colormaps["viridis"](0.45 + 0.52 * place if dark else 0.78 * (1 - place)))


def ordinal(rank: float) -> str:
    """The stand-in colour of a place in [0, 1] on the ordered scale."""
    return _ORDINAL[round(max(0.0, min(1.0, rank)) * (_ORDINALS - 1))]


def new_axes(*, height: float, left: float = 0.095, right: float = 0.97) -> tuple[Any, Any]:
    """(figure, axes) of this height in points; left and right are fractions of the width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((left, 48 / height, right - left, max(1, height - 48 - 26) / height))
    axes.patch.set_visible(False)
    return figure, axes


def finish(axes: Any, label: str, formatter: Callable[[float, Any], str] | None) -> None:
    """Name the y axis above it, and give both axes the look of the page."""
    top = axes.get_position().y1 + 8 / (72 * axes.figure.get_size_inches()[1])
    axes.figure.text(0.0, top, label, fontsize=12, color=INK["muted"])
    axes.yaxis.set_major_locator(locator(5))
    if formatter:
        axes.yaxis.set_major_formatter(formatter)
    axes.grid(axis="y", color=INK["grid"], lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK["muted"])
    axes.tick_params(axis="both", length=0, labelsize=11.5, labelcolor=INK["muted"])
    axes.tick_params(axis="x", length=3, color=INK["muted"])
    axes.xaxis.label.set(color=INK["muted"], fontsize=11.5)


def locator(count: int) -> Any:
    """Round ticks, about `count`."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def percent_tick(value: float, _: Any) -> str:
    """A fraction as per cent, for an axis."""
    return f"{100 * value:.3g}"


def spaced(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights moved apart to at least `gap`, order kept, each crowd centred on its own mean, from `low` upwards."""
    order = np.argsort(np.asarray(heights), kind="stable")
    blocks: list[list[float]] = []  # [sum, count] of (height - place * gap), merged until the means ascend
    for place, i in enumerate(order):
        blocks.append([heights[int(i)] - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    flat = [total / count for total, count in blocks for _ in range(int(count))]
    out = [0.0] * len(flat)
    for place, i in enumerate(order):
        limit = high - (len(flat) - 1 - place) * gap
        out[int(i)] = max(min(flat[place] + place * gap, limit), low + place * gap)
    return out


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names of curves at the right edge: (height, name, colour) each, moved apart."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_size_inches()[1] * 72
    heights = spaced([min(max(y, low), high) for y, *_ in ends], 14 / points * (high - low), low, high)
    for height, (_, name, color) in zip(heights, ends):
        y = (height - low) / (high - low)
        axes.text(1.02, y, name, transform=axes.transAxes, va="center", fontsize=12, color=color, fontweight="bold")


def svg_of(figure: Any, title: str) -> str:
    """The figure as an inline SVG whose colours are CSS variables and whose ids are its own."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        for text in figure.findobj(match=lambda artist: hasattr(artist, "set_parse_math")):
            text.set_parse_math(False)
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    back = {code: name for name, code in INK.items()} | {code: f"o{i}" for i, code in enumerate(_ORDINAL)}
    svg = re.sub(r"#0[12][0-9a-f]{2}fe", lambda m: f"var(--{back[m[0]]}, {_color(back[m[0]], False)})", svg)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Ids must not meet those of another figure on the same page.
    unique = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{unique}-", svg)
    name = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf'<svg \1role="img" aria-label="{name}"', svg, count=1)
