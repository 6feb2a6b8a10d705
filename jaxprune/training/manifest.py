"""What a workdir holds, in one file that is written last: contents.json, which has a hash of itself too.

It keeps the text of the small files that say what the run is, so that they can be written again, the checksums of what
a run leaves, and the last step that was saved, so that a workdir that has trained never begins anew unnoticed.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.errors import UserError
from jaxprune.files import checksum, checksums, damage, parse_json, set_aside, write_atomically

log = logging.getLogger("jaxprune")

MANIFEST = "contents.json"
BEGIN_ANEW = "begin anew with --from-scratch (of a study or the demo: move that folder away)"
"""A remedy that each command has."""
_FORMAT = 1


class Manifest(NamedTuple):
    """The content of contents.json."""

    state: dict[str, str]
    """Name -> text of a small file."""
    files: dict[str, list[int | str]]
    """Name -> [bytes, SHA-256]."""
    last_saved: int | None
    """The newest step that was saved, though it may be gone."""


_NONE = Manifest({}, {}, None)
_DAMAGED = Manifest({}, {}, 0)
_DELETED = Manifest({}, {}, 0)
_LATER = ("run.json", "metrics.jsonl", "prunes.jsonl")  # which no run has without contents.json


def read_manifest(workdir: Path) -> Manifest:
    """What contents.json holds, an empty one where there is none.

    Where it is damaged, or there is none beside what a run writes later, some step counts as saved.
    """
    try:
        content = parse_json((workdir / MANIFEST).read_bytes())
        whole = content.pop("sha256") == _digest(content) and content.pop("format") == _FORMAT
        return Manifest(**content) if whole else _DAMAGED
    except (FileNotFoundError, NotADirectoryError):
        return _DELETED if any((workdir / name).exists() for name in _LATER) else _NONE
    except (ValueError, KeyError, TypeError, AttributeError):
        return _DAMAGED


def is_damaged(manifest: Manifest) -> bool:
    """Whether `read_manifest` found a file that is not as it was written."""
    return manifest is _DAMAGED


def update_manifest(workdir: Path, **changes: Any) -> None:
    """Replace fields of contents.json, or make it."""
    content = {"format": _FORMAT, **read_manifest(workdir)._replace(**changes)._asdict()}
    write_atomically(workdir / MANIFEST, json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n")


def last_saved(workdir: Path) -> int | None:
    """The newest step that was saved in a workdir, though it may be gone; None where none was."""
    return read_manifest(workdir).last_saved


def mark_saved(workdir: Path, step: int) -> None:
    """Record that a step was saved."""
    update_manifest(workdir, last_saved=step)


def write_state(workdir: Path, name: str, text: str) -> None:
    """Write a small file, and its text into contents.json."""
    write_atomically(workdir / name, text)
    update_manifest(workdir, state=read_manifest(workdir).state | {name: text})


def list_files(workdir: Path, *names: str) -> None:
    """Record the checksums of these files and of all files in these folders, instead of those recorded of them."""
    files = {name: sums for name, sums in read_manifest(workdir).files.items() if name.split("/")[0] not in names}
    for name in names:
        path = workdir / name
        if path.is_dir():
            files |= {f"{name}/{below}": sums for below, sums in checksums(path).items()}
        elif path.is_file():
            files[name] = checksum(path)
    update_manifest(workdir, files=files)


def damage_of(workdir: Path, name: str) -> str | None:
    """What is wrong with a listed file or folder of a workdir, or None; notes for people may be edited."""
    manifest = read_manifest(workdir)
    if name in manifest.files:
        return damage(workdir, {name: manifest.files[name]})
    problem = damage(workdir / name, files_below(manifest, name))
    return f"{name}/{problem}" if problem else None


def files_below(manifest: Manifest, folder: str) -> dict[str, list[int | str]]:
    """The listed files of a folder, by their names below it, but for notes for people."""
    return {
        name.removeprefix(f"{folder}/"): sums
        for name, sums in manifest.files.items()
        if name.startswith(f"{folder}/") and not name.endswith(".md")
    }


def check_whole(workdir: Path, name: str, remedy: str) -> None:
    """UserError where a listed folder of a workdir is not as it was written."""
    if problem := damage_of(workdir, name):
        raise UserError(f"{workdir}: {problem}; {remedy}")


def restore_state(workdir: Path) -> None:
    """Write again, and say so, what of the small files is gone or was changed; the changed ones are set aside."""
    manifest = read_manifest(workdir)
    if is_damaged(manifest):
        aside = set_aside(workdir / MANIFEST, "damaged")
        log.warning("%s: is damaged; moved to %s, and made again from what is there", workdir / MANIFEST, aside.name)
        update_manifest(workdir, last_saved=0)
    if manifest is _DELETED:
        log.warning("%s: is gone; made again from what is there", workdir / MANIFEST)
        update_manifest(workdir, last_saved=0)
    for name, text in manifest.state.items():
        restore_file(workdir / name, text.encode())


def restore_file(path: Path, content: bytes) -> None:
    """Write a file again, and say so, that is gone or not as it was; what is there is set aside."""
    there = path.read_bytes() if path.is_file() else None
    if there == content:
        return
    how = "is gone"
    if there is not None:
        how = f"has changed since it was written; moved to {set_aside(path, 'changed').name}"
    log.warning("%s: %s; written again as it was", path, how)
    write_atomically(path, content)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
