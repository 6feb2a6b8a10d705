"""docs/configuration.md from the config models: `python docs/configuration.py > docs/configuration.md`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from jaxprune.config import COMMANDS
from jaxprune.config.file_keys import sections_in

HEAD = """# Every key of a config

Made from the models in `jaxprune/config` by `python docs/configuration.py`; a test keeps it so.

A config is a YAML file: `jaxprune COMMAND CONFIG.yaml --workdir DIR`. Any key can be set on the command line behind it:
sections with a dot, words with hyphens (`--prune.sparsity 0.7 --batch-size 64`), lists with spaces (`--seeds 0 1 2`).
What only a file can say (rows of a list, names of yours) is at the end of `jaxprune COMMAND --help`. An unknown key is
an error, with the nearest that exists.

- **Paths** count from the directory in which the command runs, not from the file; `base:` alone counts from its file.
- **`base: FILE`** takes that file's keys, and lays this file's over them, section by section.
- **Fractions** are in [0, 1]: 0.7, not 70.
- **Regexes** match a parameter's whole path, `encoder/layer_00/attention/query/kernel`; `jaxprune inspect` lists them.
- The config of a run is kept in its workdir, whole, as `config.yaml`: run it again as it is. Of a run that was begun,
  only `train.log_every`, `train.eval_*`, `train.save_every`, `train.keep`, `mesh` and the paths of data may change.
"""


def main() -> None:
    print(HEAD)
    seen: dict[type[BaseModel], str] = {}
    for command, model in COMMANDS.items():
        print(f"## {command}\n{model.__doc__}\n")
        print("\n".join(table(model, seen, f"`{command}`")))


def table(model: type[BaseModel], seen: dict[type[BaseModel], str], where: str) -> Iterator[str]:
    """The rows of a section, and below them those of the sections in it that did not stand before."""
    seen[model] = where
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        known = [f"keys as in {seen[section]}" for section in sections_in(field.annotation) if section in seen]
        inner += [(name, section) for section in sections_in(field.annotation) if section not in seen]
        words = " ".join([*" ".join((field.description or "").split()).split("|"), *known])
        yield f"| `{name}` | {kind(field.annotation)} | {default(field)} | {words} |"
    yield ""
    for name, section in inner:
        if section not in seen:
            yield f"### {where} `{name}`"
            yield f"{section.__doc__}\n"
            yield from table(section, seen, f"{where} `{name}`")


def kind(annotation: Any) -> str:
    """What a key takes, in words."""
    inner, origin = get_args(annotation), get_origin(annotation)
    if sections := sections_in(annotation):
        section = "keys of its own" if origin is not dict else "name -> keys"
        others = [kind(item) for item in inner if item is str]
        return " or ".join([*others, f"a list of {section}" if origin is tuple and len(sections) else section])
    if origin is tuple:
        return f"list of {kind(inner[0])}" if inner[-1] is Ellipsis else ", ".join(map(kind, inner))
    if origin is dict:
        return f"{kind(inner[0])} -> {kind(inner[1])}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return kind(inner[0])
    if inner:
        return " or ".join(kind(item) for item in inner)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    return names.get(annotation, str(annotation))


def default(field: Any) -> str:
    """The default in YAML's words; empty where a section has its own defaults."""
    value = field.get_default(call_default_factory=True) if not field.is_required() else "required"
    if isinstance(value, BaseModel) or value in ("", (), {}):
        return ""
    if isinstance(value, tuple):
        return "" if any(isinstance(item, BaseModel) for item in value) else f"`[{', '.join(map(str, value))}]`"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return "required" if value == "required" else f"`{value}`"


if __name__ == "__main__":
    main()
