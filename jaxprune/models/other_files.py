"""What lies beside the weights in a model's folder: tokenizer, pooling modules, licence, ...; it goes where they go."""

import json
import re
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxprune.config.encoder_part import MODULES, encoder_part
from jaxprune.errors import UserError
from jaxprune.files import new_directory, parse_json
from jaxprune.models.weights import MASKS, WEIGHTS

CONFIG = "config.json"
_STALE = re.compile(
    r".*\.(safetensors|bin|pt|pth|msgpack|h5|onnx|onnx_data|ot|gguf|tflite|mlmodel)(\.index(\.[\w-]+)?\.json)?"
    r"|.*\.ckpt(\..*)?|openvino_\w*\.xml"
)
READERS = ("jaxprune_sparse.py", "jaxprune_encoder.py")
"""What reads our sparse form, beside it."""
_NO_WEIGHTS = ("training_args.bin",)
_MODULE = re.compile(r"\d+_\w+")
"""sentence-transformers' names of modules' directories, which modules.json lists too."""


def copy_other_files(folder: Path, target: Path, *, leave: Container[str] = (), whole: bool = False) -> list[str]:
    """Copy the files of `folder` that hold no weights, but for those named in `leave`; modes follow the umask.

    A module of sentence-transformers goes along whole. Other directories do unless there are weights in them (`onnx/`,
    `checkpoint-500/`): those are another form of the model, or another model. Hidden directories (`.git`) stay behind.
    What lies in a directory of the encoder's own (`encoder_part`) comes into such a one, or beside the rest where
    `whole` (the new layout). Returns the names of what holds weights and was left.
    """
    part, modules, left = encoder_part(folder), _modules(folder), []
    for path in sorted(folder.iterdir()):
        if path == part:
            inner = target if whole else target / path.name
            inner.mkdir(exist_ok=True)
            left += [f"{path.name}/{name}" for name in copy_other_files(path, inner, leave=leave)]
        elif path.is_dir():
            if path.name[0] != "." and path.name not in modules and any(_is_stale(inner) for inner in path.rglob("*")):
                left.append(f"{path.name}/")
            else:
                _copy(path, target)
        elif _is_stale(path):
            left.append(path.name)
        elif path.name not in leave:
            _copy(path, target)
    if part != folder and whole:
        listed = parse_json((folder / MODULES).read_text(encoding="utf-8"))
        (target / MODULES).write_text(json.dumps([listed[0] | {"path": ""}, *listed[1:]], indent=2), encoding="utf-8")
    return left


@contextmanager
def replaced(directory: str | Path) -> Iterator[Path]:
    """A temporary directory that takes the place of a new one, or of a model's directory whose other files it keeps."""
    directory = Path(directory).expanduser()
    if directory.exists() and not (directory / CONFIG).is_file() and (directory.is_file() or any(directory.iterdir())):
        raise UserError(f"{directory}: holds something that is no model; name a new directory")
    with new_directory(directory) as temporary:
        if directory.is_dir():
            written = shutil.ignore_patterns(WEIGHTS, MASKS)
            shutil.copytree(
                directory,
                temporary,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=lambda at, names: written(at, names) if Path(at) == directory else (),
            )
        yield temporary


def _copy(path: Path, target: Path) -> None:
    """Copy a file, or a directory without the hidden ones in it, into `target`."""
    if path.is_file():
        shutil.copyfile(path, target / path.name)
    elif path.is_dir() and path.name[0] != ".":
        (target / path.name).mkdir(exist_ok=True)
        for inner in path.iterdir():
            _copy(inner, target / path.name)


def _is_stale(path: Path) -> bool:
    stale = path.name in READERS or (_STALE.fullmatch(path.name) and path.name not in _NO_WEIGHTS)
    return bool(stale) and path.is_file()


def _modules(folder: Path) -> set[str]:
    names = {path.name for path in folder.iterdir() if _MODULE.fullmatch(path.name)}
    with suppress(OSError, ValueError, TypeError, LookupError):
        listed = parse_json((folder / MODULES).read_text(encoding="utf-8"))
        names |= {Path(module["path"]).parts[0] for module in listed if module["path"]}
    return names
