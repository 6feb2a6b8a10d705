"""How numbers read on every page: minus signs, per cent, intervals, and a dash where there is no number."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.intervals import Estimate

NOTHING = "–"


def fixed(value: float | None, digits: int = 1, *, scale: float = 1.0, sign: bool = False) -> str:
    """`scale * value` with a minus sign (and a plus sign if `sign`); a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    number = round(scale * value, digits) + 0.0  # + 0.0: no minus sign before a zero
    return f"{number:{'+' if sign else ''},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(fraction: float) -> str:
    """A fraction in per cent, with no more digits than it has (at most 4)."""
    return f"{100 * fraction:.4g}\N{NO-BREAK SPACE}%"


def with_noise(
    value: Estimate | None, digits: int = 1, *, scale: float = 1.0, sign: bool = False, alone: str = ""
) -> str:
    """`92.1 ± 0.4` in one piece; without an interval the mean and the words `alone`; a dash without values."""
    if value is None or value.n == 0:
        return NOTHING
    mean = fixed(value.mean, digits, scale=scale, sign=sign)
    if math.isnan(value.half):
        return f"{mean} {alone}".rstrip()
    return f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{fixed(value.half, digits, scale=scale)}"


def with_count(value: Estimate, digits: int = 1, *, scale: float = 1.0) -> str:
    """`92.1 ± 0.4 (n = 3)`, `92.1 (n = 1, no interval)`, or a dash without values."""
    text = with_noise(value, digits, scale=scale)
    return text if value.n == 0 else f"{text} (n = {value.n}{', no interval' if value.n == 1 else ''})"


def span(values: Iterable[float], digits: int, *, scale: float = 1.0) -> str:
    """`lowest to highest`, or one number where both read the same, or a dash."""
    ends = sorted(values)
    low, high = (fixed(end, digits, scale=scale) for end in (ends[0], ends[-1])) if ends else (NOTHING, NOTHING)
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def duration(seconds: float) -> str:
    """`61.5 s`, `300 s (5.0 min)`, `9,000 s (2.5 h)`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return (
        f"{seconds:,.0f} s ({seconds / 60:.1f} min)" if seconds < 7200 else f"{seconds:,.0f} s ({seconds / 3600:.1f} h)"
    )


def is_number(value: Any) -> bool:
    """Whether a cell holds a finite number."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def cell_text(value: Any) -> str:
    """Any value in a table's cell: floats with four digits after the point, a dash for nothing."""
    if value is None or value != value:
        return NOTHING
    return f"{value:,.{4 if abs(value) < 1000 else 1}f}" if isinstance(value, float | np.floating) else str(value)
