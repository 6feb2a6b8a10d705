"""Fine-tune one pre-trained model: tasks x learning rates x seeds, each run an ordinary workdir; the best is marked."""

import functools
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.config.task import TaskEntry, task_name
from jaxprune.data.metrics import METRICS
from jaxprune.errors import Diverged, UserError
from jaxprune.experiments import step_time
from jaxprune.experiments.environment import versions
from jaxprune.experiments.own_folder import check_own
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.summary import say_finetuned
from jaxprune.experiments.task_model import write_tokenizer
from jaxprune.experiments.task_run import decisions_of, describe_task, one_run, resolve, tuning, vocabulary_of
from jaxprune.experiments.walk import begun, compile_run, read_start, say_start, walk
from jaxprune.files import damage, new_directory, set_aside
from jaxprune.progress import Progress, duration
from jaxprune.training.manifest import check_whole, damage_of, files_below, read_manifest
from jaxprune.training.processes import agree, together
from jaxprune.training.workdir import Workdir, owned_workdir

log = logging.getLogger("jaxprune")

_changes = functools.partial(changes, FinetuneConfig)


def finetune(
    cfg: FinetuneConfig, workdir: Path | None, *, dry_run: bool = False, from_scratch: bool = False
) -> list[dict[str, Any]] | None:
    """Run the whole grid in `workdir`; finished runs are not run again. Returns a record per run, as in results.csv.

    The best run of a task by its main metric on the dev set is marked, and its model copied to `best/hf` (of several
    tasks to `best/TASK/hf`). `from_scratch` moves what is there to `before/` in it and begins anew.
    """
    if not cfg.init_from:
        raise UserError("init_from is empty; give a jaxprune workdir, a Hugging Face directory or a hub name")
    shelf, command = Shelf(), tuning()
    name = Path(workdir).name if workdir else "dry run"
    with Progress(name, "reading config and data"), together("config and data"):
        check_own(workdir)
        cfg = resolve(cfg, None if from_scratch else workdir).cfg
        own = str(Path(workdir).expanduser().absolute() / "tokenizer") if workdir else cfg.tokenizer
        if workdir and not from_scratch:
            check_whole(Path(workdir).expanduser(), "tokenizer", "put it back, or begin anew with --from-scratch")
        vocabulary = vocabulary_of(cfg, "" if from_scratch else own)
        shelf.get("vocabulary", own, lambda: vocabulary)
        grid = [one_run(cfg.model_copy(update={"tokenizer": own}), *cell) for cell in _cells(cfg)]
        first = {task_name(run.tasks[0]): run for run in reversed(grid)}  # bad data of any task is said before any runs
        ready = [compile_run(command.open(decisions_of(run), shelf), shelf) for run in first.values()]
    agree({"config": to_yaml(cfg)} | versions())
    if workdir and dry_run and not from_scratch:
        Workdir(workdir, owner=False).refuse_changed("config.yaml", to_yaml(cfg), _changes)
    started = workdir is not None and not from_scratch and all(begun(_folder(workdir, run)) for run in grid)
    if not started:
        read_start(ready[0].opened)
    if dry_run or workdir is None:
        speed = step_time.timed(
            max(ready, key=lambda task: step_time.step_flops(task.opened))
        )  # the other tasks follow by their arithmetic
        seconds = step_time.COMPILED * speed.compile * len(ready)
        for task_ready in reversed(ready):
            seconds += describe_task(task_ready, len(grid) // len(ready), speed)
            if not started:
                say_start(task_ready.opened)
        print(f"{len(grid)} runs, about {duration(seconds)} in all on this machine as busy as it is now")
        return None
    records = []
    anew = ("tokenizer", *_task_folders(Path(workdir))) if from_scratch else None
    with owned_workdir(workdir, to_yaml(cfg), _changes, anew=anew) as directory:
        if directory.owner and not Path(own).is_dir():
            write_tokenizer(vocabulary, cfg.model, Path(own))  # so that a resumed run needs nothing else
            directory.list_outputs()
        done, diverged = [], []
        with Progress(name, "run", total=len(grid)) as progress:
            for number, run in enumerate(grid, 1):
                folder = _folder(directory.path, run)
                try:
                    records.append(walk(command, run, folder, shelf))
                    done.append(run)
                except Diverged as error:  # on every process alike
                    log.warning("%s: %s", folder, error)
                    diverged.append(folder)
                progress.update(number)
                directory.write("results.csv", pandas.DataFrame(records).to_csv(index=False))
        pairs = {name: [pair for pair in zip(done, records) if pair[1]["task"] == name] for name in first}
        best = {name: _best(runs) for name, runs in pairs.items() if runs}
        for _, record in best.values():
            record["best"] = True
        directory.write("results.csv", pandas.DataFrame(records).fillna({"best": False}).to_csv(index=False))
        if cfg.keep_weights and directory.owner:
            for name, (run, _) in best.items():
                model = _folder(directory.path, run) / "hf"
                _keep_both(model, directory / "best" / (name if len(first) > 1 else "") / "hf")
            for run in done:
                folder = _folder(directory.path, run)
                if problem := _lost(folder / "hf"):
                    log.warning("%s: %s; delete %s and run the grid again to have it", folder, problem, folder)
        if diverged:
            raise Diverged(
                f"{len(diverged)} of {len(grid)} runs diverged, the first {diverged[0]}; all others are done"
            )
        directory.finish({"runs": len(records)})
    if directory.owner:
        say_finetuned(Path(workdir), records, cfg.keep_weights)
    return records


def _cells(cfg: FinetuneConfig) -> list[tuple[TaskEntry, float, int]]:
    return [(entry, rate, seed) for entry in cfg.tasks for rate in cfg.learning_rates for seed in cfg.seeds]


def _folder(workdir: Path, run: FinetuneConfig) -> Path:
    return Path(workdir) / task_name(run.tasks[0]) / f"lr{run.learning_rates[0]:g}-seed{run.seeds[0]}"


def _task_folders(workdir: Path) -> list[str]:
    """The folders of the tasks that a grid has runs of, whatever its config says now."""
    return sorted({path.parent.parent.name for path in workdir.expanduser().glob("*/lr*-seed*/config.yaml")})


def _best(runs: list[tuple[FinetuneConfig, dict[str, Any]]]) -> tuple[FinetuneConfig, dict[str, Any]]:
    """The run whose record has the best score, the first of several."""
    sign = -1 if METRICS[runs[0][1]["metric"]].lower_is_better else 1
    return max(runs, key=lambda run: sign * run[1]["score"])


def _keep_both(model: Path, best: Path) -> None:
    """Copy the best run's `model` to `best`; where it is lost, that copy back to it. UserError without either.

    A copy that is as it was written stays as it is, with what was put beside it; another one is moved away.
    """
    problem = _lost(model)
    source, target = (best, model) if problem else (model, best)
    expected = files_below(read_manifest(model.parent), "hf")
    copied = best.is_dir() and not damage(best, expected)
    if copied and expected and not problem:
        return
    if problem and not copied:
        remedy = f"delete {model.parent} and run again, which trains that run anew"
        raise UserError(f"{model.parent}: {problem}, the best run's model, and no copy of it in {best}; {remedy}")
    if target.is_dir():
        aside = set_aside(target, "damaged")
        log.warning("%s: not the best run's model as it was written; moved to %s", target, aside.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def _lost(model: Path) -> str | None:
    """What is wrong with the `hf/` of a finished run, or None."""
    return damage_of(model.parent, model.name) or (None if model.is_dir() else f"{model.name} is gone")
