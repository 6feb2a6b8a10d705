"""Places for files: a pathlib.Path on a local disk, or a `Remote` in a bucket that does the same few things."""

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob as _glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # pathlib makes gs:/ of gs://


@dataclass(frozen=True, order=True)
class Remote:
    """A path in a store that fsspec knows, such as gs://bucket/folder; methods are those of pathlib.Path.

    Errors: ValueError if the store is unknown or its package is not installed.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return Path(self.name).suffix

    def is_file(self) -> bool:
        """Whether an object has this name."""
        fs, path = _fs(self.url)
        return fs.isfile(path)

    def is_dir(self) -> bool:
        """Whether objects lie under this name."""
        fs, path = _fs(self.url)
        return fs.isdir(path)

    def stat(self) -> SimpleNamespace:
        """`st_size` in bytes."""
        fs, path = _fs(self.url)
        return SimpleNamespace(st_size=fs.size(path))

    def open(self, mode: str = "rb") -> Any:
        """A file object."""
        fs, path = _fs(self.url)
        return fs.open(path, mode)

    def read_bytes(self) -> bytes:
        """The whole content."""
        fs, path = _fs(self.url)
        return fs.cat_file(path)

    def unlink(self) -> None:
        """Delete the object."""
        fs, path = _fs(self.url)
        fs.rm_file(path)

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """Objects right under this name whose names match."""
        fs, path = _fs(self.url)
        fs.invalidate_cache()
        for found in fs.ls(path, detail=False) if fs.isdir(path) else ():
            if fnmatch.fnmatch(found.rpartition("/")[2], pattern) and fs.isfile(found):
                yield Remote(fs.unstrip_protocol(found))

    def rglob(self, pattern: str) -> Iterator["Remote"]:
        """Objects under this name, at any depth, whose names match."""
        fs, path = _fs(self.url)
        fs.invalidate_cache()
        for found in fs.find(path):
            if fnmatch.fnmatch(found.rpartition("/")[2], pattern):
                yield Remote(fs.unstrip_protocol(found))


Place = Path | Remote


def place(path: str | Path) -> Place:
    """Where a path or URL points: Remote for `gs://...` and its like, else an absolute Path (also for `file://`)."""
    match = _URL.fullmatch(str(path))
    if match is None:
        return Path(path).expanduser().absolute()
    return Path("/" + match[2]) if match[1] == "file" else Remote(f"{match[1]}://{match[2]}")


def url_within(path: Path) -> str:
    """The URL that was taken for a path, as in /home/me/gs:/bucket; empty if there is none."""
    for at, part in enumerate(path.parts):
        if _URL.fullmatch(part + "/") and len(path.parts) > at + 1:
            return f"{part}//{'/'.join(path.parts[at + 1 :])}"
    return ""


def glob(pattern: Place) -> list[Place]:
    """Files that match a path or URL with wildcards, sorted."""
    if isinstance(pattern, Path):
        return sorted(p for p in map(Path, _glob(str(pattern), recursive=True)) if p.is_file())  # noqa: PTH207
    fs, path = _fs(pattern.url)
    return [Remote(fs.unstrip_protocol(found)) for found in sorted(fs.glob(path)) if fs.isfile(found)]


def write(path: Place, content: bytes) -> None:
    """Write a file at once or not at all: stores do so by themselves, a disk by a new name and a rename."""
    if isinstance(path, Remote):
        fs, key = _fs(path.url)
        fs.pipe_file(key, content)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _fs(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        remedy = "pip install 'jaxprune[gcs]'" if url.startswith(("gs:", "gcs:")) else "use gs:// or a local path"
        raise ValueError(f"{url}: {str(error).splitlines()[0].rstrip('.')}; {remedy}") from error
