"""Checkpoints that are noticed when damaged. The only module that knows Orbax.

Orbax saves atomically but has no checksums: a flipped bit loads without an error. So a step gets its name only with
an `integrity.json` in it, which holds the size and SHA-256 of its files, and is verified before it is restored.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError
from orbax.checkpoint.path import atomicity

from jaxprune.errors import CheckpointError, UserError, disk_errno, resource_errno
from jaxprune.files import (
    checksums,
    damage,
    may_pass,
    parse_json,
    patiently,
    set_aside,
    sync_directory,
    write_atomically,
)
from jaxprune.training.manifest import BEGIN_ANEW, last_saved, mark_saved
from jaxprune.training.processes import from_first, is_first

log = logging.getLogger("jaxprune")

RECORD = "integrity.json"
_NONE = 2**31 - 1
_MISSES = 3
_MAGIC = set("[]*?\\")  # Orbax looks for files by patterns of whole paths, in which these stand for something else
_DESCRIPTORS = Path("/proc/self/fd")


class Checkpoints:
    """Checkpoints under `<workdir>/checkpoints/<step>`, the newest `keep` of them.

    `read_only` leaves everything as it is: for the workdir of another run, which may be writing at the moment.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        self._workdir, self._path = workdir, workdir / "checkpoints"
        self._last = last_saved(workdir)  # before the steps are listed: another process may be saving
        self._read_only = read_only
        self._beside: dict[str, bytes] = {}
        self._missed = 0
        self._descriptor: int | None = None
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            self._path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                temporary_path_class=_committing(self._commit),
                # Otherwise writers wait five minutes for a folder that another thread could not make.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
        self._manager = ocp.CheckpointManager(self._plain_path(), options=options)

    def _plain_path(self) -> Path:
        """The folder of the checkpoints under a name that Orbax can handle."""
        if not _MAGIC & set(str(self._path)) or not self._path.is_dir():
            return self._path
        if not _DESCRIPTORS.is_dir():
            raise UserError(f"workdir {self._workdir}: has one of []*?\\ in its path; choose another --workdir")
        self._descriptor = os.open(self._path, os.O_RDONLY)
        return _DESCRIPTORS / str(self._descriptor)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        beside: Mapping[str, bytes] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Start writing `state` (arrays), `data` (what JSON can hold) and the files `beside` them, by name; or `wait`.

        Errors surface at the next call. One that may pass (see `files.may_pass`) costs a process that runs alone this
        checkpoint, which is said, and the third in a row is raised; where it waits, it tries again. The processes of a
        job wait for each other's files: there each such error is raised.
        """
        alone = jax.process_count() == 1
        try:
            self.wait()
            self._missed = 0
        except OSError as error:
            self._missed += 1
            if not may_pass(error) or self._missed == _MISSES or not alone:
                raise
            log.warning("%s: %s; the checkpoint before step %d is lost", self._path, error.strerror, step)
        self._beside = dict(beside or {})
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))

        def write() -> None:
            with self._named():
                saved = self._manager.save(step, args=args, force=True)
            if not saved:
                raise CheckpointError(f"checkpoint {self._path / str(step)}: not saved; free its place and run again")
            if wait:
                self.wait()

        if alone:
            patiently(write)
        else:
            write()

    def wait(self) -> None:
        """Return when the last save is on disk."""
        with self._named():
            self._manager.wait_until_finished()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let what goes wrong in a save name the folder: OSError where the system says so, else CheckpointError."""
        try:
            yield
        except StepAlreadyExistsError:
            raise
        except Exception as error:
            own = error.errno if isinstance(error, OSError) else None
            if number := disk_errno(error) or resource_errno(error) or own:
                raise OSError(number, os.strerror(number), str(self._path)) from error
            raise CheckpointError(
                f"checkpoint under {self._path}: {_one_line(error)}; older steps are intact, run again to resume"
            ) from error

    def _commit(self, temporary: Path, step: Path) -> None:
        """Give a step that is written its name, with its record in it, or a part of a step its name."""
        if not step.name.isdigit():
            patiently(lambda: temporary.rename(step))
            return
        for name, content in self._beside.items():
            write_atomically(temporary / name, content)
        write_atomically(temporary / RECORD, json.dumps({"files": checksums(temporary)}) + "\n")
        patiently(lambda: temporary.rename(step))
        sync_directory(step.parent)
        mark_saved(self._workdir, int(step.name))

    def beside(self, step: int) -> dict[str, bytes]:
        """The files beside the arrays of a step."""
        folder = self._path / str(step)
        names = (path for path in sorted(folder.glob("*.jsonl")) if path.is_file())
        return {path.name: path.read_bytes() for path in names}

    def restore(self, abstract: Any = None, *, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, data) of the newest good checkpoint, or of this `step`; None when none was ever saved.

        `abstract` holds a ShapeDtypeStruct with a sharding per leaf; without it the state comes as nested dicts as it
        was saved, a copy on every device. A damaged step is renamed to `<step>.corrupt` and the one before it used;
        a reader does neither. CheckpointError when steps were saved and none is good, or when a step that is as it
        was written does not fit `abstract`: nothing starts over silently. In a job process 0 verifies the files, and
        all processes restore the step it names; damage that one alone met in a restore would leave the others waiting.
        """
        saved = from_first(int(is_first() and (self._was_saved() or bool(self.steps()))))
        step = from_first(self._newest_good(step) if is_first() else 0)
        if step == _NONE:
            if saved:
                raise CheckpointError(
                    f"{self._workdir}: trained before, but no checkpoint that can be read is in {self._path}; put a "
                    f"good copy back, or {BEGIN_ANEW}"
                )
            return None
        self._manager.reload()  # what process 0 moved away is gone
        try:
            wanted = self._as_saved(step) if abstract is None else abstract
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=args)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self._path / str(step)}: is as it was written, but cannot be restored here "
                f"({_one_line(error)}); resume with the version and config that wrote it"
            ) from error
        return step, restored["state"], restored["data"]

    def _was_saved(self) -> bool:
        """Whether a step was saved at some time, though it may be gone."""
        asides = (*self._path.glob("*.corrupt*"), *(self._workdir / "integrity").glob("*.json"))
        return self._last is not None or bool(asides)

    def _as_saved(self, step: int) -> Any:
        """The shapes of a saved state, copied everywhere."""
        metadata: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(self._plain_step(step)) / "state")
        copied = NamedSharding(jax.make_mesh((jax.device_count(),), ("device",)), PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=copied), metadata)

    def _plain_step(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step)

    def _newest_good(self, asked: int | None = None) -> int:
        """The newest step whose files are as they were written, or _NONE; damaged ones are moved away.

        A reader gets CheckpointError where that is not the last step that was saved, unless it `asked` for it.
        """
        steps = self.steps()
        if asked is None and self._last and not any(step >= self._last for step in steps):
            self._pass_over(self._last, "is gone")
        for step in [asked] if asked is not None else reversed(steps):
            problem = self.damage(step)
            if problem is None:
                return step
            self._pass_over(step, problem)
        return _NONE

    def damage(self, step: int) -> str | None:
        """What is wrong with a step's files, or None."""
        return step_damage(self._workdir, step)

    def _pass_over(self, step: int, problem: str) -> None:
        """Say what is wrong with a step and move it away; CheckpointError instead where that may not be."""
        path = self._path / str(step)
        if self._read_only:
            good = [str(each) for each in self.steps() if each < step and self.damage(each) is None]
            older = f"ask for an older one as {self._path / good[-1]}, or " if good else ""
            raise CheckpointError(f"checkpoint {path}: {problem}; {older}put a good copy back")
        if not path.exists():
            log.warning("checkpoint %s: %s; trying the one before", path, problem)
            return
        aside = set_aside(path, "corrupt")
        log.warning("checkpoint %s: %s; moved to %s, trying the one before", path, problem, aside)
        self._manager.reload()

    def close(self) -> None:
        """Finish writing and release Orbax's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            if self._descriptor is not None:
                os.close(self._descriptor)


def steps_in(workdir: Path) -> list[int]:
    """The steps that lie in a workdir, good or not, oldest first."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def step_damage(workdir: Path, step: int) -> str | None:
    """What is wrong with the files of a step, or None."""
    folder = workdir / "checkpoints" / str(step)
    record = folder / RECORD
    if not record.exists():  # version 0.1.0 had them elsewhere for a while
        record = workdir / "integrity" / f"{step}.json"
    try:
        return damage(folder, parse_json(record.read_bytes())["files"])
    except FileNotFoundError:
        return f"its integrity record {RECORD} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its integrity record {record} cannot be read"


def _committing(commit: Callable[[Path, Path], None]) -> type[atomicity.AtomicRenameTemporaryPath]:
    """The class that Orbax writes a step through, which `commit`s it: (temporary folder, its name) -> None."""

    class Committing(atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            if self._checkpoint_metadata_store is not None:
                await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
            await asyncio.to_thread(commit, Path(self.get()), Path(self.get_final()))

    return Committing


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
