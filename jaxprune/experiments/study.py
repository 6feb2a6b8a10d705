"""The whole study: a matrix of ordinary runs that share ancestors, compiled steps and tokenised data."""

import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxprune.config.commands import FinetuneConfig, PretrainConfig
from jaxprune.config.load import LOOP, differences, read_yaml, to_yaml, validate
from jaxprune.config.sections import ModelConfig
from jaxprune.config.study import StudyConfig
from jaxprune.config.task import with_paths
from jaxprune.errors import Diverged, InUse, UserError
from jaxprune.experiments import pretrain, task_run
from jaxprune.experiments.matrix import Job, matrix, models_of, shard, with_ancestors
from jaxprune.experiments.own_folder import check_own
from jaxprune.experiments.pruning_plan import named, plan_of, pruner_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.study_report import make_report
from jaxprune.experiments.walk import walk
from jaxprune.experiments.weights import absolute, kept_model, stored_config
from jaxprune.files import write_atomically
from jaxprune.progress import Progress
from jaxprune.pruning.names import matched
from jaxprune.training.checkpoint import steps_in

log = logging.getLogger("jaxprune")

WAIT_SECONDS = 10.0
"""Between two looks at runs that another process has in hand."""
_MAY_CHANGE = re.compile(
    rf"conditions\.\w+\.(sparsities|tasks)|switches\.\w+\.(sparsities|tasks|seeds)|switch_\w+|seeds|(.+\.)?({LOOP})"
)
"""Keys of a study, or of a task of it, that may change once it began: they choose among runs, or change no weight."""


def study(cfg: StudyConfig, workdir: Path | None, *, dry_run: bool = False, only: str = "", part: str = "") -> None:
    """Run what is not finished of the matrix of `cfg` in `workdir`, then write its tables and report.

    `only` is a regex: runs whose path it matches somewhere, and their ancestors. `part` = "i/n" takes the i-th of n
    parts of the matrix, for n processes that share `workdir`: each waits for ancestors that another has in hand.
    `dry_run` prints the runs, their number and an estimate of their time, and writes nothing.
    """
    if jax.process_count() > 1:
        raise UserError("--distributed: a study is made of runs that fit one process each; share it out with --shard")
    root = Path(workdir or "DIR").expanduser().resolve()
    check_own(workdir)
    with Progress(root.name, "checking every run"):
        cfg, shelf = resolve(cfg), Shelf()
        jobs = matrix(cfg, root / "runs")
        check(jobs, root / "runs", shelf)
        jobs = select(jobs, only, part)
    if 0.0 not in cfg.conditions.pruned.sparsities:
        log.warning("conditions.pruned.sparsities has no 0: without an unpruned model few claims can be told")
    _refuse_changed(cfg, root)
    if dry_run:
        from jaxprune.experiments.estimate import estimate

        estimate(jobs, root / "runs", shelf)
        return
    _keep_config(cfg, root)
    lost: Diverged | None = None
    with _compiled_once():
        try:
            run_all(jobs, root / "runs", shelf)
        except Diverged as error:
            lost = error
    if part or only:
        log.info("%s: this part is done; `jaxprune report %s` makes the tables and the page", root, root)
    else:
        try:
            make_report(root)
        except UserError as error:  # of what diverged nothing may have finished
            if lost is None:
                raise
            log.warning("%s", error)
    if lost:
        raise lost


def resolve(cfg: StudyConfig) -> StudyConfig:
    """`cfg` with paths that hold from any directory; UserError when `dense` is no workdir."""
    if not cfg.data:
        raise UserError("data is empty; give the directory that `jaxprune prepare` wrote")
    if cfg.dense and not isinstance(stored_config(cfg.dense), PretrainConfig):
        raise UserError(f"dense = {cfg.dense}: is no pre-training workdir; leave it empty to train one")
    if cfg.dense and not is_finished(Path(cfg.dense).expanduser()):
        log.warning("dense = %s: is not finished; all runs start from what it holds when they begin", cfg.dense)
    data = absolute(cfg.data)
    paths = {"glue": absolute(cfg.finetune.glue), "tokenizer": cfg.finetune.tokenizer or f"{data}/tokenizer"}
    tasks = tuple(
        task.model_copy(update={"own": with_paths(task.own, absolute)}) if task.own else task for task in cfg.tasks
    )
    changes = {"data": data, "dense": absolute(cfg.dense), "finetune": cfg.finetune.model_copy(update=paths)}
    return cfg.model_copy(update=changes | {"tasks": tasks})


