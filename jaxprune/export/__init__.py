"""Files that leave the house, and our sparse form read back."""

from jaxprune.export.load import load

__all__ = ["load"]
