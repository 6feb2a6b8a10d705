"""What crosses between chips: collectives of a compiled module, their bytes, and sorts."""

import math
import re
from typing import NamedTuple

from jaxprune.plan.hlo import Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OPCODES = (*KINDS, *(f"{kind}-start" for kind in KINDS))  # a -done adds nothing to its -start
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'=(\d+)")


class Collective(NamedTuple):
    """One collective as one chip sees it."""

    kind: str
    count: int
    """Runs per step; in a loop of unknown length, per pass."""
    bytes: int
    """Payload of one run: the arrays reduced, permuted or exchanged; of a gather, what comes together."""
    group: int
    """Chips that take part."""
    per_pass: bool
    largest: int
    """Bytes of its largest array."""
    blocking: bool
    """Whether the chip waits for it; else it has a start and a done with work between them."""

    @property
    def wire(self) -> float:
        """Bytes that leave a chip in one run, at the least: an all-reduce sends 2 (n - 1) / n of its payload."""
        share = (self.group - 1) / self.group
        return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share) * self.bytes


def collectives(module: Module, chips: int) -> list[Collective]:
    """The collectives that run in a module compiled for so many chips; those within a single chip are left out."""
    found = []
    for instruction, count in module.running(*_OPCODES):
        kind = instruction.opcode.removesuffix("-start")
        group = _group(instruction, chips)
        # An all-reduce may narrow what it reads: its result's type is what crosses.
        shapes = instruction.result if kind == "all-reduce" else module.shapes(instruction.operands)
        arrays = [shape.bytes * (group if kind == "all-gather" else 1) for shape in shapes]
        if kind == "all-reduce" and instruction.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a fusion of an all-reduce and the slice of it that this chip keeps
        if group > 1 and arrays:
            per_pass = instruction.computation in module.endless
            blocking = not instruction.opcode.endswith("-start")
            found.append(Collective(kind, count, sum(arrays), group, per_pass, max(arrays), blocking))
    return found


def sorts(module: Module) -> list[tuple[int, int]]:
    """(elements, runs) of each sort."""
    return [(max(shape.elements for shape in i.result), count) for i, count in module.running("sort")]


def _group(instruction: Instruction, chips: int) -> int:
    said = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        return chips
    if listed := _LISTED.search(said):
        return len(listed[1].split(","))
    if iota := _IOTA.search(said):
        return int(iota[1])
    if mesh := _MESH.search(said):
        sizes = dict(_AXIS.findall(mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return chips
