"""Where a Hugging Face directory holds its encoder: in itself, or in the directory of its first module."""

from contextlib import suppress
from pathlib import Path

from jaxprune.files import parse_json

MODULES = "modules.json"
MODEL_CONFIG = "config.json"


def first_module(modules: str | bytes) -> str:
    """The directory of the first module that a modules.json names: `0_Transformer` in the old layout of
    sentence-transformers, else ""."""
    with suppress(ValueError, TypeError, LookupError):
        path = parse_json(modules)[0]["path"]
        if Path(path).name == path != "..":
            return path
    return ""


def encoder_part(folder: Path) -> Path:
    """The directory that holds a local folder's config, weights and tokenizer: the folder, as a rule.

    In sentence-transformers folders of the old layout it is that of the first module: `0_Transformer/`.
    """
    with suppress(OSError):
        part = folder / first_module((folder / MODULES).read_bytes())
        if (part / MODEL_CONFIG).is_file():
            return part
    return folder
