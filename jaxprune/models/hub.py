"""Files of a model: in a local directory, or on the Hugging Face hub under a name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxprune.errors import UserError

MODULES = "modules.json"
_ALWAYS = "config.json"
_WEIGHTS = ("model*.safetensors*", "pytorch_model*", "*.h5", "*.msgpack", "*.ot", "*.gguf", "onnx/*", "openvino/*")
"""Whole paths in a repository; `2_Dense/model.safetensors` belongs to a module that is not pruned."""


def encoder_part(folder: Path) -> Path:
    """The directory that holds a local folder's config, weights and tokenizer: the folder, as a rule.

    In sentence-transformers folders of the old layout it is that of the first module: `0_Transformer/`.
    """
    with suppress(OSError, ValueError, TypeError, LookupError):
        path = json.loads((folder / MODULES).read_text(encoding="utf-8"))[0]["path"]
        if Path(path).name == path != ".." and (folder / path / _ALWAYS).is_file():
            return folder / path
    return folder


def find_file(path_or_name: str | Path, filename: str, revision: str | None = None) -> Path | None:
    """The file in a local directory's `encoder_part`, else in the hub's cache, fetched if it is not there.

    None if it has none. UserError where `path_or_name` is neither a directory nor a model on the hub.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        path = encoder_part(folder) / filename
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _on_the_hub(path_or_name) as name:
        try:
            return Path(hf_hub_download(name, filename, revision=revision))
        except LocalEntryNotFoundError:  # no answer: what a model in the cache lacks counts as none
            if not isinstance(try_to_load_from_cache(name, _ALWAYS, revision=revision), str):
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
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory; give a Hugging Face model directory or hub name")
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield name
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name}: neither a directory nor reachable on the hub ({_first_line(error)})") from None
    except (OSError, ValueError) as error:  # unknown repository or revision, no access, not a valid name
        raise UserError(f"{name}: neither a directory nor a model on the hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
