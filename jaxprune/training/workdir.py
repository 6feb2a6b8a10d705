"""The directory of one run: absolute, locked, and the record of what happened in it."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxprune.errors import InUse, UserError
from jaxprune.files import parse_json, patiently, write_atomically
from jaxprune.training.manifest import (
    BEGIN_ANEW,
    MANIFEST,
    list_files,
    read_manifest,
    restore_file,
    restore_state,
    write_state,
)
from jaxprune.training.processes import is_first, together

log = logging.getLogger("jaxprune")

_SHARED_SECONDS = 20.0  # network file systems show a new file late
OUTPUTS = ("hf", "best", "tokenizer", "dev_predictions.npz", "results.csv")
"""What runs leave for other programs."""
_OURS = (
    *("checkpoints", "integrity", "hf", "best", "tensorboard", "dev_predictions.npz", "results.csv", "result.json"),
    *("metrics.jsonl", "prunes.jsonl", "run.json", "config.yaml", MANIFEST),
)


class Workdir:
    """Owns `path` until closed or killed. A second run in the same directory is refused, naming the first.

    Of the processes of a job one alone is the owner. The others see the same files, lock nothing and write nothing.
    """

    def __init__(self, path: str | Path, *, owner: bool = True):
        self.path = Path(path).expanduser().resolve()
        self.owner = owner
        if not owner:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"workdir {self.path}: cannot be written ({error.strerror}); choose another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            other = self._lock.read().strip() or "another process"
            self._lock.close()
            raise InUse(f"workdir {self.path}: in use by {other}; wait for it or use another --workdir") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()
        restore_state(self.path)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory up."""
        if self.owner:
            self._lock.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def append(self, name: str, record: dict[str, Any]) -> None:
        """One JSON line at the end of a `.jsonl` file, flushed."""
        if not self.owner:
            return
        path, line = self / name, json.dumps(record).encode() + b"\n"
        length = path.stat().st_size if path.exists() else 0

        def write() -> None:
            with path.open("ab") as file:
                file.truncate(length)  # half a line that a try before this one left
                file.write(line)

        patiently(write)

    def rewind(self, name: str, step: int) -> None:
        """Drop records after `step`, and a line that a kill cut short, so that a resumed run repeats none."""
        path = self / name
        if not self.owner or not path.exists():
            return
        kept = [line for line in path.read_bytes().splitlines() if _step(line) <= step]
        write_atomically(path, b"".join(line + b"\n" for line in kept))

    def rewind_to(self, name: str, content: bytes) -> None:
        """Drop what was added behind `content`; a file that does not begin with it is written again, which is said."""
        path = self / name
        if path.is_file() and path.read_bytes().startswith(content):
            os.truncate(path, len(content))
        else:
            restore_file(path, content)

    def check_same(self, name: str, text: str, compare: Callable[[str, str], list[str]]) -> None:
        """Write `text` to a new file; UserError when the file is there and `compare(old, new)` lists differences."""
        path = self / name
        if not self.owner:
            return
        if path.exists():
            self.refuse_changed(name, text, compare)
        if not path.exists() or name not in read_manifest(self.path).state:  # contents.json was lost and made anew
            write_state(self.path, name, path.read_text() if path.exists() else text)

    def refuse_changed(self, name: str, text: str, compare: Callable[[str, str], list[str]]) -> None:
        """UserError when the file is there and `compare(old, new)` lists differences; for those who only look too."""
        path = self / name
        if path.exists() and (changed := compare(path.read_text(), text)):
            raise UserError(
                f"workdir {self.path}: made with another config ({'; '.join(changed)}); "
                f"use another --workdir (--init-from {self.path} goes on from it), the old values to resume, or "
                f"{BEGIN_ANEW}"
            )

    def write(self, name: str, text: str) -> None:
        """Replace a text file."""
        if self.owner:
            write_atomically(self / name, text)

    def starts(self) -> list[dict[str, Any]]:
        """What each start in run.json ran on, the newest last."""
        return (_object(self / "run.json") or {"starts": []})["starts"]

    def add_start(self, start: dict[str, Any]) -> None:
        """Add what a start runs on to run.json, below the starts before."""
        if self.owner:
            write_state(self.path, "run.json", json.dumps({"starts": [*self.starts(), start]}, indent=1) + "\n")

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote last, or None."""
        return _object(self / "result.json")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as finished, and list what the run leaves."""
        if self.owner:
            write_state(self.path, "result.json", json.dumps(result, indent=1) + "\n")
            self.list_outputs()

    def list_outputs(self) -> None:
        """Record the checksums of what the run leaves."""
        if self.owner:
            list_files(self.path, *OUTPUTS)

    def list_new_outputs(self) -> None:
        """Record them where a kill came between the result and its manifest."""
        if self.owner and "result.json" not in read_manifest(self.path).state:
            write_state(self.path, "result.json", (self / "result.json").read_text())
            self.list_outputs()

    def begin_anew(self, *more: str) -> None:
        """Move all that a run wrote here, and `more`, to a folder of `before/`, so that nothing of it counts."""
        ours = [path for name in (*_OURS, *more) if (path := self / name).exists()]
        if not ours:
            return
        number = 1
        while (folder := self / "before" / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        for path in ours:  # what says that the run has trained goes last
            path.rename(folder / path.name)
        log.warning("%s: what was here is in %s now; beginning anew", self.path, folder)


@contextmanager
def owned_workdir(
    path: str | Path, config: str, compare: Callable[[str, str], list[str]], *, anew: Sequence[str] | None = None
) -> Iterator[Workdir]:
    """The workdir of a run with this config: process 0 owns it, and all processes must see it.

    `anew` begins a new run where another was, beside whose files it names more (see `Workdir.begin_anew`).
    UserError on every process when it is in use, made with another config (see `Workdir.check_same`), or not shared.
    """
    workdir = Workdir(path, owner=False)
    with together(f"workdir {workdir.path}"):
        if is_first():
            workdir = Workdir(path)
            try:
                if anew is not None:
                    workdir.begin_anew(*anew)
                workdir.check_same("config.yaml", config, compare)
            except BaseException:
                workdir.close()
                raise
    with workdir:
        with together(f"workdir {workdir.path}"):
            deadline = time.monotonic() + _SHARED_SECONDS
            while not (workdir / "config.yaml").exists():
                if time.monotonic() > deadline:
                    raise UserError(f"workdir {workdir.path}: not seen here; use storage that all hosts share")
                time.sleep(0.2)
        yield workdir


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a `.jsonl` file, without lines that were cut or damaged; none if it is not there."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [parse_json(line) for line in lines if _step(line) < float("inf")]


def _object(path: Path) -> dict[str, Any] | None:
    """The object in a state file, None where there is no file; UserError where it is damaged and cannot be mended."""
    if not path.exists():
        return None
    try:
        content = parse_json(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("starts", []), list):
            return content
    except ValueError:
        pass
    raise UserError(f"{path}: damaged, and {MANIFEST} does not hold what it was; delete it, and run again")


def _step(line: bytes) -> float:
    """The step of a line of records; infinity where it has none."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")
