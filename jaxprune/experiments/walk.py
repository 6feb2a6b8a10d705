"""The one way of a run: resolve -> open -> compile -> fit -> finish; commands differ in what they pass."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune.config.load import changes, to_yaml
from jaxprune.config.sections import PruneConfig, TrainConfig
from jaxprune.errors import UserError
from jaxprune.experiments.environment import environment, versions
from jaxprune.experiments.own_folder import check_own
from jaxprune.experiments.program import Blueprint, compile_program
from jaxprune.experiments.promise import promise
from jaxprune.experiments.pruning_plan import check_regrowth, named, pruner_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.teacher import NO_LESSON, Lesson
from jaxprune.experiments.weights import Weights, completed, kept_model, lacking, left_behind, say_pruned, start_masks
from jaxprune.files import set_aside
from jaxprune.progress import Progress
from jaxprune.pruning.masks import apply_masks
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program, evaluate_all
from jaxprune.training.loop import Batches, Window, fit
from jaxprune.training.manifest import BEGIN_ANEW, damage_of, last_saved
from jaxprune.training.optimizer import learning_rate_at, with_peak_rate
from jaxprune.training.processes import agree, from_first, together
from jaxprune.training.records import Records
from jaxprune.training.sharding import put_whole, within
from jaxprune.training.state import TrainState
from jaxprune.training.steps import means
from jaxprune.training.workdir import Workdir, owned_workdir

log = logging.getLogger("jaxprune")

_SAVED = ("checkpoints", "result.json")
_CHECKPOINTS = ("checkpoints", "integrity")


class Data(NamedTuple):
    """The data of a run."""

    batches: Callable[[Lesson], Batches]
    """Batches from the first step on, of a run that such a teacher teaches."""
    dev: Callable[[], Iterable[Any]] | None
    """Batches of the dev set, for an evaluation while training; None evaluates at the end alone, in `finish`."""
    whole: bool
    """Whether every process makes whole batches; else its own rows of them."""
    key: str
    """The config key that names it, and its value, for errors."""
    fingerprint: str
    """Hash of all that decides the batches."""
    terms: tuple[str, ...]
    """Terms of the loss."""
    tokens_per_step: int
    source: Any
    """What the batches are made of, for `finish` and the dry run."""


class Decisions(NamedTuple):
    """What a config means: `cfg` is resolved, as it is written to config.yaml; nothing is opened yet."""

    cfg: Any
    seed: int
    prune: PruneConfig
    masks: str
    """`fixed`, `lifted` (pruned weights start at 0 and train) or `none` (dense)."""
    train: TrainConfig
    keep: int
    """Checkpoints to keep."""
    title: str
    rewrites: bool
    """Whether a finished run holds a checkpoint, from which its `hf/` is written again where that is gone."""


class Opened(NamedTuple):
    """Data, plan and, for a run that begins, weights."""

    decisions: Decisions
    blueprint: Blueprint
    plan: dict[int, Any]
    data: Data
    start: Callable[[], Weights | None]
    """The weights to begin with, read once; None draws them."""
    teach: Callable[[], Lesson] = lambda: NO_LESSON
    """The teacher's weights, read once."""


class Ready(NamedTuple):
    """A run with its compiled steps."""

    opened: Opened
    program: Program


class Fitted(NamedTuple):
    """A trained run."""

    ready: Ready
    workdir: Workdir
    state: TrainState
    dev: dict[str, float]
    """The last evaluation; empty without `Data.dev`."""
    seconds: float
    """Of this session."""


class Command(NamedTuple):
    """What a command passes to the walk."""

    resolve: Callable[[Any, Path | None], Decisions]
    """(config, workdir) -> decisions; a workdir that was begun decides where the config leaves it open."""
    open: Callable[[Decisions, Shelf], Opened]
    describe: Callable[[Ready], Any]
    """The dry run."""
    finish: Callable[[Fitted], dict[str, Any]]
    """Write what comes out; what goes into result.json."""


