"""YAML files and command-line overrides -> one validated config."""

import contextlib
import difflib
import io
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from jaxprune.config.file_keys import described_keys
from jaxprune.config.task import TAGS
from jaxprune.errors import UserError

MAX_BYTES = 1 << 20
LOOP = r"train\.(log_every|eval_every|eval_batches|save_every|keep|stall_minutes)|mesh\.\w+"
"""Keys of how a run goes about it, and where."""
MAY_CHANGE = re.compile(LOOP + r"|data\.path|glue|tokenizer|tasks\.\d+\.(train|dev|dataset|metrics)")
"""Keys that may change between a start and its resumption: they change no weight. (What the data holds is compared by
its fingerprint.)"""
C = TypeVar("C", bound=BaseModel)
Offers = Callable[[], Mapping[str, Sequence[str]]]


class _StrictLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses duplicate keys and aliases, both of which hide what a config says."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise UserError(f"line {event.start_mark.line + 1}: aliases are not supported; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise UserError(f"line {key_node.start_mark.line + 1}: a list or mapping is no key; quote it")
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in one YAML file, `base:` not followed. ValueError names the file, line and remedy."""
    if not path.is_file():
        raise UserError(f"config {path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"config {path}: {path.stat().st_size} bytes; a config has at most {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """The mapping in the text of the YAML file `path`, as `read_yaml` has it."""
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise UserError(f"config {path}: nested too deeply; write it flatter") from None
    except yaml.YAMLError as error:
        raise UserError(f"config {path}: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise UserError(f"config {path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"config {path}: expected keys and values at the top, got {type(content).__name__}")
    return content


def read_config(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a YAML file laid over those of its `base:` files, sections key by key."""
    path = path.resolve()
    if path in _seen:
        raise UserError(f"config {path}: base: leads back to this file")
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    return _merge(read_config(path.parent / str(base), (*_seen, path)), content)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def validate(model: type[C], content: dict[str, Any], where: str) -> C:
    """`content` as a `model`; a ValueError lists every wrong key with its value and the nearest right one."""
    command = model.model_fields["command"].default if "command" in model.model_fields else None
    if command and content.get("command", command) != command:
        raise UserError(f"{where}: this config is for `jaxprune {content['command']}`, not `jaxprune {command}`")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        # A list is too short, too, where what is wrong in it was left out.
        told = [one for one in problems if one["type"] != "too_short" or not _holds_more(one["loc"], problems)]
        raise UserError("\n".join(_explain(model, problem, where) for problem in told)) from None


def _holds_more(location: tuple[Any, ...], problems: Sequence[Any]) -> bool:
    """Whether something below `location` is wrong too."""
    return any(one["loc"][: len(location)] == location and len(one["loc"]) > len(location) for one in problems)


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    if problem["type"] == "extra_forbidden":
        *outer, name = (str(part) for part in problem["loc"])
        outer = [part for part in outer if part not in TAGS]
        return f"{where}: {'.'.join([*outer, name or repr(name)])}: unknown key; {_hint(name, _fields(model, outer))}"
    location = [str(part) for part in problem["loc"] if part not in TAGS]
    key = ".".join(location)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        of_section = location and re.split(r"\W", message)[0] in _fields(model, location)
        return f"{where}: {key + ('.' if of_section else ': ') if key else ''}{message}"
    fraction = problem.get("ctx", {}).get("le") == 1
    meant = of_percent(problem["input"]) if fraction else ""
    return f"{where}: {key}: {message[0].lower() + message[1:]} (got {problem['input']!r}){meant}"


def of_percent(value: Any) -> str:
    """`: 0.7 for 70 %`, for the end of an error's line, where a fraction was given as a percentage; else empty."""
    with contextlib.suppress(TypeError, ValueError):
        if 1 < (percent := float(value)) <= 100:
            return f": {percent / 100:g} for {percent:g} %"
    return ""


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def _fields(model: Any, location: Sequence[str]) -> list[str]:
    parts = iter(location)
    for part in parts:
        if part.isdigit():
            continue
        types = _types(model.model_fields[part].annotation)
        model = next(filter(_is_section, types), types[0])
        if get_origin(model) is dict:
            next(parts, None)
            model = get_args(model)[1]
    return list(model.model_fields) if _is_section(model) else []


def parse(model: type[C], path: Path | None, overrides: Sequence[str], *, prog: str, offers: Offers | None = None) -> C:
    """The config in `path` (or the defaults) with `--a.b value` overrides on top; `--help` prints and exits.

    `offers()` gives the names that keys of a name take (criterion, scope, ...), which `--help` then lists.
    """
    import tyro

    default: C = model() if path is None else validate(model, read_config(path), str(path))
    if {"--help", "-h"} & {*overrides}:
        described = _unchecked(model, offers() if offers else {})
        start: Any = described.model_validate(_spoken(default))
        try:
            tyro.cli(described, default=start, args=list(overrides), prog=prog)  # prints and exits
        finally:
            print(described_keys(model), end="")
    if not overrides:
        return default
    # tyro reads the overrides as types alone; what they may be is checked as in a file, with the same messages.
    unchecked = _unchecked(model, {})
    start = unchecked.model_validate(_spoken(default))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            changed, unknown = tyro.cli(
                unchecked, default=start, args=list(overrides), prog=prog, return_unknown_args=True
            )
        except SystemExit:
            raise UserError(f"command line: {_first_sentence(said.getvalue())}") from None
    if unknown:
        raise UserError(f"command line: {_unknown(model, unknown[0])}")
    content = changed.model_dump()
    for part, key, sections in _among_names(default, content):
        part[key] = [sections.get(name, name) for name in part[key]]
    given = {token.lstrip("-").partition("=")[0].replace("-", "_") for token in overrides if token.startswith("--")}
    return validate(model, _said(content, default, given), "command line")


