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


def damage_checkpoint(workdir: Path, rng: random.Random, step: int) -> Damage:
    """Damage a file of a checkpoint, or delete all of it."""
    folder = workdir / "checkpoints" / str(step)
    if rng.random() < 0.15:
        shutil.rmtree(folder)
        return Damage("a checkpoint deleted", frozenset({step}))
    way = rng.choice([*WAYS])
    WAYS[way](rng.choice(sorted(path for path in folder.rglob("*") if path.is_file())), rng)
    return Damage(f"a file of a checkpoint {way}", frozenset({step}))


def damage_file(workdir: Path, rng: random.Random, name: str) -> Damage | None:
    """Damage a file of a workdir, if it is there."""
    if not (path := workdir / name).is_file():
        return None
    way = rng.choice([*WAYS])
    WAYS[way](path, rng)
    return Damage(f"{name} {way}", frozenset())


def leave_junk(workdir: Path, rng: random.Random) -> Damage:
    """Leave a save that was cut short beside the checkpoints, and a cut temporary file."""
    step = max(steps_in(workdir), default=0) + rng.randint(1, 3)
    folder = workdir / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "state"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.ocdbt").write_bytes(rng.randbytes(100))
    (workdir / ".contents.json.tmp").write_bytes(b"{")
    return Damage("rests of a save that was cut short", frozenset())


def damage(workdir: Path, rng: random.Random) -> list[Damage]:
    """Damage several parts of a workdir; what was done.

    Never contents.json together with what it alone can write again: that is more than is promised.
    """
    steps = steps_in(workdir)
    worst = rng.random() < 0.12
    done: list[Damage | None] = [
        damage_checkpoint(workdir, rng, step)
        for step in steps
        if worst or rng.random() < (0.8 if step == steps[-1] else 0.3)
    ]
    for name, often in (("metrics.jsonl", 0.7), ("prunes.jsonl", 0.7)):
        if rng.random() < often:
            done.append(damage_file(workdir, rng, name))
    state = ["run.json", "config.yaml"] if worst or rng.random() < 0.6 else ["contents.json"]
    done += [damage_file(workdir, rng, name) for name in state if rng.random() < 0.6]
    if rng.random() < 0.4:
        done.append(leave_junk(workdir, rng))
    if rng.random() < 0.3 and (board := workdir / "tensorboard").is_dir():
        shutil.rmtree(board)
        done.append(Damage("tensorboard/ deleted", frozenset()))
    return [each for each in done if each is not None]