def _is_done(job: Job, runs: Path) -> bool:
    """Whether a run is finished; where its `hf/` is gone and a checkpoint can write it again, it is not."""
    workdir = runs / job.path
    return is_finished(workdir) and not (job.pretrains and kept_model(workdir) is None and steps_in(workdir))


def is_finished(workdir: Path) -> bool:
    """Whether the run in this workdir wrote its result."""
    return (workdir / "result.json").is_file()


def check(jobs: list[Job], runs: Path, shelf: Shelf) -> None:
    """UserError for what is wrong with any run of a study that is not finished: its names, its paths, its plan, its
    data; before hours are spent. Each is judged in the shape that it will have: what it starts from may not exist."""
    models = models_of(jobs, runs)
    todo = [job for job in reversed(jobs) if not is_finished(runs / job.path)]
    for job in {(job.shape, models[job.path]): job for job in todo}.values():
        try:
            _check(job.from_scratch(models[job.path]), shelf)
        except UserError as error:
            raise UserError(f"{job.path}: {error}") from None


def _check(cfg: PretrainConfig | FinetuneConfig, shelf: Shelf) -> None:
    if isinstance(cfg, PretrainConfig):
        resolved: PretrainConfig = pretrain.resolve(cfg, None).cfg
        plan, blueprint = plan_of(resolved.prune, cfg.steps, "steps"), pretrain.blueprint_of(resolved)
    else:
        opened = task_run.tuning().open(task_run.resolve(cfg, None), shelf)
        plan, blueprint = opened.plan, opened.blueprint
    pruner = pruner_of(blueprint.prune, blueprint.model)
    kind = (blueprint.model, blueprint.head, blueprint.num_labels)
    params = shelf.get("shapes", kind, lambda: jax.eval_shape(blueprint.build().init, jax.random.key(0)))
    masks = blueprint.masks(params)
    if plan:
        with named("prune."):
            pruner.amounts(masks, plan[max(plan)])


def run(job: Job, runs: Path, shelf: Shelf) -> str:
    """Run a job to its end, or resume it; returns its result in a few words."""
    command = pretrain.PRETRAIN if job.pretrains else task_run.tuning()
    result = walk(command, job.cfg, runs / job.path, shelf)
    assert result is not None
    if job.pretrains:
        return f"dev loss {result['dev']['loss']:.3f}, sparsity {result['sparsity']:.3f}"
    constant = ", the same answer for every example" if result["constant_predictions"] else ""
    return f"{result['metric']} {result['score']:.3f}{constant}, {result['seconds_this_session']:.0f} s"


def select(jobs: list[Job], only: str, part: str) -> list[Job]:
    """The jobs that `--only` and `--shard` leave, with their ancestors. UserError when there are none."""
    if part:
        numbers = re.fullmatch(r"(\d+)/(\d+)", part)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise UserError(f"--shard {part}: give i/n with 1 <= i <= n, such as 2/4")
        most = len({job.group for job in jobs})
        if int(numbers[1]) > most:
            raise UserError(f"--shard {part}: the runs make {most} parts at most; give i/n with n <= {most}")
        jobs = shard(jobs, int(numbers[1]), int(numbers[2]))
    if only:
        jobs = with_ancestors(jobs, matched(only, [job.path for job in jobs], "--only", part=True))
    if not jobs:
        part = f" of --shard {part}" if part else ""
        raise UserError(f"--only {only}: matches none of the runs{part}; --dry-run without it lists them")
    return jobs