def _said(content: dict[str, Any], default: BaseModel, given: set[str], prefix: str = "") -> dict[str, Any]:
    """What of `content` was said: set in `default` (its file), `given` on the command line by dotted key, or changed.

    So that a value that was chosen can be told from a default, also where both are the same.
    """
    said: dict[str, Any] = {}
    for key, value in content.items():
        theirs = getattr(default, key)
        if isinstance(theirs, BaseModel):
            value = _said(value, theirs, given, f"{prefix}{key}.")
            if value or key in default.model_fields_set:
                said[key] = value
        elif key in default.model_fields_set or f"{prefix}{key}" in given or value != default.model_dump()[key]:
            said[key] = value
    return said


def _spoken(config: BaseModel) -> dict[str, Any]:
    """The content of `config` as the command line says it: a section that stands among names goes by its name."""
    content = config.model_dump()
    for part, key, _ in _among_names(config, content):
        part[key] = tuple(item if isinstance(item, str) else item["name"] for item in part[key])
    return content


def _among_names(config: BaseModel, content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(the part of `content`, key, sections by their names) of every tuple whose items are names or sections."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            yield from _among_names(value, content[key])
        elif _mixed(field.annotation):
            yield content, key, {item.name: item.model_dump() for item in value if _is_section(type(item))}


def _types(annotation: Any) -> list[Any]:
    """The types of a union's, optional's or tuple's items; else the annotation itself."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _types(inner[0])
    if get_origin(annotation) not in (tuple, Union, UnionType):
        return [annotation]
    return [one for item in inner if item is not Ellipsis and item is not type(None) for one in _types(item)]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _mixed(annotation: Any) -> bool:
    """Whether it is a tuple whose items are names or sections."""
    types = _types(annotation)
    return get_origin(annotation) is tuple and str in types and any(map(_is_section, types))


def _unchecked(model: type[BaseModel], names: Mapping[str, Sequence[str]]) -> type[BaseModel]:
    """`model` with its fields, defaults and descriptions, but without bounds and validators; `names` as in `parse`."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        said = field.description or ""
        annotation = tuple[str, ...] if _mixed(field.annotation) else field.annotation
        if annotation in (str, tuple[str, ...]) and name in names:
            said = f"{said} One of: {', '.join(names[name])}."
        fields[name] = (_unchecked_type(annotation, names), Field(field.get_default(), description=said))
    return create_model(model.__name__, **fields)


def _unchecked_type(annotation: Any, names: Mapping[str, Sequence[str]]) -> Any:
    from tyro.conf import Fixed

    if _is_section(annotation):
        return _unchecked(annotation, names)
    if get_origin(annotation) is tuple:
        inner, *rest = get_args(annotation)
        return tuple[(_unchecked_type(inner, names), *rest)]
    if get_origin(annotation) is dict:
        return Fixed[dict[str, Any]]  # its names are free: a file says it, the command line does not
    return annotation


def _unknown(model: type[BaseModel], token: str) -> str:
    key = token.partition("=")[0].lstrip("-").replace("-", "_")
    if not token.startswith("--"):
        return f"{token!r} belongs to no key; write --key value"
    *sections, last = key.split(".")
    for depth, part in enumerate(sections):
        if not part.isdigit() and part not in _fields(model, sections[:depth]):
            sections, last = sections[:depth], part
            break
    known = _fields(model, sections)
    hint = "the config has fewer of them; add one there" if last in known else _hint(last, known)
    return f"{key}: unknown key; {hint}"


def _first_sentence(box: str) -> str:
    """What tyro says in a box, as one line without its title and the help below."""
    lines = re.sub(r"[\u2500-\u257f]", " ", box).splitlines()[1:]
    text = " ".join(" ".join(lines).split())
    return re.split(r" Argument helptext| For full helptext", text)[0].rstrip(".") + "; correct the value"


def overlaid(config: C, changes: dict[str, Any], where: str) -> C:
    """`config` with `changes` laid over it, sections key by key, and checked again; errors begin with `where`."""
    said = _said(config.model_dump(), config, set())
    return validate(type(config), _merge(said, changes), where) if changes else config


def to_yaml(config: BaseModel, exclude: Any = None) -> str:
    """The whole config as YAML that `parse` reads back to an equal config; `exclude`: see pydantic's `model_dump`."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude=exclude), sort_keys=False, allow_unicode=True)


def differences(old: BaseModel, new: BaseModel) -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    a, b = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def changes(model: type[C], old: str, new: str) -> list[str]:
    """`differences` of two configs given as YAML text, without the keys in MAY_CHANGE."""
    a, b = (validate(model, yaml.safe_load(text), "config.yaml") for text in (old, new))
    return [line for line in differences(a, b) if not MAY_CHANGE.fullmatch(line.partition(":")[0])]


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "tasks" and any(isinstance(item, dict) and "train" in item for item in value):
            value = dict(enumerate(value))  # tasks of one's own: where their files lie may change
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
