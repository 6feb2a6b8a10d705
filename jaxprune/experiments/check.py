"""Whether a workdir, prepared data or a model folder is as it was written, and what of it still works."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxprune.config.load import read_yaml
from jaxprune.data import data_manifest
from jaxprune.errors import CheckpointError, UserError
from jaxprune.files import parse_json
from jaxprune.models.folder import read_folder
from jaxprune.models.other_files import CONFIG
from jaxprune.models.weights import read_weights
from jaxprune.training.checkpoint import step_damage, steps_in
from jaxprune.training.manifest import BEGIN_ANEW, MANIFEST, damage_of, is_damaged, read_manifest
from jaxprune.training.records import NAMES
from jaxprune.training.workdir import OUTPUTS


def check(path: Path) -> int:
    """Print what is wrong with a directory and what still works; 0 where nothing is wrong, else 78."""
    path = path.expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    study = _is_study(path)
    workdirs = [path] if _is_workdir(path) and not study else []
    below = {file.parent for name in (MANIFEST, "run.json") for file in path.glob(f"**/{name}")} - {path}
    workdirs += sorted(each for each in below if _counts(each, path))
    if workdirs or study:
        problems = [f"{name}: {problem}" for each in workdirs for name, problem in _workdir(each)]
    elif (path / data_manifest.MANIFEST).is_file():
        problems = [*_data(path)]
    elif (path / CONFIG).is_file():
        problems = [*_model(path)]
    else:
        raise UserError(f"{path}: neither a workdir nor prepared data nor a model folder")
    for problem in problems:
        print(problem)
    for each in workdirs:
        print(f"{each}: {_works(each)}")
    if not problems:
        print(f"{path}: as it was written")
    return CheckpointError.exit_code if problems else 0


def _is_study(path: Path) -> bool:
    """Whether it is the directory of a study, which is no run itself: nothing but its runs is vouched for."""
    if (path / MANIFEST).is_file():
        return False
    try:
        return read_yaml(path / "config.yaml").get("command") == "study"
    except UserError:  # there is none, or it is damaged
        return False


def _is_workdir(path: Path) -> bool:
    return (
        (path / "config.yaml").is_file() or (path / "run.json").is_file() or read_manifest(path).last_saved is not None
    )


def _counts(run: Path, path: Path) -> bool:
    return not {"before", "checkpoints"} & {*run.relative_to(path).parts}


def _workdir(path: Path) -> Iterator[tuple[Path, str]]:
    """(file or folder, what is wrong with it)."""
    manifest = read_manifest(path)
    if not (path / MANIFEST).is_file():
        yield path / MANIFEST, "is missing, so nothing vouches for the other files"
    if is_damaged(manifest):
        yield path / MANIFEST, "is damaged"
    for name, text in manifest.state.items():
        if not (path / name).is_file():
            yield path / name, "is missing; the next start writes it again"
        elif (path / name).read_bytes() != text.encode():
            yield path / name, "has changed since it was written; the next start writes it again"
    for name in OUTPUTS:
        if problem := damage_of(path, name):
            yield path, problem
    steps = steps_in(path)
    for step in steps:
        if problem := step_damage(path, step):
            yield path / "checkpoints" / str(step), problem
    if manifest.last_saved and "result.json" not in manifest.state and manifest.last_saved not in steps:
        yield path / "checkpoints" / str(manifest.last_saved), "is missing"
    good = [step for step in steps if step_damage(path, step) is None]
    for name in NAMES if good else ():
        kept, there = (folder / name for folder in (path / "checkpoints" / str(good[-1]), path))
        if kept.is_file() and not (there.is_file() and there.read_bytes().startswith(kept.read_bytes())):
            yield there, f"is not what it was at step {good[-1]}; the next start writes it again"


def _works(path: Path) -> str:
    """What a start in the workdir would do."""
    good = [step for step in steps_in(path) if step_damage(path, step) is None]
    if (path / "result.json").is_file():
        return "finished" + (f", checkpoint {good[-1]} is whole" if good else "")
    if good:
        return f"the same command resumes at step {good[-1]}"
    trained = read_manifest(path).last_saved is not None or steps_in(path)
    return f"nothing to resume from; {BEGIN_ANEW}" if trained else "the same command begins it"


def _data(path: Path) -> Iterator[str]:
    try:
        files = data_manifest.read_manifest(path)["files"]
    except UserError as error:
        yield str(error)
        return
    for name, expected in files.items():
        try:
            data_manifest.verify(path, {name: expected}, hashes=True)
        except UserError as error:
            yield str(error)


def _model(path: Path) -> Iterator[str]:
    run = path.parent.parent if path.parent.name == "best" else path.parent
    if problem := damage_of(run, str(path.relative_to(run))):
        yield f"{run}: {problem}"
    try:
        parse_json((path / CONFIG).read_bytes())
        read_folder(str(path), head=None)
        tensors = read_weights(path)[1]
        bad = [name for name, tensor in tensors.items() if not np.isfinite(np.asarray(tensor, np.float32)).all()]
        if bad:
            yield f"{path}: {bad[0]} is not finite, nor are {len(bad) - 1} other tensors"
    except (UserError, ValueError, OSError) as error:
        yield f"{path}: {' '.join(str(error).split())}"