def run_all(jobs: list[Job], runs: Path, shelf: Shelf) -> None:
    """Run every job that is not finished, ancestors first; one that another process owns is tried again at the end.

    A run that diverges is reported and left out with what needs it; Diverged is raised when all others are done.
    """
    pending, lost = list(jobs), dict[str, str]()
    began = time.monotonic()
    finished = sum(_is_done(job, runs) for job in jobs)
    taken: dict[str, list[float]] = {}
    with Progress("study", "run", total=len(jobs), done=finished) as progress:
        while pending:
            later: list[Job] = []
            moved = False
            for job in pending:
                if _is_done(job, runs):
                    moved = True
                    continue
                gone = next((need for need in job.needs if need in lost), None)
                if gone:
                    lost[job.path] = f"needs {gone}"
                    continue
                if not all(is_finished(runs / need) for need in job.needs):
                    later.append(job)
                    continue
                started = time.monotonic()
                try:
                    result = run(job, runs, shelf)
                except InUse:
                    later.append(job)
                    continue
                except Diverged as error:
                    log.warning("%s: %s", job.path, error)
                    lost[job.path] = str(error)
                    continue
                moved = True
                taken.setdefault(_kind(job), []).append(time.monotonic() - started)
                ahead = [j for j in jobs if not _is_done(j, runs)]
                done = len(jobs) - len(ahead)
                together = sum(map(len, taken.values())) / max(1, done - finished)  # other processes take some
                progress.update(done, left=_seconds(ahead, taken) * min(1.0, together))
                log.info("[%d/%d, %.0f min] %s: %s", done, len(jobs), (time.monotonic() - began) / 60, job.path, result)
            if later and not moved:
                time.sleep(WAIT_SECONDS)
            pending = later
    if lost:
        path, why = next(iter(lost.items()))
        raise Diverged(f"{len(lost)} of {len(jobs)} runs are missing; the first is {path}: {why}")


def _kind(job: Job) -> str:
    """What takes about as long: pre-training, or a task."""
    return "" if isinstance(job.cfg, PretrainConfig) else str(job.cfg.tasks[0])


def _seconds(ahead: list[Job], taken: Mapping[str, list[float]]) -> float:
    """What jobs will take where others have `taken` that long, by kind; a kind that none was of takes their mean.

    The first of a kind compiled: it counts where there is no other.
    """
    means = {kind: sum(seconds[1:] or seconds) / len(seconds[1:] or seconds) for kind, seconds in taken.items()}
    return sum(means.get(_kind(job), sum(means.values()) / len(means)) for job in ahead)


@contextmanager
def _compiled_once() -> Iterator[None]:
    """A compilation cache for this process, unless there is one: switches differ in one step of several."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="jaxprune-") as folder:
        settings.update("jax_compilation_cache_dir", folder)
        try:
            yield
        finally:
            settings.update("jax_compilation_cache_dir", None)
            reset_cache()  # else it goes on writing to the directory that is gone


def _refuse_changed(cfg: StudyConfig, root: Path) -> None:
    """UserError when the study was begun with another config, but for what only adds runs or leaves some out."""
    path = root / "config.yaml"
    if path.exists():
        old = validate(StudyConfig, read_yaml(path), str(path))
        before, now = ({task.name: one.with_limits(task) for task in one.tasks} for one in (old, cfg))
        changed = [
            f"tasks.{name}.{line}"
            for name in before.keys() & now.keys()
            for line in differences(before[name], now[name])
            if not _may_change(line, old, root)
        ]
        old = old.model_copy(update={"tasks": cfg.tasks})
        changed += [line for line in differences(old, cfg) if not _may_change(line, old, root)]
        if changed:
            raise UserError(
                f"study {root}: begun with another config ({'; '.join(changed)}); "
                "use another --workdir, or the old values to resume"
            )


def _keep_config(cfg: StudyConfig, root: Path) -> None:
    """Write config.yaml, of models only what was asked for: the rest is that of the weights they start from."""
    from_weights = {"recover": cfg.recover, "finetune": cfg.finetune}
    from_weights |= {"dense_run": cfg.dense_run} if cfg.dense_run.init_from else {}
    unset = {
        name: {"model": {*ModelConfig.model_fields} - run.model.model_fields_set} for name, run in from_weights.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):  # processes that share a study begin at once
        write_atomically(root / "config.yaml", to_yaml(cfg, exclude=unset))


def _may_change(line: str, old: StudyConfig, root: Path) -> bool:
    """Whether a difference from `old` leaves the runs in `root` what they are."""
    key = line.partition(":")[0]
    part, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    return bool(_MAY_CHANGE.fullmatch(key)) or (
        part == "switches" and (name not in old.switches or not _has_begun(name, root / "runs"))
    )


def _has_begun(switch: str, runs: Path) -> bool:
    """Whether there is a run of this switch: until then it may be a mistake that is put right."""
    places = (f"pretrain/{switch}-s*", f"finetune/*/{switch}-s*", f"finetune/dense/{switch}")
    return any(next(runs.glob(place), None) for place in places)
