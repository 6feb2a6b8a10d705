"""What a study would do and how long it would take, from real steps of two of its programs; writes nothing."""

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxprune.config.sections import ModelConfig
from jaxprune.experiments import pretrain, step_time, task_run
from jaxprune.experiments.matrix import Job, models_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import Opened, compile_run
from jaxprune.progress import Progress, duration


def estimate(jobs: list[Job], runs: Path, shelf: Shelf) -> None:
    """Print every run with the time it would take on this machine, and sums.

    One step of pre-training and one of fine-tuning is timed, each of the shape on which most time goes; all others are
    reckoned from it by the arithmetic of their models.
    """
    models = models_of(jobs, runs)
    todo: dict[str, Opened] = {}
    with Progress("dry run", "reading", total=len(jobs)) as progress:
        for number, job in enumerate(jobs, 1):
            if not (runs / job.path / "result.json").is_file():
                kind = (job.shape, models[job.path])
                todo[job.path] = shelf.get("opened", kind, lambda job=job: _opened(job, models[job.path], shelf))
            progress.update(number)
        measured = _weightiest(todo).items()
        speeds = {pretrains: step_time.timed(compile_run(opened, shelf)) for pretrains, opened in measured}
    seconds = {path: step_time.run_seconds(opened, speeds[_pretrains(opened)]) for path, opened in todo.items()}
    programs = {opened.blueprint.key(): speeds[_pretrains(opened)].compile for opened in todo.values()}
    _show(jobs, seconds, step_time.COMPILED * sum(programs.values()))


def _pretrains(opened: Opened) -> bool:
    return opened.blueprint.head == "pretraining"


def _weightiest(todo: dict[str, Opened]) -> dict[bool, Opened]:
    """Of pre-training and of fine-tuning a run with the shape on which most of the arithmetic goes."""
    weights: defaultdict[tuple[bool, float], float] = defaultdict(float)
    of_shape: dict[tuple[bool, float], Opened] = {}
    for opened in todo.values():
        shape = (_pretrains(opened), step_time.step_flops(opened))
        of_shape.setdefault(shape, opened)
        weights[shape] += opened.blueprint.steps * shape[1]
    return {pretrains: of_shape[pretrains, flops] for pretrains, flops in sorted(weights, key=weights.__getitem__)}


def _opened(job: Job, model: ModelConfig, shelf: Shelf) -> Opened:
    """A run of the job's shape that starts from scratch."""
    command = pretrain.PRETRAIN if job.pretrains else task_run.tuning()
    return command.open(command.resolve(job.from_scratch(model), None), shelf)


def _show(jobs: list[Job], seconds: dict[str, float], compiling: float) -> None:
    console = Console(markup=False)
    table = Table("run", "time, estimated", box=None)
    table.columns[0].overflow = "fold"  # never cut: names of runs are alike but for their ends
    for job in jobs:
        table.add_row(job.path, duration(seconds[job.path]) if job.path in seconds else "finished")
    console.print(table)
    todo = [job for job in jobs if job.path in seconds]
    for number in sorted({job.round for job in todo}):
        of_round = sum(seconds[job.path] for job in todo if job.round == number)
        console.print(f"seed {number + 1} of everything: {duration(of_round)}")
    pretraining = sum(seconds[job.path] for job in todo if job.pretrains)
    tuning = sum(seconds[job.path] for job in todo if not job.pretrains)
    console.print(
        f"{len(jobs)} runs, {len(jobs) - len(todo)} of them finished; of the others "
        f"{sum(job.pretrains for job in todo)} pre-train ({duration(pretraining)}) and "
        f"{sum(not job.pretrains for job in todo)} fine-tune ({duration(tuning)})"
    )
    console.print(
        f"{duration(pretraining + tuning + compiling)} in all on this machine as busy as it is now, "
        f"{duration(compiling)} of it to compile. A step of each kind was timed; the others follow by their arithmetic"
    )
