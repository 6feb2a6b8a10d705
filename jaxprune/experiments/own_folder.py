"""A directory to write to is a new one, an empty one, or one that an earlier start of this tool made."""

import re
from pathlib import Path

from jaxprune.errors import UserError
from jaxprune.training.manifest import MANIFEST

_CONFIG = "config.yaml"
_OURS_OR_LOGS = re.compile(r"\..*|.*\.(log|out|err)|before")  # locks, what a shell was told to write, moved runs


def check_own(workdir: Path | None, marks: tuple[str, ...] = (_CONFIG, MANIFEST)) -> None:
    """UserError where `workdir` holds files and none of `marks`, which every run leaves there, so that nothing is mixed
    with a user's files."""
    folder = Path(workdir).expanduser() if workdir else None
    if folder is None or not folder.is_dir() or any((folder / name).is_file() for name in marks):
        return
    theirs = sorted(path.name for path in folder.iterdir() if not _OURS_OR_LOGS.fullmatch(path.name))
    if theirs:
        names = ", ".join(theirs[:3]) + (", ..." if len(theirs) > 3 else "")
        raise UserError(f"--workdir {workdir}: holds {names} and no {marks[0]} of ours; name a new or empty directory")


def check_new(directory: Path) -> None:
    """UserError where something is in the way of a directory to write."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists and is not empty; name a new directory")
