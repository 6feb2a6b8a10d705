"""Files and directories that are whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces a local `path` in one move at the end.

    A kill leaves the old one or the new one; OSError names `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a local file as `new_file` does."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its name at the end; on an error nothing is left.

    A directory that is there already is replaced only then; of a link, the directory that it leads to.
    """
    path = path.expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, temporary, path)
        raise


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Let an error of the disk name what was to be written: neither its temporary name nor, as a full disk, nothing."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    if error.filename is None:
        error.filename = str(path)
    for key in ("filename", "filename2"):
        if isinstance(name := getattr(error, key), str | Path):
            setattr(error, key, str(name).replace(str(temporary), str(path)))
