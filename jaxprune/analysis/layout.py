"""What a section of the study's report consists of: figures on both sides, tables, and what is missing."""

import dataclasses
from collections.abc import Sequence

from jaxprune.analysis.plots import Series
from jaxprune.analysis.prose import minus
from jaxprune.analysis.study import Frame

Picture = tuple[str, str]
"""(caption, SVG)."""
Cell = list[tuple[str, bool]]
"""Lines of a cell: (text, is the published number)."""
SPARSITY = "sparsity (% of the prunable weights)"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of the page."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """A row of one cell is a heading over the rows that follow."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One item of the paper."""

    title: str
    about: str
    items: Sequence[str] = ()
    """Which claims belong here: their `item`."""
    ours: Sequence[Picture] = ()
    theirs: Sequence[Picture] = ()
    pairs: int = 0
    """So many of the first figures on both sides show the same, and stand side by side."""
    published: str = ""
    """What to say where the paper has no numbers."""
    gap: str = ""
    """What was not measured, and what it takes."""
    grids: Sequence[Grid] = ()


def cell(*lines: str) -> Cell:
    """A cell of our own lines."""
    return [(line, False) for line in lines]


def section(
    title: str,
    about: str,
    items: Sequence[str],
    ours: Sequence[Picture],
    words: str,
    missing: str,
    grids: Sequence[Grid] = (),
    theirs: Sequence[Picture] = (),
) -> Section:
    """A section that names what is `missing` where there is no figure of ours."""
    return Section(title, about, items, ours, theirs, 0, words, "" if ours else missing, grids)


def mean_over(rows: Frame, x: str, y: str) -> tuple[list[float], list[float]]:
    """Every x with the mean of its y."""
    means = rows.groupby(x)[y].mean()
    return means.index.tolist(), means.tolist()


def band(name: str, rows: Frame, column: str, color: int) -> Series:
    """The mean of a column against the sparsity, with a band from lowest to highest."""
    groups = rows.groupby("target")[column]
    means = groups.mean()
    return Series(name, means.index.tolist(), means.tolist(), color, (), groups.min().tolist(), groups.max().tolist())


def span(values: list[float], digits: int) -> str:
    """`lowest to highest`, or one number, or a dash."""
    if not values:
        return "–"
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return minus(low if low == high else f"{low} to {high}")
