"""Matrix products of a compiled module: their FLOPs, and how the matrix unit takes them."""

import re
from typing import NamedTuple

import numpy as np

from jaxprune.plan.hlo import Instruction, Module, Shape

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_PRECISION = re.compile(r"operand_precision=\{(\w+)")
_PASSES = {"high": 3, "highest": 6}  # bf16 products that stand for one of float32


class Product(NamedTuple):
    """The products of one kind."""

    flops: float
    """Per step on one chip; a multiply-add is 2, and additions of padding do not count."""
    passes: int
    """Times the matrix unit multiplies: 1, or more for float32 at a precision above the default."""
    float32: bool
    """Whether an operand is float32: read from HBM at 4 bytes unless the conversion is fused; multiplied as bf16."""


def products(module: Module) -> list[Product]:
    """The dots and convolutions (what TPUs turn dots into) that run in a module."""
    found = []
    for instruction, count in module.running("dot", "convolution"):
        lhs, rhs = module.shapes(instruction.operands)[:2]
        count_of = dot_flops if instruction.opcode == "dot" else convolution_flops
        precision = _PRECISION.search(instruction.attributes)
        passes = _PASSES.get(precision[1] if precision else "", 1)
        found.append(Product(count * count_of(instruction, lhs, rhs), passes, "f32" in (lhs.dtype, rhs.dtype)))
    return found


def dot_flops(dot: Instruction, lhs: Shape, rhs: Shape) -> float:
    """2 x elements of the result x contracted size."""
    del rhs
    contracted = _CONTRACTED.search(dot.attributes)
    sizes = [lhs.sizes[int(axis)] for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * dot.result[0].elements * float(np.prod(sizes))


def convolution_flops(convolution: Instruction, lhs: Shape, rhs: Shape) -> float:
    """As XLA counts (HloCostAnalysis): only where a window lies on a real element, not on padding or dilation."""
    labels = _LABELS.search(convolution.attributes)
    if labels is None:
        return 0.0
    inputs, kernel, output = labels.groups()
    found = _WINDOW.search(convolution.attributes)
    window = dict(part.split("=", 1) for part in found[1].split()) if found else {}
    out = convolution.result[0].sizes
    flops = 2.0 * rhs.sizes[kernel.index("i")] * out[output.index("f")] * out[output.index("b")]
    for axis in sorted(label for label in inputs if label.isdigit()):
        at = int(axis)
        settings = [int(window[k].split("x")[at]) if k in window else 1 for k in _WINDOW_KEYS]
        low = int(window["pad"].split("x")[at].split("_")[0]) if "pad" in window else 0
        flops *= _valid(lhs.sizes[inputs.index(axis)], out[output.index(axis)], low, *settings)
    return flops


_WINDOW_KEYS = ("size", "stride", "lhs_dilate", "rhs_dilate")


def _valid(length: int, out: int, low: int, size: int, stride: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """Pairs of (place in the output, place in the window) along one axis that meet an element of the input."""
    place = np.arange(out)[:, None] * stride - low + np.arange(size)[None, :] * rhs_dilate
    return int(np.sum((place >= 0) & (place % lhs_dilate == 0) & (place // lhs_dilate < length)))
