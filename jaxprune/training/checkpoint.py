"""Checkpoints that are noticed when damaged. The only module that knows Orbax.

Orbax saves atomically but has no checksums: a flipped bit loads without an error. So every committed step gets
`integrity/<step>.json` with the size and SHA-256 of its files, and a step is verified before it is restored.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.errors import CheckpointError
from jaxprune.files import write_atomically
from jaxprune.training.processes import from_first, is_first

log = logging.getLogger("jaxprune")

_NONE = 2**31 - 1


class Checkpoints:
    """Checkpoints under `<workdir>/checkpoints/<step>`, the newest `keep` of them.

    `read_only` leaves everything as it is: for the workdir of another run, which may be writing at the moment.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        self._path = workdir / "checkpoints"
        self._integrity = workdir / "integrity"
        self._read_only = read_only
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            if is_first():
                self._integrity.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._path, options=options)
        self._pending: int | None = None
        self._passed_over: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Start writing `state` (arrays) and `data` (what JSON can hold). Errors surface at the next call."""
        self.wait()
        if is_first():
            self._record(step).unlink(missing_ok=True)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        if not self._manager.save(step, args=args, force=True):
            raise CheckpointError(f"checkpoint {self._path / str(step)}: not saved; free its place and run again")
        self._pending = step

    def wait(self) -> None:
        """Return when the last save is on disk with its integrity record."""
        pending, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(
                f"checkpoint under {self._path}: {_one_line(error)}; older steps are intact, run again to resume"
            ) from error
        if pending is not None and is_first():
            files = _checksums(self._path / str(pending))
            write_atomically(self._record(pending), json.dumps({"files": files}) + "\n")
            for record in self._integrity.glob("*.json"):
                if int(record.stem) not in self._manager.all_steps():
                    record.unlink()

    def restore(self, abstract: Any = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, data) of the newest good checkpoint, or None when there is none at all.

        `abstract` holds a ShapeDtypeStruct with a sharding per leaf; without it the state comes as nested dicts as it
        was saved, a copy on every device. A damaged step is renamed to `<step>.corrupt`
        and the one before it used. CheckpointError when steps exist and none is good, or when a step that is as it
        was written does not fit `abstract`: nothing starts over silently. In a job process 0 verifies the files, and
        all processes restore the step it names; damage that one alone met in a restore would leave the others waiting.
        """
        steps = self.steps()
        while (step := from_first(self._newest_good() if is_first() else 0)) != _NONE:
            self._manager.reload()  # what process 0 moved away is gone
            problem: Exception | None = None
            try:
                wanted = self._as_saved(step) if abstract is None else abstract
                args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
                restored = self._manager.restore(step, args=args)
                return step, restored["state"], restored["data"]
            except Exception as error:
                problem = error
            if self._record(step).exists() or jax.process_count() > 1:  # moving whole files away would help nobody
                raise CheckpointError(
                    f"checkpoint {self._path / str(step)}: is as it was written, but cannot be restored here "
                    f"({_one_line(problem)}); resume with the version and config that wrote it"
                ) from problem
            self._quarantine(step, _one_line(problem))
        if steps:
            raise CheckpointError(
                f"checkpoints {steps} under {self._path}: none can be read (see the warnings above); "
                "start again in another --workdir, or put a good copy back"
            )
        return None

    def _as_saved(self, step: int) -> Any:
        """The shapes of a saved state, copied everywhere."""
        metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(self._path) / str(step) / "state")
        copied = NamedSharding(jax.make_mesh((jax.device_count(),), ("device",)), PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), metadata)

    def _newest_good(self) -> int:
        """The newest step whose files are as they were written, or _NONE; damaged ones are moved away."""
        for step in reversed(self.steps()):
            if step in self._passed_over:
                continue
            problem = self.damage(step)
            if problem is None:
                return step
            self._quarantine(step, problem)
        return _NONE

    def damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None. A step killed before its record was written counts as good."""
        record = self._record(step)
        if not record.exists():
            log.warning("checkpoint %d has no integrity record; using it unverified", step)
            return None
        try:
            expected = json.loads(record.read_bytes())["files"]
        except (ValueError, KeyError, TypeError):
            return f"its integrity record {record} cannot be read"
        actual = _checksums(self._path / str(step))
        for name in sorted({*expected, *actual}):
            if name not in actual:
                return f"{name} is missing"
            if name in expected and expected[name] != actual[name]:
                return f"{name} has changed since it was written"
        return None

    def _quarantine(self, step: int, problem: str) -> None:
        path = self._path / str(step)
        if self._read_only:
            log.warning("checkpoint %s: %s; trying the one before", path, problem)
            self._passed_over.add(step)
            return
        aside, number = self._path / f"{step}.corrupt", 1
        while aside.exists():
            number += 1
            aside = self._path / f"{step}.corrupt{number}"
        log.warning("checkpoint %s: %s; moved to %s, trying the one before", path, problem, aside)
        path.rename(aside)
        self._record(step).unlink(missing_ok=True)
        self._manager.reload()

    def _record(self, step: int) -> Path:
        return self._integrity / f"{step}.json"

    def close(self) -> None:
        """Finish writing and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()


def _checksums(directory: Path) -> dict[str, list[int | str]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sums[str(path.relative_to(directory))] = [path.stat().st_size, digest]
    return sums


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
