"""Paths of files: pathlib's on a local disk, or a `BucketPath` in a store that fsspec knows.

etils.epath 1.15 does not do this: it knows gs, s3, az and hf alone, and no `**`; to a local S3 server it wrote 300 MB
in 15 s and took 21 s to stop on Ctrl-C, where fsspec's `pipe_file` took 8 s and stopped at once.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jaxprune.errors import UserError
from jaxprune.files import write_atomically

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)  # pathlib makes gs:/ of gs://


@dataclass(frozen=True, order=True)
class BucketPath:
    """The URL of an object, such as gs://bucket/folder/file; methods are those of pathlib.Path.

    Errors: UserError if the store is unknown or its package is not installed.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return Path(self.name).suffix

    @property
    def store(self) -> Any:
        """fsspec's file system for the URL."""
        import fsspec.core

        try:
            return fsspec.core.url_to_fs(self.url)[0]
        except (ImportError, ValueError) as error:
            remedy = "pip install 'jaxprune[gcs]'" if re.match("gc?s:", self.url) else "use gs:// or a local path"
            raise UserError(f"{self.url}: {str(error).splitlines()[0].rstrip('.')}; {remedy}") from error

    def is_file(self) -> bool:
        """Whether an object has this name."""
        return self.store.isfile(self.url)

    def is_dir(self) -> bool:
        """Whether objects lie under this name."""
        return self.store.isdir(self.url)

    def stat(self) -> SimpleNamespace:
        """`st_size` in bytes."""
        return SimpleNamespace(st_size=self.store.size(self.url))

    def open(self, mode: str = "rb") -> Any:
        """A file object."""
        return self.store.open(self.url, mode)

    def read_bytes(self) -> bytes:
        """The whole content."""
        return self.store.cat_file(self.url)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not missing_ok or self.is_file():
            self.store.rm_file(self.url)

    def glob(self, pattern: str, depth: int | None = 1) -> Iterator["BucketPath"]:
        """Objects right under this name whose names match."""
        store = self.store
        store.invalidate_cache()
        for path in store.find(self.url, maxdepth=depth):
            if fnmatch.fnmatch(path.rpartition("/")[2], pattern):
                yield BucketPath(store.unstrip_protocol(path))

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Objects under this name, at any depth, whose names match."""
        return self.glob(pattern, None)


AnyPath = Path | BucketPath


def any_path(path: str | Path) -> AnyPath:
    """A BucketPath for `gs://...` and its like, else a Path (also for `file://`)."""
    match = _URL.fullmatch(str(path))
    if match is None:
        return Path(path).expanduser()
    return Path("/" + match[2]) if match[1] == "file" else BucketPath(f"{match[1]}://{match[2]}")


def matches(pattern: AnyPath) -> list[AnyPath]:
    """Files that match a path or URL with wildcards, sorted."""
    if isinstance(pattern, Path):
        return sorted(path for path in map(Path, glob(str(pattern), recursive=True)) if path.is_file())  # noqa: PTH207
    store = pattern.store
    return [BucketPath(store.unstrip_protocol(path)) for path in sorted(store.glob(pattern.url)) if store.isfile(path)]


def write(path: AnyPath, content: bytes) -> None:
    """Write a file, and the folder it lies in, at once or not at all: stores do so by themselves."""
    if isinstance(path, BucketPath):
        path.store.pipe_file(path.url, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
