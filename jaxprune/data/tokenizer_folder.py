"""A folder's tokenizer files, and the tokenizer that transformers' AutoTokenizer makes of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import tokenizers

from jaxprune.config.encoder_part import MODEL_CONFIG, MODULES, encoder_part
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.config.tokenizer_files import TOKENIZER_FILES
from jaxprune.data.tokenizer_bounds import MAX_BYTES
from jaxprune.data.tokenizer_plain import is_plain
from jaxprune.errors import UserError
from jaxprune.files import parse_json

SETTINGS = "tokenizer_config.json"
_WHOLE = "tokenizer.json"
_TYPES = {"vocab.txt": "bert", "vocab.json": "roberta", "sentencepiece.bpe.model": "xlm-roberta"}
"""A file that pieces are read from -> the type of model that transformers reads it for."""
_CLASSES = {"bert": "BertTokenizer", "distilbert": "BertTokenizer", "roberta": "RobertaTokenizer"}
_CLASSES |= {"xlm-roberta": "XLMRobertaTokenizer"}
"""Type of a model -> the class that transformers registers for it."""

_TYPED = "token_type_ids"

Contents = Mapping[str, bytes]
"""Name of a file -> what it holds."""


class Loaded(NamedTuple):
    """A tokenizer as transformers runs it."""

    tokenizer: tokenizers.Tokenizer
    special: SpecialTokens
    """The folder's own where it gives a token of that role, else the architecture's."""
    files: dict[str, bytes]
    """The tokenizer's files; its settings name class and special tokens, so that they mean the same in any folder."""
    typed: bool
    """Whether the model is given segment types; else all tokens are of type 0."""
    cuts_left: bool
    """Whether a text that is too long loses its beginning (`truncation_side: left`)."""


def read_files(path: str, revision: str = "") -> dict[str, bytes]:
    """The tokenizer's files, and config.json, of a directory or a hub name.

    Errors: UserError for a missing directory or hub name, or one without pieces.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"tokenizer.path {path}: no such directory; give one with tokenizer.json or vocab.txt")
        folder = _download(path, revision)
    folder = encoder_part(folder)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > MAX_BYTES:
            raise UserError(f"{folder / name}: {size:,} bytes; a tokenizer's file has at most {MAX_BYTES:,}")
    contents = {
        name: (folder / name).read_bytes() for name in (*TOKENIZER_FILES, MODEL_CONFIG) if (folder / name).is_file()
    }
    if not contents.keys() & {_WHOLE, *_TYPES}:
        below = next(
            (f"; take {folder / name}" for name in ("hf", "best/hf", "tokenizer") if (folder / name).is_dir()), ""
        )
        names = f"tokenizer.json nor vocab.txt, nor {', '.join(_TYPES)}"
        raise UserError(f"tokenizer.path {path}: holds neither {names}{f'; take {below[0]}' if below else ''}")
    return contents


def _download(name: str, revision: str) -> Path:
    """The tokenizer files of a hub model, in the hub's cache."""
    import huggingface_hub

    try:
        names = (*TOKENIZER_FILES, MODEL_CONFIG)
        wanted = [MODULES, *names, *(f"0_*/{name}" for name in names)]
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:
        raise UserError(
            f"tokenizer.path {name}: no directory here, and the hub gave none ({_reason(error)}); go online or give a"
            " directory"
        ) from error


def build(contents: Contents, special: SpecialTokens, where: str) -> Loaded:
    """The tokenizer that AutoTokenizer builds of the files; without transformers where tokenizer.json says all.

    `special`: the architecture's tokens. Errors: UserError if a file is damaged, tokens are missing, or a sentencepiece
    model needs packages that are not installed.
    """
    settings = _object(contents, SETTINGS, where)
    files = {name: content for name, content in contents.items() if name != MODEL_CONFIG}
    if contents.keys() == {_WHOLE}:
        tokenizer = from_json(contents[_WHOLE], where)
        pair = tokenizer.encode("", "").type_ids
        inputs = ["input_ids", *([_TYPED] if 1 in pair else []), "attention_mask"]
        unstated = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, **_roles(special)}
        return Loaded(tokenizer, special, _completed(files, settings, unstated), True, _cuts_left(tokenizer, settings))
    name, added = _class_name(files, settings, _object(contents, MODEL_CONFIG, where)), _added(files, settings, where)
    bert = name in ("BertTokenizer", "DistilBertTokenizer") and "added_tokens.json" not in files
    together = settings | _object(contents, "special_tokens_map.json", where)
    if bert and is_plain(_object(contents, _WHOLE, where), together, special):
        tokenizer = from_json(contents[_WHOLE], where)
        if tokenizer.num_special_tokens_to_add(True) == 3:  # cls a sep b sep
            files = _completed(files, settings, _unstated(files, settings, special, name))
            typed = _TYPED in settings.get("model_input_names", [_TYPED] if name == "BertTokenizer" else [])
            return Loaded(tokenizer, special, files, typed, _cuts_left(tokenizer, settings))
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        theirs = _transformers(folder, name, {}, where)
        base = theirs.backend_tokenizer.get_vocab(with_added_tokens=False)
        stated = base.keys() | added
        own = {role: getattr(theirs, f"{role}_token") for role in special._fields}
        special = SpecialTokens(**{r: own[r] if own[r] in stated else token for r, token in special._asdict().items()})
        if missing := [token for token in special if token not in stated]:
            raise lacks(missing, len(stated), where)
        unstated = {f"{role}_token": token for role, token in special._asdict().items() if token != own[role]}
        if unstated:
            theirs = _transformers(folder, name, unstated, where)
    name = type(theirs).__name__.replace("TokenizersBackend", "PreTrainedTokenizerFast")
    unstated |= _unstated(files, settings, special, name)
    files, typed = _completed(files, settings, unstated), _TYPED in theirs.model_input_names
    return Loaded(theirs.backend_tokenizer, special, files, typed, theirs.truncation_side == "left")


