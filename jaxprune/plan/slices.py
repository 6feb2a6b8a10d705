"""Names of TPU slices -> topologies that the compiler knows."""

import difflib
import math
import re
from typing import NamedTuple

from jaxprune.errors import UserError
from jaxprune.plan.chips import CHIPS, Chip

# The number in a name counts chips for v5e and v6e and cores, two a chip, for v4 and v5p; shapes are those of the
# "Configurations" tables of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: v5p-64 is 32 chips, 2x4x4.
NAMES = {
    **{f"v5e-{n}": f"v5e:{shape}" for n, shape in ((4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"))},
    **{f"v5e-{n}": f"v5e:{shape}" for n, shape in ((64, "8x8"), (128, "8x16"), (256, "16x16"))},
    **{f"v6e-{n}": f"v6e:{shape}" for n, shape in ((4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"))},
    **{f"v6e-{n}": f"v6e:{shape}" for n, shape in ((64, "8x8"), (128, "8x16"), (256, "16x16"))},
    **{f"v4-{n}": f"v4:{shape}" for n, shape in ((8, "2x2x1"), (16, "2x2x2"), (32, "2x2x4"), (64, "2x4x4"))},
    **{f"v4-{n}": f"v4:{shape}" for n, shape in ((128, "4x4x4"), (256, "4x4x8"), (512, "4x8x8"))},
    **{f"v5p-{n}": f"v5p:{shape}" for n, shape in ((8, "2x2x1"), (16, "2x2x2"), (32, "2x2x4"), (64, "2x4x4"))},
    **{f"v5p-{n}": f"v5p:{shape}" for n, shape in ((128, "4x4x4"), (256, "4x4x8"), (512, "4x8x8"))},
}


class Slice(NamedTuple):
    """A slice of one kind of chip; shape holds its chips along each axis of the interconnect."""

    topology: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Chips in the slice."""
        return math.prod(self.shape)

    @property
    def ici_rate(self) -> float:
        """ICI bytes/s that leave the chip with the fewest links: a corner, where the axes do not close to rings."""
        closed = [size % self.chip.wraps == 0 for size in self.shape]
        if len(self.shape) == 3:
            closed = [all(closed)] * 3
        links = sum(0 if n == 1 else 2 if ring and n > 2 else 1 for n, ring in zip(self.shape, closed))
        return self.chip.ici_rate * links / self.chip.ports


def find(name: str) -> Slice:
    """The slice of a name (v5e-8) or a topology (v5e:2x4). UserError lists the known names."""
    topology = NAMES.get(name, name)
    kind, _, shape = topology.partition(":")
    axes = 3 if kind in ("v4", "v5p") else 2
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (axes - 1), shape):
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = f"{', '.join(NAMES)}, or a shape such as v5e:4x8"
        raise UserError(f"--topology {name}: unknown slice; {hint}known are {known}")
    return Slice(topology, CHIPS[kind], tuple(int(n) for n in shape.split("x")))
