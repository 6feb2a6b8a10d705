"""The tokens that a model gives a meaning of their own."""

from typing import NamedTuple


class SpecialTokens(NamedTuple):
    """An architecture's special tokens, as they are spelled in its vocabulary."""

    pad: str
    unk: str
    cls: str
    sep: str
    mask: str