def _cuts_left(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> bool:
    """`Loaded.cuts_left`: the settings say it, else tokenizer.json does."""
    return settings.get("truncation_side", (tokenizer.truncation or {}).get("direction")) == "left"


def _unstated(files: Contents, settings: Mapping[str, Any], special: SpecialTokens, name: str) -> dict[str, Any]:
    """What the files leave to config.json: the class; and the special tokens where there are no settings at all."""
    named = {} if settings.get("tokenizer_class") else {"tokenizer_class": name}
    return named if SETTINGS in files else _roles(special) | named


def _transformers(folder: str, name: str, stated: dict[str, Any], where: str) -> Any:
    """The tokenizer that transformers' class of a name reads from a folder; AutoTokenizer itself would import torch."""
    import transformers
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    kind = getattr(transformers, name, transformers.TokenizersBackend)
    if kind is transformers.PreTrainedTokenizer:  # the name that PreTrainedTokenizerFast is short for
        kind = transformers.TokenizersBackend
    if not (isinstance(kind, type) and issubclass(kind, transformers.TokenizersBackend)):
        raise UserError(
            f"{where}: tokenizer_class {name} is none that the `tokenizers` library runs; use another model"
        )
    sentencepiece = list(Path(folder).glob("*.model")) and not Path(folder, _WHOLE).is_file()
    if sentencepiece and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"{where}: a sentencepiece model without tokenizer.json needs two more packages; run `pip install"
            " sentencepiece protobuf`, or add the tokenizer.json that transformers' save_pretrained writes"
        )
    try:
        return kind.from_pretrained(folder, local_files_only=True, **stated)
    except Exception as error:  # transformers and tokenizers raise no narrower type
        raise UserError(f"{where}: not a readable tokenizer ({_reason(error, folder)}); copy it again") from error


def _class_name(files: Contents, settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The class that AutoTokenizer takes: the settings', the model's, that of its type; else what the files tell."""
    named = settings.get("tokenizer_class") or model.get("tokenizer_class")
    if named:
        return str(named).removesuffix("Fast")
    if model.get("model_type"):
        return _CLASSES.get(str(model["model_type"]), "TokenizersBackend")
    of_files = (_CLASSES[kind] for name, kind in _TYPES.items() if name in files and _WHOLE not in files)
    return next(of_files, "TokenizersBackend")


def _added(files: Contents, settings: Mapping[str, Any], where: str) -> set[str]:
    """Tokens that the files add to the pieces, and so have an id of their own."""
    listed = [
        *_object(files, _WHOLE, where).get("added_tokens", ()),
        *settings.get("added_tokens_decoder", {}).values(),
    ]
    return {token["content"] for token in listed} | _object(files, "added_tokens.json", where).keys()


def _completed(files: dict[str, bytes], settings: dict[str, Any], unstated: dict[str, Any]) -> dict[str, bytes]:
    """The files with settings added that they leave to the folder; as they are where nothing is."""
    if not unstated:
        return files
    return files | {SETTINGS: to_json(settings | unstated)}


def to_json(settings: dict[str, Any]) -> bytes:
    """Settings as tokenizer_config.json holds them."""
    return (json.dumps(settings, indent=2) + "\n").encode()


def _roles(special: SpecialTokens) -> dict[str, str]:
    return {f"{role}_token": token for role, token in special._asdict().items()}


def from_json(content: bytes, where: str) -> tokenizers.Tokenizer:
    """The tokenizer that a tokenizer.json holds. Errors: UserError if it is damaged."""
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{where}: not a readable tokenizer ({error}); copy it again") from error


def lacks(missing: list[str], size: int, where: str) -> UserError:
    """What to say of special tokens that a tokenizer of `size` tokens does not have."""
    return UserError(
        f"tokenizer {where}: its {size} tokens lack {', '.join(missing)}; use a vocabulary of this architecture or set"
        " train_size"
    )


def _object(contents: Contents, name: str, where: str) -> dict[str, Any]:
    """The JSON object in a file; empty without the file."""
    try:
        value = parse_json(contents.get(name, b"{}"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    except ValueError as error:  # not UTF-8, not JSON
        raise UserError(f"{where}: {name} is damaged ({error}); copy it again") from error


def _reason(error: Exception, folder: str = "\0") -> str:
    lines = str(error).strip().replace(folder, "").splitlines()
    return (lines or [type(error).__name__])[0][:200]
