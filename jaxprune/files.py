"""Files and directories that are whole or not there, and whether they are still as they were written."""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

log = logging.getLogger("jaxprune")

PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each new try of what a store refused."""
_PASSES = (errno.EIO, errno.ESTALE, errno.EBUSY, errno.ETIMEDOUT)
T = TypeVar("T")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What `json.loads` makes of a text; ValueError for one that is none, that nests too deeply among them."""
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def may_pass(error: OSError) -> bool:
    """Whether it is what network storage fails with for a while; a full disk is not."""
    return error.errno in _PASSES


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns; failures that may pass are tried again, after PAUSES."""
    for pause in PAUSES:
        try:
            return call()
        except OSError as error:
            if not may_pass(error):
                raise
            log.warning("%s: %s; trying again in %.0f s", error.filename or "storage", error.strerror, pause)
            time.sleep(pause)
    return call()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces a local `path` in one move at the end.

    A kill leaves the old one or the new one, and so does a power cut once this returns; OSError names `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: temporary.replace(path))
        sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a local file as `new_file` does, patiently."""

    def write() -> None:
        with new_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    patiently(write)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name at the end; on an error nothing is left.

    A directory that is there already is replaced only then; of a link, the directory that it leads to.
    """
    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file is where a directory should be
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        patiently(lambda: temporary.replace(path))
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, temporary, path)
        raise


def set_aside(path: Path, ending: str) -> Path:
    """Rename a file or directory to its name and `.ending`, with a number where that is taken; the new name."""
    aside, number = path.with_name(f"{path.name}.{ending}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{ending}{number}")
    return path.rename(aside)


def sync_directory(path: Path) -> None:
    """Let a power cut not undo what was renamed in a directory; some file systems cannot, and that is no error."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksums(directory: Path) -> dict[str, list[int | str]]:
    """{relative name: [bytes, SHA-256]} of all files below a directory."""
    return {str(path.relative_to(directory)): checksum(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def checksum(path: Path) -> list[int | str]:
    """[bytes, SHA-256] of a file."""

    def read() -> list[int | str]:
        with path.open("rb") as file:
            return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    return patiently(read)


def damage(directory: Path, expected: Mapping[str, list[int | str]]) -> str | None:
    """Which of the `expected` files is missing or not as its checksum says, the first of several; None if none is."""
    for name, sums in sorted(expected.items()):
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if not isinstance(sums, list) or sums[:1] != [path.stat().st_size] or checksum(path) != sums:
            return f"{name} has changed since it was written"
    return None


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Let an error of the disk name what was to be written: neither its temporary name nor, as a full disk, nothing."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    if error.filename is None:
        error.filename = str(path)
    for key in ("filename", "filename2"):
        if isinstance(name := getattr(error, key), str | Path):
            setattr(error, key, str(name).replace(str(temporary), str(path)))
