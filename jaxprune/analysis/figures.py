"""Figures of the report: data in, one SVG string out; no files, no global state.

Colours are CSS variables with a light fallback (`var(--ink, #1d2329)`), so an inline figure follows the page's light or
dark scheme. Categories use Okabe & Ito's colour-blind safe set, ordered series a stretch of viridis. All figures are
drawn 372 points wide, so that a column of a phone shows their text at its own size.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
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
# Stand-ins that Matplotlib can draw with; `_svg` puts the CSS variable back. Kept apart from any colour in use.
_STAND_IN = {name: f"#01{i:02x}fe" for i, name in enumerate(PALETTE)}
_ORDINALS = 64
_ORDINAL = [f"#02{i:02x}fe" for i in range(_ORDINALS)]


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
    figure, axes = _axes(height=272, right=0.72 if len(lines) > 1 or lines[0].name else 0.97)
    xs = sorted({x for line in lines for x in line.x})
    span = max(xs) - min(xs) or 0.1
    axes.set_xlim(min(xs) - 0.04 * span, max(xs) + 0.04 * span)
    for begin, end, regime in bands:
        low, high = max(begin, axes.get_xlim()[0]), min(end, axes.get_xlim()[1])
        axes.axvspan(low, high, color=_STAND_IN[f"band{regime or 0}"], lw=0, zorder=0)
        axes.text(
            (low + high) / 2,
            0.955,
            str(regime or "?"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="center",
            fontsize=12,
            fontweight="bold",
            color=_STAND_IN["muted"],
        )
    ends = []
    for i, line in enumerate(lines):
        color = _STAND_IN[f"c{i % CATEGORIES}"]
        means = [float(np.mean(v)) for v in line.values]
        for x, values in zip(line.x, line.values):
            if len(values) > 1:
                axes.plot([x, x], [min(values), max(values)], color=color, lw=1.4, alpha=0.75, solid_capstyle="butt")
                axes.plot([x] * len(values), values, "_", color=color, ms=7, mew=1.2)
        axes.plot(line.x, means, "-", color=color, lw=2, marker="o", ms=5, mec=_STAND_IN["paper"], mew=0.8, zorder=3)
        if line.reference is not None:
            axes.axhline(line.reference, color=color, lw=1.2, ls=(0, (4, 3)), alpha=0.9, zorder=1)
        ends.append((means[-1], line.name, color))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    _end_labels(axes, [end for end in ends if end[1]])
    _majority_label(axes, lines)
    axes.set_xticks(_thin(xs, span), [f"{100 * x:.3g}" for x in _thin(xs, span)])
    axes.set_xlabel("sparsity (% of the prunable weights)")
    _finish(axes, label, _percent if percent else None)
    return _svg(figure, title)


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
    figure, axes = _axes(height=232, right=0.86)
    for curve in curves:
        steps, values = _thinned(curve.steps, curve.values)
        axes.plot(steps, values, "-", color=_ordinal(curve.rank), lw=1.7)
    for curve in marks:
        axes.plot(curve.steps, curve.values, ".", color=_ordinal(curve.rank), ms=4)
    every = np.concatenate([np.asarray(c.values, float) for c in [*curves, *marks]])
    if clip is not None:
        low, high = float(every.min()), float(np.quantile(every, clip))
        pad = 0.06 * (high - low or 1)
        axes.set_ylim(low - pad, high + pad)
    named = curves or marks
    _end_labels(axes, [(float(c.values[-1]), c.name, _ordinal(c.rank)) for c in named if len(c.values)])
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(_locator(5))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    _finish(axes, label, _percent if percent else None)
    return _svg(figure, title)


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
    figure, axes = _axes(height=head + 20 * lines + (8 if others and rows else 0) + 8, left=0.17, right=0.985)
    height = figure.get_size_inches()[1] * 72
    axes.set_position((0.17, 6 / height, 0.815, (height - head - 6) / height))

    def cell(x: float, y: float, wide: float, value: float, name: str = "") -> None:
        share = max(-1.0, min(1.0, (value - target) / spread)) if spread > 0 else 0.0
        axes.barh(y, wide - 0.06, left=x + 0.03, height=0.9, color=_STAND_IN["band0"], lw=0)
        color = _STAND_IN["c1" if share > 0 else "c0"]
        axes.barh(y, wide - 0.06, left=x + 0.03, height=0.9, color=color, alpha=0.62 * abs(share), lw=0)
        text = f"{name}{100 * value:.1f}" if wide > 1 or columns <= 7 else f"{100 * value:.0f}"
        axes.text(x + wide / 2, y, text, ha="center", va="center", fontsize=10, color=_STAND_IN["ink"])

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
    axes.tick_params(length=0, labelcolor=_STAND_IN["ink"])
    for text in axes.texts:
        text.set_color(_STAND_IN["ink"])
    return _svg(figure, title)


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


def _ordinal(rank: float) -> str:
    return _ORDINAL[round(max(0.0, min(1.0, rank)) * (_ORDINALS - 1))]


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


def _axes(*, height: float, left: float = 0.095, right: float = 0.97) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((left, 48 / height, right - left, max(1, height - 48 - 26) / height))
    axes.patch.set_visible(False)
    return figure, axes


def _finish(axes: Any, label: str, formatter: Callable[[float, Any], str] | None) -> None:
    top = axes.get_position().y1 + 8 / (72 * axes.figure.get_size_inches()[1])
    axes.figure.text(0.0, top, label, fontsize=12, color=_STAND_IN["muted"])
    axes.yaxis.set_major_locator(_locator(5))
    if formatter:
        axes.yaxis.set_major_formatter(formatter)
    axes.grid(axis="y", color=_STAND_IN["grid"], lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_STAND_IN["muted"])
    axes.tick_params(axis="both", length=0, labelsize=11.5, labelcolor=_STAND_IN["muted"])
    axes.tick_params(axis="x", length=3, color=_STAND_IN["muted"])
    axes.xaxis.label.set(color=_STAND_IN["muted"], fontsize=11.5)


def _locator(count: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def _percent(value: float, _: Any) -> str:
    return f"{100 * value:.3g}"


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


def _spaced(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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


def _end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_size_inches()[1] * 72
    heights = _spaced([min(max(y, low), high) for y, *_ in ends], 14 / points * (high - low), low, high)
    for height, (_, name, color) in zip(heights, ends):
        y = (height - low) / (high - low)
        axes.text(1.02, y, name, transform=axes.transAxes, va="center", fontsize=12, color=color, fontweight="bold")


def _majority_label(axes: Any, lines: Sequence[Line]) -> None:
    """Name the lowest dashed line, for all."""
    references = [line.reference for line in lines if line.reference is not None]
    if references:
        place = (0.0, min(references))
        style = {"va": "bottom", "fontsize": 10.5, "color": _STAND_IN["muted"]}
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, 3), "textcoords": "offset points"}
        axes.annotate("majority class", place, **where, **style)


def _svg(figure: Any, title: str) -> str:
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
    back = {code: name for name, code in _STAND_IN.items()} | {code: f"o{i}" for i, code in enumerate(_ORDINAL)}
    svg = re.sub(r"#0[12][0-9a-f]{2}fe", lambda m: f"var(--{back[m[0]]}, {_color(back[m[0]], False)})", svg)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Ids must not meet those of another figure on the same page.
    unique = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{unique}-", svg)
    name = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf'<svg \1role="img" aria-label="{name}"', svg, count=1)
