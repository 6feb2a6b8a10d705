"""What a config file says and the command line cannot: rows of a list, sections by free names, keys over others."""

import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

_TITLE = "In the file alone (`-` is a row of a list, NAME a name of yours):"
_WIDTH, _INDENT = 80, " " * 8


def described_keys(model: type[BaseModel]) -> str:
    """The keys of `model` that only a file sets, with their meaning, for the end of `--help`; empty without any."""
    lines: list[str] = []
    for key, words in file_keys(model, {}):
        lines += ["  " + key, *textwrap.wrap(words, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)]
    return "\n".join(["", _TITLE, *lines, ""]) if lines else ""


def file_keys(
    model: type[BaseModel], seen: dict[Any, str], prefix: str = "", *, within: bool = False
) -> Iterator[tuple[str, str]]:
    """(dotted key, description) of what no flag sets; `within` a row all of its keys are.

    A section that stood before, in `seen`, is one row that says where.
    """
    for name, field in model.model_fields.items():
        key, sections = f"{prefix}{name}", sections_in(field.annotation)
        rows, names = get_origin(field.annotation) is tuple, get_origin(field.annotation) is dict
        if within or names or (rows and sections):
            yield key, " ".join((field.description or "").split())
        for section in sections:
            inner = f"{key}.-." if rows else f"{key}.NAME." if names else f"{key}."
            inside = within or rows or names
            keys = [*file_keys(section, seen, inner, within=inside)]
            first = seen.setdefault((section, inside), inner)
            yield from [(f"{inner}*", f"As {first}*")] if keys and first != inner else keys


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation holds: itself, an optional's, a tuple's items, a dict's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) not in (tuple, dict, Union, UnionType, Annotated):
        return []
    return [section for inner in get_args(annotation) for section in sections_in(inner)]