def walk(
    command: Command,
    cfg: Any,
    workdir: Path | None,
    shelf: Shelf | None = None,
    *,
    dry_run: bool = False,
    from_scratch: bool = False,
) -> dict[str, Any] | None:
    """Run `cfg` in `workdir`, or resume it there; what result.json holds, at once where it is finished.

    Everything that can be wrong with the input is checked before the workdir is made. A finished run whose `hf/` was
    deleted or damaged writes it again. `dry_run` describes the run and writes nothing; `from_scratch` begins anew.
    """
    shelf = shelf or Shelf()
    with Progress(Path(workdir).name if workdir else "dry run", "reading config and data") as progress:
        with together("config and data"):
            check_own(workdir)
            decisions = command.resolve(cfg, None if from_scratch else workdir)
            progress.title = decisions.title or progress.title
            opened = command.open(decisions, shelf)
            ready = compile_run(opened, shelf)
        text = to_yaml(decisions.cfg)
        agree({"config": text, "data": opened.data.fingerprint} | versions())
        if workdir is not None and dry_run and not from_scratch:
            Workdir(workdir, owner=False).refuse_changed("config.yaml", text, partial(changes, type(decisions.cfg)))
        started = not from_scratch and begun(workdir)
        if not started:
            with progress.during("reading weights"):
                read_start(opened)
        if workdir is not None and not dry_run:
            anew = () if from_scratch else None
            return _owned(command, ready, workdir, text, progress, anew)
    command.describe(ready)
    if not started:
        say_start(opened)
    return None


def _owned(
    command: Command, ready: Ready, workdir: Path, text: str, progress: Progress, anew: tuple[str, ...] | None
) -> dict[str, Any]:
    decisions = ready.opened.decisions
    with owned_workdir(workdir, text, partial(changes, type(decisions.cfg)), anew=anew) as directory:
        before = directory.result()
        gone = bool(from_first(int(before is not None and decisions.rewrites and model_is_lost(directory))))
        if before is not None and not gone:
            directory.list_new_outputs()
            _tidy(decisions, directory)
            log.info("%s: finished before; nothing to do", directory.path)
            return before
        with within(ready.program.mesh):
            fitted = fit_run(ready, directory, progress)
            with progress.during("scoring and writing"):
                result = command.finish(fitted)
        if before is None:
            directory.finish(result)
        else:
            directory.list_outputs()
            log.info("%s: finished before, but its hf/ was gone: written again", directory.path)
        _tidy(decisions, directory)
    return before or result


def _tidy(decisions: Decisions, finished: Workdir) -> None:
    """Take the checkpoints away that a finished run has no more use for: a study has hundreds of these."""
    if finished.owner and not decisions.rewrites:
        for name in _CHECKPOINTS:
            shutil.rmtree(finished / name, ignore_errors=True)


def model_is_lost(workdir: Workdir) -> bool:
    """Whether the model of a finished run is gone, or damaged: then its owner moves it away, and says so."""
    problem = damage_of(workdir.path, "hf")
    if problem is not None and workdir.owner and (hf := workdir / "hf").is_dir():
        log.warning("%s: %s; moved to %s", workdir.path, problem, set_aside(hf, "damaged").name)
    return problem is not None or kept_model(workdir.path) is None


def begun(workdir: Path | None) -> bool:
    """Whether a run in this workdir goes on from what it saved, or is finished, on every process."""
    path = Path(workdir).expanduser() if workdir is not None else None
    saved = path is not None and (any((path / name).exists() for name in _SAVED) or last_saved(path) is not None)
    return bool(from_first(int(saved)))


def read_start(opened: Opened) -> None:
    """Read the weights to begin with, and the teacher's, so that bad ones leave no workdir behind. Every process must
    call it."""
    prune = opened.decisions.prune
    with together("weights"):
        weights = opened.start()
        if weights is not None and prune.regrow and opened.plan and opened.decisions.masks == "fixed":
            shapes = jax.eval_shape(opened.blueprint.build().init, jax.random.key(0))
            masks = start_masks(shapes, weights, prune)
            check_regrowth(prune, pruner_of(prune, opened.blueprint.model), masks, opened.plan[min(opened.plan)])
        opened.teach()


def compile_run(opened: Opened, shelf: Shelf) -> Ready:
    """A run with its steps, which runs of one blueprint share; XLA compiles them when they are first called."""
    blueprint = opened.blueprint
    program = shelf.get("program", blueprint.key(), lambda: compile_program(blueprint))
    if opened.plan:  # what does not fit the masks is said before any step
        with named("prune."), within(program.mesh):
            amounts = program.amounts(opened.plan[max(opened.plan)])
            jax.eval_shape(program.prune, program.abstract, amounts, jax.random.key(0))
    return Ready(opened, program)


