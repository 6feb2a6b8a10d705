"""The forms in which a model can leave the house."""

from collections.abc import Callable
from typing import NamedTuple

from jaxprune.export import hugging_face, sparse


class Format(NamedTuple):
    """One of them."""

    write: Callable[..., None]
    """`write(source, target, dtype=..., coded=...)` fills the empty directory `target`."""
    dtypes: tuple[str, ...]
    """Types that the values can have, the default first; `stored`: as the source has them."""


FORMATS: dict[str, Format] = {
    "hf": Format(hugging_face.write, ("stored",)),
    "sparse": Format(sparse.write, ("stored", *sparse.DTYPES)),
}
"""Name of a form -> how it is written."""
