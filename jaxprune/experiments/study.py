"""The whole study: a matrix of ordinary runs that share ancestors, compiled steps and tokenised data."""

import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxprune.config import StudyConfig
from jaxprune.config.load import differences, read_yaml, to_yaml, validate
from jaxprune.experiments import pretrain
from jaxprune.experiments.conditions import Job, matrix, shard, with_ancestors
from jaxprune.experiments.shared import Shared, is_finished
from jaxprune.experiments.start import is_workdir
from jaxprune.training.loop import Diverged
from jaxprune.training.records import Bar
from jaxprune.training.workdir import InUse, write_atomically

log = logging.getLogger("jaxprune")

WAIT_SECONDS = 10.0
"""Between two looks at runs that another process has in hand."""
_MAY_GROW = re.compile(
    r"conditions\.\w+\.sparsities|switch_\w+|population|.*\btrain\.(log|eval|save)_\w+|.*\btrain\.keep"
)


def study(cfg: StudyConfig, workdir: Path | None, *, dry_run: bool = False, only: str = "", part: str = "") -> None:
    """Run what is not finished of the matrix of `cfg` in `workdir`, then write its tables and report.

    `only` is a regex: runs whose path it matches somewhere, and their ancestors. `part` = "i/n" takes the i-th of n
    parts of the matrix, for n processes that share `workdir`: each waits for ancestors that another has in hand.
    `dry_run` prints the runs, their number and an estimate of their time, and writes nothing.
    """
    if jax.process_count() > 1:
        raise ValueError("--distributed: a study is made of runs that fit one process each; share it out with --shard")
    root = Path(workdir or "DIR").expanduser().resolve()
    cfg = resolve(cfg)
    shared = Shared(cfg)
    jobs = select(matrix(cfg, root / "runs"), only, part)
    if dry_run:
        from jaxprune.experiments.estimate import estimate

        estimate(jobs, root / "runs", shared)
        return
    _keep_config(cfg, root)
    lost: Diverged | None = None
    with _compiled_once():
        try:
            run_all(jobs, root / "runs", shared)
        except Diverged as error:
            lost = error
    if part or only:
        log.info("%s: this part is done; `jaxprune report %s` makes the tables and the page", root, root)
    else:
        make_report(root)
    if lost:
        raise lost


def make_report(root: Path) -> None:
    """Write `tables/` and `report.html` of a study, from its finished runs alone."""
    from jaxprune.analysis.paper import paper_report
    from jaxprune.experiments.measure import measure

    measure(root)
    log.info("open %s", paper_report(root))


def resolve(cfg: StudyConfig) -> StudyConfig:
    """`cfg` with paths that hold from any directory; ValueError when `dense` is no workdir."""
    if not cfg.data:
        raise ValueError("data is empty; give the directory that `jaxprune prepare` wrote")
    if cfg.dense and not is_workdir(cfg.dense):
        raise ValueError(f"dense = {cfg.dense}: is no pre-training workdir; leave it empty to train one")
    if cfg.dense and not is_finished(Path(cfg.dense).expanduser()):
        log.warning("dense = %s: is not finished; all runs start from what it holds when they begin", cfg.dense)
    changes = {"data": pretrain.absolute(cfg.data), "dense": pretrain.absolute(cfg.dense)}
    finetune_cfg = cfg.finetune.model_copy(update={"glue": pretrain.absolute(cfg.finetune.glue)})
    return cfg.model_copy(update=changes | {"finetune": finetune_cfg})


def select(jobs: list[Job], only: str, part: str) -> list[Job]:
    """The jobs that `--only` and `--shard` leave, with their ancestors. ValueError when there are none."""
    if part:
        found = re.fullmatch(r"(\d+)/(\d+)", part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard {part}: give i/n with 1 <= i <= n, such as 2/4")
        jobs = shard(jobs, int(found[1]), int(found[2]))
    if only:
        try:
            pattern = re.compile(only)
        except re.error as error:
            raise ValueError(f"--only {only}: no regular expression ({error})") from None
        jobs = with_ancestors(jobs, {job.path for job in jobs if pattern.search(job.path)})
    if not jobs:
        raise ValueError(f"--only {only}: matches none of the runs; --dry-run without it lists them")
    return jobs


def run_all(jobs: list[Job], runs: Path, shared: Shared) -> None:
    """Run every job that is not finished, ancestors first; one that another process owns is tried again at the end.

    A run that diverges is reported and left out with what needs it; Diverged is raised when all others are done.
    """
    pending, lost = list(jobs), dict[str, str]()
    began = time.monotonic()
    with Bar("study", total=len(jobs), done=0, quiet_seconds=float("inf")) as bar:
        while pending:
            later: list[Job] = []
            moved = False
            for job in pending:
                if is_finished(runs / job.path):
                    moved = True
                    continue
                gone = next((need for need in job.needs if need in lost), None)
                if gone:
                    lost[job.path] = f"needs {gone}"
                    continue
                if not all(is_finished(runs / need) for need in job.needs):
                    later.append(job)
                    continue
                try:
                    result = shared.run(job, runs, pending)
                except InUse:
                    later.append(job)
                    continue
                except Diverged as error:
                    log.warning("%s: %s", job.path, error)
                    lost[job.path] = str(error)
                    continue
                moved = True
                done = sum(is_finished(runs / j.path) for j in jobs)
                bar.update(done, job.path)
                log.info("[%d/%d, %.0f min] %s: %s", done, len(jobs), (time.monotonic() - began) / 60, job.path, result)
            if later and not moved:
                time.sleep(WAIT_SECONDS)
            pending = later
    if lost:
        path, why = next(iter(lost.items()))
        raise Diverged(f"{len(lost)} of {len(jobs)} runs are missing; the first is {path}: {why}")


@contextmanager
def _compiled_once() -> Iterator[None]:
    """A compilation cache for this process, unless there is one: switches differ in one step of several."""
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="jaxprune-") as place:
        settings.update("jax_compilation_cache_dir", place)
        try:
            yield
        finally:
            settings.update("jax_compilation_cache_dir", None)
            reset_cache()  # else it goes on writing to the directory that is gone


def _keep_config(cfg: StudyConfig, root: Path) -> None:
    """Write config.yaml; ValueError when the study was begun with another one, but for what only adds runs."""
    path = root / "config.yaml"
    if path.exists():
        old = validate(StudyConfig, read_yaml(path), str(path))
        if _seeds_added(old, cfg):
            old = old.model_copy(update={"tasks": cfg.tasks})
        changed = [line for line in differences(old, cfg) if not _only_adds(line, old)]
        if changed:
            raise ValueError(
                f"study {root}: begun with another config ({'; '.join(changed)}); "
                "use another --workdir, or the old values to resume"
            )
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_yaml(cfg))


def _seeds_added(old: StudyConfig, new: StudyConfig) -> bool:
    """Whether every task is as it was but for more seeds; tasks may be new."""
    tasks = {task.name: task for task in new.tasks}
    return all(
        task.name in tasks
        and {*task.seeds} <= {*tasks[task.name].seeds}
        and task == tasks[task.name].model_copy(update={"seeds": task.seeds})
        for task in old.tasks
    )


def _only_adds(line: str, old: StudyConfig) -> bool:
    key = line.partition(":")[0]
    part, _, rest = key.partition(".")
    return bool(_MAY_GROW.fullmatch(key)) or (part == "switches" and rest.partition(".")[0] not in old.switches)