def fit_run(ready: Ready, workdir: Workdir, progress: Progress) -> Fitted:
    """Train, prune and recover, from the newest good checkpoint or from the start."""
    began = time.monotonic()
    opened, program = ready
    decisions, blueprint, data = opened.decisions, opened.blueprint, opened.data
    latest = {}

    def evaluate(state: TrainState) -> dict[str, float]:
        assert data.dev is not None
        latest.clear()
        latest.update(means(evaluate_all(program, state, map(put, data.dev())), dict.fromkeys(data.terms, 1.0)))
        return latest

    put = program.put_whole if data.whole else program.put
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir.path, keep=decisions.keep))
        with progress.during("reading the checkpoint"):
            restored = checkpoints.restore(program.abstract)
        if restored is None and workdir.result() is not None:
            raise UserError(f"{workdir.path}: its hf/ is gone and so are its checkpoints; {BEGIN_ANEW}")
        if restored is None:
            step, state, saved = 0, first_state(opened, program), {}
        else:
            step, state, saved = restored
            if saved["data"] != data.fingerprint:
                raise UserError(f"{data.key}: changed since this run began; put the old data back")
        with progress.during("reading the teacher"):
            lesson = read_teacher(opened, saved if step else None, done=step == blueprint.steps)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, program.frozen)
            frozen = put_whole(lesson.params, shardings) if shardings and lesson.params else ()
            batches = data.batches(lesson)
        here = environment(seed=decisions.seed, mesh=dict(program.mesh.shape), step=step)
        if restored is not None:
            batches.set_state(saved["batches"])
            words = promise(here, next(reversed(workdir.starts()), None))
            log.info("%s: resuming at step %d of %d (%s)", workdir.path.name, step, blueprint.steps, words)
        workdir.add_start(here)
        beside = checkpoints.beside(step) if restored is not None else None
        records = stack.enter_context(Records(workdir, step=step, saved=beside))
        state = fit(
            state,
            batches,
            program,
            key=jax.random.fold_in(jax.random.key(decisions.seed), 1),
            steps=blueprint.steps,
            plan=opened.plan,
            terms=blueprint.weights(data.terms),
            put=put,
            cfg=decisions.train,
            records=records,
            checkpoints=checkpoints,
            progress=progress,
            window=Window(saved.get("window")),
            frozen=frozen,
            position={"data": data.fingerprint} | ({"teacher": lesson.fingerprint} if lesson.fingerprint else {}),
            evaluate=evaluate if data.dev else None,
            learning_rate=learning_rate_at(blueprint.optimizer, blueprint.steps, blueprint.restarts),
            tokens_per_step=data.tokens_per_step,
        )
    if data.dev and not latest:  # a run that had only its result left to write
        evaluate(state)
    return Fitted(ready, workdir, state, latest, time.monotonic() - began)


def read_teacher(opened: Opened, saved: Mapping[str, Any] | None, *, done: bool) -> Lesson:
    """The teacher's weights, none of a run that is `done`.

    UserError where they are not those of the checkpoint that `saved` lies beside.
    """
    if opened.blueprint.teacher is None or done:
        return NO_LESSON
    with together("teacher"):
        lesson = opened.teach()
        if saved is not None and saved.get("teacher") != lesson.fingerprint:
            source = opened.blueprint.teacher.cfg.source
            raise UserError(f"teacher.source = {source}: changed since this run began; put the old weights back")
    agree({"teacher": lesson.fingerprint})
    return lesson


def say_start(opened: Opened) -> None:
    """Say what a run that begins lacks, as it will, and whom it learns from."""
    weights, teacher = opened.start(), opened.blueprint.teacher
    if teacher is not None:
        log.info("Teacher: %s, for its %s", teacher.cfg.source, teacher.words())
    if weights is not None:
        say_heads(weights, opened.blueprint)
        if opened.decisions.masks == "fixed":
            say_pruned(weights, opened.decisions.prune)


def say_heads(weights: Weights, blueprint: Blueprint) -> None:
    """Say which heads the weights to begin with lack, and which they bring that the run does not go on with."""
    drawn, left = lacking(weights, blueprint.build().init), left_behind(weights, blueprint.build().init)
    if left:
        log.info("%s: left behind: %s; this run trains another head", weights.source, ", ".join(left))
    if drawn:
        log.info("%s has no %s: drawn at random", weights.source, ", ".join(drawn))
    if drawn and blueprint.head == "pretraining":
        log.info(
            "Pre-training first teaches a random head, and what the encoder was trained for fades: a sentence encoder, "
            "for one, gets worse. Compare with fine-tuning the pruned model as it is"
        )


def first_state(opened: Opened, program: Program) -> TrainState:
    """The state before the first step: weights and masks of the start, or drawn from the seed."""
    decisions, blueprint, weights = opened.decisions, opened.blueprint, opened.start()
    key = jax.random.key(decisions.seed)
    say_start(opened)
    if weights is None:
        state = program.draw(blueprint.build().init, key)
    else:
        params = completed(weights, blueprint.build().init, key)
        masks = start_masks(params, weights, decisions.prune, lift=decisions.masks == "none")
        if decisions.masks == "lifted":
            params = apply_masks(params, masks)
        state = program.init(params, masks if blueprint.masked else blueprint.masks(params))
    return state._replace(opt_state=with_peak_rate(state.opt_state, blueprint.optimizer.learning_rate))
