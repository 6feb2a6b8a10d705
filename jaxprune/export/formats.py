"""The forms in which a model can leave the house."""

from collections.abc import Callable
from typing import NamedTuple

from jaxprune.export import coreml, hugging_face, onnx, openvino, sparse, two_four
from jaxprune.export.values import DTYPES


class Format(NamedTuple):
    """One of them."""

    write: Callable[..., None]
    """`write(source, target, dtype=..., coded=...)` fills the empty directory `target`."""
    dtypes: tuple[str, ...]
    """Types that the values can have, the default first; `stored`: as the source has them."""


FORMATS: dict[str, Format] = {
    "hf": Format(hugging_face.write, ("stored",)),
    "sparse": Format(sparse.write, ("stored", *DTYPES)),
    "onnx": Format(onnx.write, ("float32", "int8")),
    "openvino": Format(openvino.write, ("float32", "int8")),
    "coreml": Format(coreml.write, ("float16", "float32")),
    "torch-2:4": Format(two_four.write, ("float16", "bfloat16")),
}
"""Name of a form -> how it is written."""
