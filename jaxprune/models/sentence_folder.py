"""What a sentence-transformers directory says, beside its encoder, of how texts become vectors."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.config.encoder_part import MODULES, encoder_part
from jaxprune.errors import UserError
from jaxprune.files import parse_json
from jaxprune.models.config_json import read_json
from jaxprune.models.model import Pooling

_POOLING = "1_Pooling"
_SETTINGS = "config_sentence_transformers.json"
_COMPUTED = ("Transformer", "Pooling", "Normalize")
_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class Vectors(NamedTuple):
    """`pooling`: how a text's vector comes from its tokens'. `max_tokens`: what of a text is read, special tokens
    counted; 0: as much as the model takes."""

    pooling: Pooling = "mean"
    max_tokens: int = 0


def vectors_in(folder: Path) -> Vectors:
    """What a local directory says; means of whole texts where it says nothing.

    UserError for what is not computed here: other modules and poolings, prompts, lower case over a tokenizer that keeps
    it.
    """
    pooling = folder / _POOLING
    for module in _modules(folder):
        kind = _kind(module)
        if kind and kind not in _COMPUTED:
            raise _other(folder / MODULES, f"the module {kind}")
        pooling = folder / module["path"] if kind == "Pooling" else pooling
    settings = _read(folder / _SETTINGS)
    prompt, prompts = settings.get("default_prompt_name"), settings.get("prompts")
    if prompt and isinstance(prompts, dict) and prompts.get(prompt):
        raise _other(folder / _SETTINGS, f"the prompt {prompt}")
    return Vectors(_pooling(pooling / "config.json"), max_tokens_in(folder))


def write_pooling(folder: Path, pooling: Pooling, width: int) -> None:
    """Let a local directory, in the new layout, say this pooling; `width`: numbers in a vector.

    Nothing is written where it does. Else what follows the encoder is this pooling, and the unit length that it has:
    other modules and poolings were not what the model was trained with.
    """
    kinds: list[str] = []
    with suppress(UserError):  # modules that are not computed here
        kinds = [_kind(module) for module in _modules(folder)]
        known = (folder / MODULES).is_file() or pooling == "mean"  # which the library takes without modules.json
        if known and vectors_in(folder).pooling == pooling:
            return
    kinds = ["Transformer", "Pooling", *(["Normalize"] if "Normalize" in kinds else [])]
    paths = ["", _POOLING, "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths))
    ]
    settings = {"word_embedding_dimension": width} | {mode: _MODES[mode] == pooling for mode in _MODES}
    for path in paths[1 : len(kinds)]:
        (folder / path).mkdir(exist_ok=True)
    (folder / _POOLING / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / MODULES).write_text(json.dumps(modules, indent=2), encoding="utf-8")


def max_tokens_in(folder: Path) -> int:
    """`Vectors.max_tokens` alone."""
    part = encoder_part(folder)
    for path in sorted(part.glob("sentence_*_config.json")):
        settings = _read(path)
        if settings.get("do_lower_case") and not _read(part / "tokenizer_config.json").get("do_lower_case"):
            raise _other(path, "do_lower_case over a tokenizer that keeps case")
        most = settings.get("max_seq_length")
        if most is not None and (type(most) is not int or most < 1):
            raise UserError(f"{path}: max_seq_length = {most!r:.50} is no number of tokens; mend it")
        return most or 0
    return 0


def _other(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what} is not computed here, so vectors would be others; use sentence-transformers")


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2] or Path(module["path"]).name.partition("_")[2]


def _modules(folder: Path) -> list[dict[str, Any]]:
    if not (folder / MODULES).is_file():
        return []
    try:
        listed = parse_json((folder / MODULES).read_bytes())
        if isinstance(listed, list) and all(isinstance(one["path"], str) for one in listed):
            return listed
    except (ValueError, TypeError, LookupError):
        pass
    raise UserError(f"{folder / MODULES}: is no list of modules with a path each; mend it")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _pooling(path: Path) -> Pooling:
    """UserError for other poolings than mean and cls."""
    settings = _read(path)
    if not settings:
        return "mean"
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    if isinstance(settings.get("pooling_mode"), str):  # newer folders name it
        asked = [f"pooling_mode_{settings['pooling_mode'].replace('mean', 'mean_tokens').replace('cls', 'cls_token')}"]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise UserError(f"{path}: {', '.join(asked) or 'no pooling mode'}; set pooling to mean or cls")
    return _MODES[asked[0]]
