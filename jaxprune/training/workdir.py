"""The directory of one run: absolute, locked, and the record of what happened in it."""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Workdir:
    """Owns `path` until closed or killed. A second run in the same directory is refused, naming the first."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise ValueError(f"workdir {self.path}: cannot be written ({error.strerror}); choose another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            self._lock.close()
            raise ValueError(f"workdir {self.path}: in use by {owner}; wait for it or use another --workdir") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def append(self, name: str, record: dict[str, Any]) -> None:
        """One JSON line at the end of a `.jsonl` file, flushed."""
        with (self / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, name: str, step: int) -> None:
        """Drop records after `step`, and a line that a kill cut short, so that a resumed run repeats none."""
        path = self / name
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))

    def check_same(self, name: str, text: str, compare: Callable[[str, str], list[str]]) -> None:
        """Write `text` to a new file; ValueError when the file is there and `compare(old, new)` lists differences."""
        path = self / name
        if not path.exists():
            write_atomically(path, text)
            return
        changed = compare(path.read_text(), text)
        if changed:
            raise ValueError(
                f"workdir {self.path}: made with another config ({'; '.join(changed)}); "
                "use another --workdir, or the old values to resume"
            )

    def result(self) -> dict[str, Any] | None:
        """What a finished run wrote last, or None."""
        path = self / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        write_atomically(self / "result.json", json.dumps(result, indent=1) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a `.jsonl` file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one move, so that a kill leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
