"""Bytes of HBM that a compiled module reads and writes."""

from jaxprune.plan.hlo import Instruction, Module, Shape

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id", "replica-id"}
_FREE |= {"while", "conditional", "call", "after-all", "opt-barrier", "add-dependency"}


def hbm_bytes(module: Module) -> tuple[float, float]:
    """(bytes of everything, of these the bytes of one pass of its loops of unknown length) on one chip.

    Each instruction reads its operands and writes its results once, without what lies on the core. One that reads a
    part of an operand, as a look-up does, counts it whole.
    """
    total = per_pass = 0.0
    for instruction in module.instructions.values():
        times = module.times.get(instruction.computation, 0)
        opcode = instruction.opcode
        if not times or instruction.computation in module.fused or opcode in _FREE or opcode.endswith("-done"):
            continue
        moved = times * _moved(instruction, module.shapes(instruction.operands))
        total += moved
        per_pass += moved * (instruction.computation in module.endless)
    return total, per_pass


def _moved(instruction: Instruction, operands: list[Shape]) -> int:
    if instruction.opcode in ("copy-start", "slice-start"):  # the source is listed among the results, and whole
        target = instruction.result[0 if instruction.opcode == "copy-start" else len(operands)]
        return target.bytes * (target.hbm + operands[0].hbm)
    return sum(shape.bytes for shape in (*instruction.result, *operands) if shape.hbm)
