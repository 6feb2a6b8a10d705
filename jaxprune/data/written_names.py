"""The names of the files that an unfinished prepare wrote, kept beside them: nothing else is ever removed.

A name is noted before its file is written, so that a kill in between leaves a name too many and never one too few.
"""

from collections.abc import Iterable

from jaxprune.data import bucket
from jaxprune.data.bucket import AnyPath
from jaxprune.errors import UserError

NAMES = ".prepare.files"
"""The file that lists them, while the data is unfinished."""


def noted(folder: AnyPath) -> set[str]:
    """What was written so far, and may be written over or removed."""
    path = folder / NAMES
    return set(path.read_bytes().decode().splitlines()) if path.is_file() else set()


def note(folder: AnyPath, name: str) -> None:
    """Note a name before its file is written. UserError where it belongs to a file of someone else."""
    names = noted(folder)
    if name in names:
        return
    check_ours(folder, [name])
    bucket.write(folder / NAMES, "".join(f"{each}\n" for each in sorted({*names, name})).encode())


def check_ours(folder: AnyPath, names: Iterable[str]) -> None:
    """UserError where one of these files is there and was not written by a prepare."""
    for name in sorted({*names} - noted(folder)):
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: is there, and no prepare wrote it; choose another directory, or move it")


def forget(folder: AnyPath) -> None:
    """Drop the list: the data is finished and has its manifest, or nothing of it is left."""
    (folder / NAMES).unlink(missing_ok=True)
