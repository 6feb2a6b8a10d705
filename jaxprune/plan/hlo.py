"""Compiled HLO text -> instructions, and how often each runs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_ASSIGNED = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*S\([1-9]\d*\)[^}]*\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_BITS = re.compile(r"[a-z]+(\d+)")


class Shape(NamedTuple):
    """Type and sizes of one array."""

    dtype: str
    sizes: tuple[int, ...]
    hbm: bool = True
    """False where the compiler put it into memory on the core, S(1) and above."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Size without the padding of layouts; a bool (pred) takes a byte."""
        found = _BITS.match(self.dtype)
        return self.elements * (int(found[1]) if found else 8) // 8


class Instruction(NamedTuple):
    """One instruction: its result's arrays, its operands' names, and what follows them."""

    name: str
    opcode: str
    result: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    computation: str


class Module(NamedTuple):
    """A module's instructions by name, and for each computation how often it runs."""

    instructions: dict[str, Instruction]
    times: dict[str, int]
    """Runs of a computation per run of the module, 0 if it is never called; a loop of unknown length counts once."""
    endless: frozenset[str]
    """Computations inside a loop whose number of passes the compiler does not know."""
    fused: frozenset[str]
    """Computations that are part of one instruction: of a fusion, a reduction, a sort."""

    def running(self, *opcodes: str) -> Iterator[tuple[Instruction, int]]:
        """Instructions of these opcodes that run, with how often they do."""
        for instruction in self.instructions.values():
            if instruction.opcode in opcodes and self.times.get(instruction.computation):
                yield instruction, self.times[instruction.computation]

    def shapes(self, names: tuple[str, ...]) -> list[Shape]:
        """The arrays that the named instructions make."""
        return [shape for name in names for shape in self.instructions[name].result]


def parse(text: str) -> Module:
    """The module in the text of `compiled.as_text()`."""
    instructions: dict[str, Instruction] = {}
    bodies: dict[str, list[Instruction]] = {}
    entry = inside = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            inside = header[2]
            entry = inside if header[1] else entry
        elif assigned := _ASSIGNED.match(line):
            instruction = _instruction(assigned[1], assigned[2], inside)
            instructions[instruction.name] = instruction
            bodies.setdefault(inside, []).append(instruction)
    times: dict[str, int] = {}
    endless: set[str] = set()
    fused: set[str] = set()

    def visit(computation: str, count: int, unknown: bool, inside: bool) -> None:
        times[computation] = times.get(computation, 0) + count
        if unknown:
            endless.add(computation)
        if inside:
            fused.add(computation)
        for instruction in bodies.get(computation, ()):
            called = _called(instruction.attributes)
            trips = _TRIPS.search(instruction.attributes) if instruction.opcode == "while" else None
            lost = unknown or (instruction.opcode == "while" and trips is None)
            part = inside or instruction.opcode not in ("while", "conditional", "call")
            for name in called:
                visit(name, count * (int(trips[1]) if trips else 1), lost, part)

    visit(entry, 1, False, False)
    return Module(instructions, times, frozenset(endless), frozenset(fused))


def _instruction(name: str, rest: str, computation: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        raise ValueError(f"HLO instruction %{name}: no opcode in {rest[:80]!r}; XLA's text has changed, use jax 0.10")
    stop = _closing(rest, opcode.end() - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opcode.end() : stop]))
    found = _SHAPE.findall(rest[:end])
    result = tuple(Shape(dtype, tuple(int(n) for n in sizes.split(",") if n), not core) for dtype, sizes, core in found)
    return Instruction(name, opcode[1], result, operands, rest[stop + 1 :], computation)


def _closing(text: str, at: int) -> int:
    depth = 0
    for index in range(at, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text)


def _called(attributes: str) -> list[str]:
    lists = (re.findall(r"%([\w.\-]+)", found) for found in _CALLED_LISTS.findall(attributes))
    return [*_CALLED.findall(attributes), *(name for names in lists for name in names)]
