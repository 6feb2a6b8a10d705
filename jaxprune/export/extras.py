"""Libraries that one form needs and the rest of the house does not."""

import importlib
from types import ModuleType

from jaxprune.errors import UserError


def needed(extra: str, *modules: str) -> list[ModuleType]:
    """The modules, imported; UserError that names the extra where one is not installed."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise UserError(f"--format {extra}: needs {missing}; pip install 'jaxprune[{extra}]'") from None
