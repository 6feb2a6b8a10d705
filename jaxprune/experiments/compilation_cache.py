"""Compiled programs that outlive a command, in the user's cache directory."""

import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path

LIMIT = 512 * 2**20
"""Bytes; beyond them JAX removes what was used least recently."""
_SHORTEST = 0.1
"""Seconds of compilation from which a program is kept: JAX looks at every one that is, for each that it adds."""
_THEIRS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def keep_programs(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """The directory where JAX, which is not imported yet, will keep programs; None where the user decides or none can
    be written.

    Only set for one process or several of one machine: they lock the directory, which may be removed at any time.
    """
    if any(name in environment for name in _THEIRS):
        return None
    try:
        directory = user_cache(environment) / "jaxprune" / "xla"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs from it are run: nobody else's business
        _remove_halves(directory)
        (probe := directory / f".{os.getpid()}").touch()
        probe.unlink()
    except (OSError, RuntimeError):  # read-only, full, or a user without a home
        return None
    environment["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LIMIT))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST))
    # What cannot be read is compiled, what cannot be written is compiled the next time: nobody's concern.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    return directory


def user_cache(environment: Mapping[str, str]) -> Path:
    """The directory of this platform for what a user's programs can make again."""
    if (xdg := Path(environment.get("XDG_CACHE_HOME", ""))).is_absolute():  # another path is to be ignored, it says
        return xdg
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _remove_halves(directory: Path) -> None:
    """Remove programs whose writer was killed: JAX adds none while one lacks the time of its use, its last part.

    Under JAX's own lock, so that none that is being written goes; not at all while another process holds it.
    """
    import filelock

    lock = filelock.FileLock(directory / ".lockfile")
    try:
        with lock.acquire(timeout=0):
            present = {entry.name for entry in os.scandir(directory)}
            for name in present:
                if name.endswith("-cache") and f"{name.removesuffix('-cache')}-atime" not in present:
                    (directory / name).unlink(missing_ok=True)
    except filelock.Timeout:
        return
