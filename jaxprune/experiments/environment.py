"""What a run ran on: versions, devices, flags."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import jaxprune
from jaxprune.training import processes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")


def join(spec: str) -> bool:
    """Join the job that `spec` names (see `processes.join`); whether this process is its first."""
    processes.join(spec)
    return processes.is_first()


def peer_is_lost() -> bool:
    """Whether another process of the job turns out to be gone (see `processes.peer_is_lost`)."""
    return processes.peer_is_lost()


def versions() -> dict[str, str]:
    """Versions that all processes of a job must share."""
    return {"jaxprune": jaxprune.__version__, "jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")}


def environment(**extra: Any) -> dict[str, Any]:
    """Versions, devices and flags that decide the bits of a run, plus `extra`."""
    return {
        "python": platform.python_version(),
        "jaxprune": jaxprune.__version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "command": " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        **extra,
    }


@functools.cache
def commit() -> str:
    """The commit of the checkout that runs, `-dirty` behind it where files differ; empty where it is none."""
    root = Path(jaxprune.__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
