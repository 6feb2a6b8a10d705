"""Ways to damage a workdir between two starts: bits flipped, files cut, files and folders deleted, junk left behind."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxprune.training.checkpoint import steps_in


class Damage(NamedTuple):
    """What was done to a workdir."""

    kind: str
    steps: frozenset[int]
    """Checkpoints that must not be used now."""


def flip(path: Path, rng: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content or b"x")


def cut(path: Path, rng: random.Random) -> None:
    """Keep a part of a file, or nothing."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"x")


def delete(path: Path, rng: random.Random) -> None:
    """Remove a file."""
    del rng
    path.unlink()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {"flipped": flip, "cut": cut, "deleted": delete}
STATE = ("run.json", "config.yaml")


def damage_checkpoint(workdir: Path, rng: random.Random) -> Damage | None:
    """Damage a file of a checkpoint, mostly of the newest, or delete all of it."""
    steps = steps_in(workdir)
    if not steps:
        return None
    step = steps[-1] if rng.random() < 0.7 else rng.choice(steps)
    folder = workdir / "checkpoints" / str(step)
    if rng.random() < 0.1:
        shutil.rmtree(folder)
        return Damage("a checkpoint deleted", frozenset({step}))
    way = rng.choice([*WAYS])
    WAYS[way](rng.choice(sorted(path for path in folder.rglob("*") if path.is_file())), rng)
    return Damage(f"a file of a checkpoint {way}", frozenset({step}))


def damage_all_checkpoints(workdir: Path, rng: random.Random) -> Damage | None:
    """Damage a file of every checkpoint, or delete them all."""
    steps = steps_in(workdir)
    if not steps:
        return None
    if rng.random() < 0.3:
        shutil.rmtree(workdir / "checkpoints")
        return Damage("all checkpoints deleted", frozenset(steps))
    for step in steps:
        files = sorted(path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file())
        WAYS[rng.choice([*WAYS])](rng.choice(files), rng)
    return Damage("all checkpoints damaged", frozenset(steps))


def damage_file(workdir: Path, rng: random.Random, names: tuple[str, ...], what: str) -> Damage | None:
    """Damage one of these files of a workdir, if it is there."""
    there = [path for name in names if (path := workdir / name).is_file()]
    if not there:
        return None
    way = rng.choice([*WAYS])
    WAYS[way](rng.choice(there), rng)
    return Damage(f"{what} {way}", frozenset())


def leave_junk(workdir: Path, rng: random.Random) -> Damage | None:
    """Leave a save that was cut short beside the checkpoints, and a cut temporary file."""
    step = max(steps_in(workdir), default=0) + rng.randint(1, 3)
    folder = workdir / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "state"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.ocdbt").write_bytes(rng.randbytes(100))
    (workdir / ".contents.json.tmp").write_bytes(b"{")
    return Damage("rests of a save that was cut short", frozenset())


DAMAGES: dict[str, tuple[float, Callable[[Path, random.Random], Damage | None]]] = {
    "checkpoint": (4, damage_checkpoint),
    "all": (0.7, damage_all_checkpoints),
    "metrics": (2, lambda workdir, rng: damage_file(workdir, rng, ("metrics.jsonl",), "metrics.jsonl")),
    "prunes": (1.5, lambda workdir, rng: damage_file(workdir, rng, ("prunes.jsonl",), "prunes.jsonl")),
    "state": (2, lambda workdir, rng: damage_file(workdir, rng, STATE, "run.json or config.yaml")),
    "contents": (1.5, lambda workdir, rng: damage_file(workdir, rng, ("contents.json",), "contents.json")),
    "junk": (1, leave_junk),
}
"""Name -> (how often, what damages): None where there is nothing to damage."""


def damage(workdir: Path, rng: random.Random, count: int) -> list[Damage]:
    """Damage up to so many different parts of a workdir; what was done.

    Never contents.json and what it alone can write again: that is more than is promised.
    """
    names: list[str] = []
    for _ in range(count):
        name = rng.choices([*DAMAGES], [weight for weight, _ in DAMAGES.values()])[0]
        apart = {"state", "contents", "all"} if name in ("state", "contents", "all") else {name}
        if name == "all":
            apart |= {"checkpoint"}
        if name == "checkpoint":
            apart |= {"all"}
        if apart & {*names}:
            continue
        names.append(name)
    done = (DAMAGES[name][1](workdir, rng) for name in names)
    return [each for each in done if each is not None]
