"""Where numbers come from: versions, hardware, dates, commits and commands of runs, as their workdirs recorded them."""

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def provenance(workdirs: Iterable[Path]) -> tuple[dict[str, str], list[str]]:
    """(facts for a page, commands) of all starts in these workdirs; one that recorded nothing adds nothing."""
    starts = [start for workdir in workdirs for start in _starts(workdir)]
    dates = sorted(start["date"][:10] for start in starts if "date" in start)
    facts = {
        "versions": _different(_versions(start) for start in starts),
        "hardware": _different(_hardware(start) for start in starts),
        "date": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        "commit": _different(start.get("commit", "") for start in starts),
    }
    commands = [command for start in starts if (command := command_line(start["command"]))]
    return {label: text for label, text in facts.items() if text}, list(dict.fromkeys(commands))


def _starts(workdir: Path) -> Iterator[dict[str, Any]]:
    path = workdir / "run.json"
    if path.is_file():
        yield from json.loads(path.read_text())["starts"]


def command_line(command: str) -> str:
    """A recorded command as one would type it, paths by their last two parts: pages are published."""
    words = command.split(" ")[1:]
    if not words:
        return ""
    short = (short_path(word) if word.startswith("/") else word for word in words)
    return f"jaxprune {' '.join(map(shlex.quote, short))}"


def short_path(path: str) -> str:
    """A path by its last two parts: pages and models are published."""
    return "/".join(path.split("/")[-2:])


def _different(texts: Iterable[str]) -> str:
    return "; ".join(filter(None, dict.fromkeys(texts)))


def _versions(start: dict[str, Any]) -> str:
    packages = start.get("packages", {})
    return f"jaxprune {start['jaxprune']}, jax {packages.get('jax', '?')}, Python {start['python']}"


def _hardware(start: dict[str, Any]) -> str:
    devices = start.get("devices", [])
    kinds = ", ".join(f"{devices.count(kind)} {kind}" for kind in dict.fromkeys(devices))
    return f"{kinds} on a host of {start['cores']} cores"
