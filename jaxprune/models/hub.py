"""Files of a model: in a local directory, or on the Hugging Face hub under a name."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxprune.config.encoder_part import MODEL_CONFIG, MODULES, encoder_part, first_module
from jaxprune.errors import UserError

_WEIGHTS = ("model*.safetensors*", "pytorch_model*", "*.h5", "*.msgpack", "*.ot", "*.gguf", "onnx/*", "openvino/*")
"""Whole paths in a repository; `2_Dense/model.safetensors` belongs to a module that is not pruned."""


def find_file(path_or_name: str | Path, filename: str, revision: str | None = None) -> Path | None:
    """The file in a local directory's `encoder_part`, else in that of a hub model in the cache, fetched if not there.

    None if it has none. UserError where `path_or_name` is neither a directory nor a model on the hub.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        path = encoder_part(folder) / filename
        return path if path.is_file() else None
    with _on_the_hub(path_or_name) as name:
        return _fetched(name, _part(name, revision) + filename, revision)


@functools.cache
def _part(name: str, revision: str | None) -> str:
    """What `encoder_part` is in a hub model: `0_Transformer/` in the old layout, else ""; asked once."""
    modules = _fetched(name, MODULES, revision)
    part = first_module(modules.read_bytes()) if modules else ""
    return f"{part}/" if part and _fetched(name, f"{part}/{MODEL_CONFIG}", revision) else ""


def _fetched(name: str, filename: str, revision: str | None) -> Path | None:
    """A hub model's file in the cache; None where it has none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except LocalEntryNotFoundError:  # no answer: what a model in the cache lacks counts as none
        cached = (try_to_load_from_cache(name, always, revision=revision) for always in (MODEL_CONFIG, MODULES))
        if not any(isinstance(path, str) for path in cached):
            raise
        return None
    except EntryNotFoundError:
        return None


def find_folder(path_or_name: str | Path, revision: str | None = None) -> Path:
    """The local directory, else all files but the weights in the hub's cache, fetched if they are not there.

    UserError where `path_or_name` is neither a directory nor a model on the hub.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with _on_the_hub(path_or_name) as name:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=list(_WEIGHTS)))


@contextmanager
def _on_the_hub(path_or_name: str | Path) -> Iterator[str]:
    """The name of a model on the hub, whose errors become one line."""
    name = str(path_or_name)
    path = Path(name).expanduser()
    local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if local or path.exists() or ("/" in name and path.parent.is_dir()):
        raise UserError(f"{name}: no such directory from {Path.cwd()}; give a Hugging Face model directory or hub name")
    from huggingface_hub.errors import LocalEntryNotFoundError

    here = f"{name}: no directory in {Path.cwd()}, nor"
    try:
        yield name
    except LocalEntryNotFoundError as error:
        raise UserError(f"{here} reached on the hub ({_first_line(error)})") from None
    except (OSError, ValueError) as error:  # unknown repository or revision, no access, not a valid name
        raise UserError(f"{here} a model on the hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
