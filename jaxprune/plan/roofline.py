"""Bounds from published figures: the least time of a step, and what a recipe then takes and costs."""

from typing import NamedTuple

from jaxprune.plan.chips import Chip

PRUNE_PASSES = 12
"""Passes of a loop over the scores: a threshold is found in about a third of its 32 bits."""


class Roofline(NamedTuple):
    """Seconds that one step takes at least, by what bounds it; nothing overlaps better than the slowest alone."""

    compute: float
    hbm: float
    ici: float

    @property
    def seconds(self) -> float:
        """The bound of the step."""
        return max(self)

    @property
    def bound_by(self) -> str:
        """Which of the three it is."""
        return self._fields[self.index(self.seconds)]


def roofline(chip: Chip, ici_rate: float, *, flops: float, hbm_bytes: float, wire_bytes: float) -> Roofline:
    """The bounds of work on one chip: FLOPs as the matrix unit takes them, bytes of HBM, bytes that leave the chip."""
    return Roofline(flops / chip.flops, hbm_bytes / chip.hbm_rate, wire_bytes / ici_rate)


def recipe(
    train: Roofline,
    prune: Roofline | None,
    *,
    steps: int,
    prunes: int,
    tokens_per_step: int,
    useful_flops: float,
    chip: Chip,
    chips: int,
    price: float | None,
) -> dict[str, float | None]:
    """Tokens/s, MFU bound, hours and cost of a whole run at its bounds.

    useful_flops are the model's own, of one step on one chip. price is in USD per chip and hour; without one the cost
    is None.
    """
    hours = (steps * train.seconds + (prunes * prune.seconds if prune else 0.0)) / 3600
    return {
        "steps": steps,
        "prunes": prunes,
        "tokens_per_second": tokens_per_step / train.seconds,
        "mfu_bound": useful_flops / (train.seconds * chip.flops),
        "hours": hours,
        "chip_hours": hours * chips,
        "cost_usd": None if price is None else hours * chips * price,
    }
