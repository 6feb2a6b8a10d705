"""What a run would find here: versions, devices, memory, a directory to write to, caches, the clock, TPU settings."""

import errno
import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from jaxprune.errors import EXIT_DISK
from jaxprune.experiments.compilation_cache import user_cache
from jaxprune.experiments.environment import PACKAGES, environment
from jaxprune.experiments.promise import promise

FEW_FILES, LITTLE_ROOM, SLOW_SYNC, CLOCK = 1024, 5e9, 0.5, 2.0
"""Open files; bytes; seconds to reach a disk; seconds between this clock and that of a file: beyond them a warning."""
_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "gpfs", "ceph")
_TPU_FILES = ("/dev/accel0", "/dev/vfio/0")


class Finding(NamedTuple):
    """One line: what was looked at, what is there, and what of it is a `warning` or a `fault`."""

    about: str
    words: str
    level: str = "ok"


def doctor(workdir: Path) -> int:
    """Print what a run in `workdir` (or beside it, where it is not there yet) would find; the exit code.

    74 where the directory cannot be written, locked and renamed in; else 0.
    """
    findings = [finding for look in LOOKS for finding in look(workdir)]
    for finding in findings:
        print(f"{finding.level:8s} {finding.about:14s} {finding.words}")
    return EXIT_DISK if any(finding.level == "fault" for finding in findings) else 0


def versions(_: Path) -> Iterator[Finding]:
    """Packages."""
    here = environment()
    yield Finding("python", f"{here['python']} on {here['platform']}")
    commit = f" at {here['commit']}" if here["commit"] else ""
    yield Finding("jaxprune", f"{here['jaxprune']}{commit}")
    yield Finding("packages", ", ".join(f"{name} {here['packages'][name]}" for name in PACKAGES))


def devices(_: Path) -> Iterator[Finding]:
    """What JAX computes on, and the memory of both sides."""
    here, found = environment(), jax.devices()
    limit = (found[0].memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 2**30:.1f} GiB each" if limit else ""
    yield Finding("devices", f"{len(found)} x {found[0].device_kind} ({here['backend']}){memory}")
    if here["backend"] == "cpu" and any(Path(path).exists() for path in _TPU_FILES):
        yield Finding("devices", "a TPU is here, but JAX does not use it: pip install 'jax[tpu]'", "warning")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    yield Finding("machine", f"{here['cores']} cores for this process, {pages * size / 2**30:.1f} GiB of memory")
    yield Finding("promise", promise(here))


def limits(_: Path) -> Iterator[Finding]:
    """What the system allows a process."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = f"{files} open files allowed; raise `ulimit -n` to {FEW_FILES} or more"
    yield Finding("limits", few, "warning") if files < FEW_FILES else Finding("limits", f"{files} open files allowed")


def directory(workdir: Path) -> Iterator[Finding]:
    """Write, flush, lock, rename and read in the workdir, as a run does."""
    parent = workdir.expanduser().absolute()
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".jaxprune-doctor-", dir=parent) as folder:
            yield from _probed(Path(folder), parent)
    except OSError as error:
        yield Finding("workdir", f"{parent}: {error.strerror}; choose another directory", "fault")


def _probed(folder: Path, parent: Path) -> Iterator[Finding]:
    free, kind = shutil.disk_usage(parent).free, _file_system(parent)
    room = f"{parent} on {kind or 'a file system'}, {free / 1e9:.1f} GB free"
    yield Finding("workdir", room, "warning" if free < LITTLE_ROOM else "ok")
    if kind.startswith(_NETWORK):
        yield Finding("workdir", f"{kind}: locks and renames are its server's; tests know local disks", "warning")
    began = time.monotonic()
    with (folder / "a").open("wb") as file:
        file.write(b"x" * 2**20)
        file.flush()
        os.fsync(file.fileno())
    took = time.monotonic() - began
    (folder / "a").rename(folder / "b")
    slow = took > SLOW_SYNC
    yield Finding("disk", f"1 MiB is on the disk after {1000 * took:.0f} ms", "warning" if slow else "ok")
    with (folder / "b").open() as first, (folder / "b").open() as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Finding("locks", "a second lock is granted: two runs could write here at once", "fault")
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            yield Finding("locks", "a second run is kept out")
    ahead = (folder / "b").stat().st_mtime - time.time()
    clock = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}; files lie {ahead:+.1f} s from it"
    yield Finding("clock", clock, "warning" if abs(ahead) > CLOCK else "ok")


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`; empty where the system does not say."""
    best, kind = -1, ""
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        _, point, name, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        if path.is_relative_to(point) and len(point) > best:
            best, kind = len(point), name
    return kind


def caches(_: Path) -> Iterator[Finding]:
    """Where programs and models are kept between runs."""
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(user_cache(os.environ) / "jaxprune" / "xla")
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "no")
    yield Finding("programs", "not kept (JAX_ENABLE_COMPILATION_CACHE)" if off else kept)
    from huggingface_hub import constants

    offline = "; offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    yield Finding("models", f"{constants.HF_HUB_CACHE}{offline}")


def tpu(_: Path) -> Iterator[Finding]:
    """What the environment says about a TPU, and the processes of a job."""
    said = {name: value for name, value in os.environ.items() if name.startswith(("TPU_", "LIBTPU", "MEGASCALE"))}
    said.pop("TPU_LIBRARY_PATH", None)  # JAX sets it
    if said:
        yield Finding("TPU settings", ", ".join(f"{name}={value}" for name, value in sorted(said.items())))
    if os.environ.get("JAX_PLATFORMS"):
        yield Finding("JAX_PLATFORMS", f"{os.environ['JAX_PLATFORMS']}: nothing else is looked for")


LOOKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (versions, devices, limits, directory, caches, tpu)
"""What is looked at, in order."""
