"""The manifest that vouches for prepared data. It is written last, so a directory without one is unfinished."""

import hashlib
import json
import logging
from contextlib import suppress
from typing import Any

from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import bucket
from jaxprune.data.bucket import AnyPath
from jaxprune.data.written_names import note
from jaxprune.errors import UserError
from jaxprune.files import parse_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_READ = ".verified.json"
_HASH_LIMIT = 4 << 30  # bytes up to which opening a directory reads every file every time
_REMEDY = "delete the directory and run `jaxprune prepare` again"


def write_file(folder: AnyPath, name: str, content: bytes) -> dict[str, Any]:
    """Write a file; its size and hash, as the manifest holds them. UserError where another's file has its name."""
    note(folder, name)
    bucket.write(folder / name, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(folder: AnyPath, manifest: dict[str, Any]) -> None:
    """Write manifest.json at once or not at all."""
    bucket.write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The manifest of prepared data. Errors: UserError if there is none, or it is damaged or of another format."""
    if folder.is_file():
        raise UserError(f"data.path {folder}: is a file; name the folder that `jaxprune prepare` made of such text")
    if not folder.is_dir():
        raise UserError(f"data.path {folder}: no such directory; run `jaxprune prepare` first")
    path = folder / MANIFEST
    if not path.is_file():
        what = f"no {MANIFEST}, so it is raw text or an unfinished prepare"
        raise UserError(f"data.path {folder}: {what}; run `jaxprune prepare` on the text and name its workdir")
    try:
        manifest = parse_json(path.read_bytes())
        number = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from error
    if number != FORMAT:
        raise UserError(f"{path}: format {number}, but this version reads {FORMAT}; run `jaxprune prepare` again")
    try:
        kinds = [(type(sums["size"]), type(sums["sha256"])) for sums in manifest["files"].values()]
        kinds += [(int, type(token)) for token in manifest.get("special_tokens", {}).values()]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); {_REMEDY}") from error
    roles = {*manifest.get("special_tokens", SpecialTokens._fields)}
    if {*kinds} != {(int, str)} or roles != {*SpecialTokens._fields}:
        raise UserError(f"{path}: damaged, it lacks sizes, hashes or special tokens; {_REMEDY}")
    return manifest


def special_tokens(folder: AnyPath, manifest: dict[str, Any]) -> SpecialTokens:
    """The special tokens that data was prepared with; version 0.1 left them to its tokenizer's settings."""
    if "special_tokens" in manifest:
        return SpecialTokens(**manifest["special_tokens"])
    path = folder / "tokenizer" / "tokenizer_config.json"
    try:
        settings = parse_json(path.read_bytes())
        return SpecialTokens(*(settings[f"{role}_token"] for role in SpecialTokens._fields))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: does not say the special tokens ({error!r:.100}); {_REMEDY}") from error


def verify(folder: AnyPath, files: dict[str, dict[str, Any]], *, hashes: bool | None = None) -> None:
    """Check files against what a manifest holds, name -> {size, sha256}.

    Sizes always; hashes if asked, or (None) of all files below 4 GiB together, and of more than that at their first
    use: a file that was read, and is the same by inode and times, is not read again.
    Errors: UserError that names the damaged file.
    """
    remember = hashes is None and sum(expected["size"] for expected in files.values()) > _HASH_LIMIT
    read = _read_before(folder) if remember else {}
    stamps: dict[str, Any] = {}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing; {_REMEDY}")
        if (size := path.stat().st_size) != expected["size"]:
            raise UserError(f"{path}: damaged, {size} bytes instead of {expected['size']}; {_REMEDY}")
        stamps[name] = _stamp(path, expected) if remember else None
        if hashes is not False and (not remember or stamps[name] != read.get(name)):
            if remember:
                log.info("%s: reading it once to see that it is whole", path)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise UserError(f"{path}: damaged, its SHA-256 is not the manifest's; {_REMEDY}")
    if remember and stamps != read:
        with suppress(OSError):  # a folder that cannot be written is read at every start
            bucket.write(folder / _READ, json.dumps(stamps).encode())


def _read_before(folder: AnyPath) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(parse_json((folder / _READ).read_bytes()))
    return {}


def _stamp(path: AnyPath, expected: dict[str, Any]) -> list[Any]:
    stat: Any = path.stat()
    return [stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, expected["sha256"]]
