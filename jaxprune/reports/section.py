"""What a section of the study's page consists of: figures on both sides, and tables. Its words are the template's."""

import dataclasses
from collections.abc import Sequence

from jaxprune.analysis.intervals import Frame
from jaxprune.reports.charts import Series
from jaxprune.reports.svg import Figure, category


class Published(str):
    """A line of a cell that the paper printed."""

    published = True


Cell = str | Sequence[str]
"""One line, or several."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of the page."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """A row of one cell is a heading over the rows that follow."""


@dataclasses.dataclass(frozen=True)
class Section:
    """One item of the paper, as measured here and as printed there."""

    ours: Sequence[Figure] = ()
    theirs: Sequence[Figure] = ()
    grids: Sequence[Grid] = ()
    pairs: int = 0
    """So many of the first figures on both sides show the same, and stand side by side."""
    measured: bool = True
    """Whether there is anything of this study's own."""


def band(name: str, rows: Frame, column: str, color: int = 0) -> Series:
    """The mean of a column against the sparsity, with a band from lowest to highest."""
    groups = rows.groupby("target")[column]
    means, low, high = (getattr(groups, end)() for end in ("mean", "min", "max"))
    return Series(name, [*means.index], [*means], category(color), low=[*low], high=[*high])
