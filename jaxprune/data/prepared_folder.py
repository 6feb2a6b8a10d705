"""The folder that a prepare writes: who may write it, whether it holds what a config asks for, and clearing it."""

import fcntl
import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxprune.config.commands import PrepareConfig
from jaxprune.data import resume_point
from jaxprune.data.bucket import AnyPath
from jaxprune.data.corpus_files import listing
from jaxprune.data.data_manifest import read_manifest, verify
from jaxprune.data.resume_point import RESUME_POINT
from jaxprune.data.written_names import check_ours, forget, noted
from jaxprune.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def claimed(folder: AnyPath) -> Iterator[None]:
    """Make a local directory and keep other processes of this machine from preparing it.

    The lock ends with the process. If an error leaves what was made empty, it is removed.
    """
    if not isinstance(folder, Path):
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".prepare.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                raise BlockingIOError  # its owner went, and took it along
        except BlockingIOError as error:
            raise UserError(f"{folder}: another prepare is writing here; wait for it") from error
        try:
            yield
        except BaseException:
            lock.unlink(missing_ok=True)
            for path in made:
                if not any(path.iterdir()):
                    path.rmdir()
            raise
        lock.unlink(missing_ok=True)


def origin(cfg: PrepareConfig) -> list[Any]:
    """Names and sizes of the local files read: a second prepare sees that a corpus has changed."""
    return [
        [[path.name, path.stat().st_size] for path, _ in listing(source).files] if source.kind == "local" else []
        for source in cfg.sources
    ]


def recorded(cfg: PrepareConfig) -> dict[str, Any]:
    """The config without what leaves the result as it is."""
    return cfg.model_dump(mode="json", exclude={"processes"})


def finished(cfg: PrepareConfig, folder: AnyPath) -> dict[str, Any]:
    """The manifest of finished data. Errors: UserError if it is not what `cfg` asks for."""
    manifest = read_manifest(folder)
    try:
        sources = origin(cfg)
    except UserError:  # the corpus is gone, which is no fault once it is prepared
        sources = manifest["sources"]
    _check_same(folder, manifest, cfg, sources, "prepared")
    verify(folder, manifest["files"], hashes=False)
    if RESUME_POINT in noted(folder):  # a kill came right behind the manifest
        (folder / RESUME_POINT).unlink(missing_ok=True)
    forget(folder)
    log.info("prepare: %s is already prepared with this config; nothing to do", folder)
    return manifest


def interrupted(cfg: PrepareConfig, folder: AnyPath, sources: list[Any]) -> dict[str, Any] | None:
    """Where an interrupted prepare of this very data can go on; else the directory is cleared of what it wrote.

    UserError, with nothing removed, where files of others have names that a prepare writes.
    """
    check_ours(folder, [path.name for path in folder.glob("*") if _WRITTEN.fullmatch(path.name)])
    check_ours(folder, [f"tokenizer/{path.name}" for path in (folder / "tokenizer").glob("[!.]*")])
    begun = resume_point.load(folder)
    if begun is None:
        clear(folder)
        return None
    _check_same(folder, begun, cfg, sources, "begun")
    whole = dict(begun["tokenizer"])
    for state in begun["splits"].values():
        whole |= state["files"]
    verify(folder, whole, hashes=False)
    clear(folder, {*whole, RESUME_POINT})
    return begun


def _check_same(folder: AnyPath, record: dict[str, Any], cfg: PrepareConfig, sources: list[Any], how: str) -> None:
    """Raise UserError if the folder was prepared or begun from another config or corpus."""
    there = record["config"]
    with suppress(ValidationError):  # keys that are newer than the data take their defaults
        there = recorded(PrepareConfig.model_validate(there))
    old, new = _flat(there), _flat(recorded(cfg))
    changes = ", ".join(
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )
    remedy = "choose another directory or delete this one"
    if changes:
        raise UserError(f"{folder}: {how} with another config: {changes}; {remedy}")
    if record["sources"] != sources:
        raise UserError(f"{folder}: the corpus files have changed since; {remedy}")


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists under dotted keys."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, value in pairs for k, v in _flat(value, f"{key}.{name}" if key else str(name)).items()}
    return {key: tree}


_WRITTEN = re.compile(r"(train|dev)-\d{5}\.(ids|info)\.npy|manifest\.json|progress\.npz")


def clear(folder: AnyPath, keep: Collection[str] = ()) -> None:
    """Remove what an unfinished prepare wrote, but for the names to keep; files of others stay."""
    for name in noted(folder) - {*keep}:
        folder_name, _, file_name = name.rpartition("/")
        (folder / name).unlink(missing_ok=True)
        if isinstance(folder, Path):
            (folder / folder_name / f".{file_name}.tmp").unlink(missing_ok=True)
    if not keep:
        forget(folder)
    if isinstance(folder, Path):
        with suppress(OSError):
            (folder / "tokenizer").rmdir()
