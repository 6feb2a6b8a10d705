"""One fine-tuning run: one task, one learning rate, one seed, in an ordinary workdir."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.sections import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from jaxprune.config.task import TaskEntry, task_name, with_paths
from jaxprune.data import tokenizer
from jaxprune.data.examples import Examples, subset
from jaxprune.data.metrics import score
from jaxprune.data.own_task import read_task
from jaxprune.data.row_packing import shape_for
from jaxprune.data.task_batches import Batch, Encoded, TaskData, TaskIterator, encode, eval_batches, outputs
from jaxprune.data.tasks import TASKS, Task
from jaxprune.errors import UserError
from jaxprune.experiments import step_time
from jaxprune.experiments.dry_run import teacher_words
from jaxprune.experiments.lesson import check_pupil, lesson
from jaxprune.experiments.program import Blueprint
from jaxprune.experiments.pruning_plan import included, plan_of, restarts_of, with_paths_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.task_model import misfit_of, pooling_beside, pooling_of, with_fitting_head, write_model
from jaxprune.experiments.teacher import NO_LESSON, Lesson, Teacher, teacher_of
from jaxprune.experiments.walk import Command, Data, Decisions, Fitted, Opened, Ready
from jaxprune.experiments.weights import (
    absolute,
    check_pairs,
    check_vocabulary,
    folder_beside,
    masked_at_start,
    read_weights,
    shaped,
    source_model,
    stored_config,
    tokenizer_beside,
    with_masks_of,
)
from jaxprune.models import architecture_named
from jaxprune.models.model import TASK_HEADS
from jaxprune.models.sentence_folder import max_tokens_in
from jaxprune.progress import duration
from jaxprune.pruning.masks import apply_masks, sparsity
from jaxprune.training.compile import evaluate_all
from jaxprune.training.processes import whole
from jaxprune.training.sharding import (
    batch_sharding,
    everywhere,
    gathered,
    make_mesh,
    put_whole,
    shards,
    state_shardings,
    within,
)
from jaxprune.training.steps import means

log = logging.getLogger("jaxprune")


class Splits(NamedTuple):
    """One task's encoded splits."""

    task: Task
    train: Encoded
    dev: Encoded
    vocabulary: tokenizer.Vocabulary


Read = Callable[[FinetuneConfig, TaskEntry], tuple[Examples, Examples]]
"""(config, task) -> train and dev examples."""


def tuning(read: Read | None = None) -> Command:
    """The command that fine-tunes one task with one learning rate and seed; `read` gives the examples."""
    return Command(resolve, functools.partial(open_run, read or read_examples), describe_task, finish)


def read_examples(cfg: FinetuneConfig, entry: TaskEntry) -> tuple[Examples, Examples]:
    """Train and dev examples of a task; errors name file and row."""
    train, dev = read_task(entry, cfg.glue, cfg.revision)
    return subset(train, cfg.max_train_examples, seed=0), subset(dev, cfg.max_dev_examples, seed=0)


def one_run(cfg: FinetuneConfig, entry: TaskEntry, rate: float, seed: int) -> FinetuneConfig:
    """`cfg` for a single run of its grid."""
    return cfg.model_copy(update={"tasks": (entry,), "learning_rates": (rate,), "seeds": (seed,)})


def resolve(cfg: FinetuneConfig, workdir: Path | None) -> Decisions:
    """`cfg` with the shape of the weights it starts from, prunable paths, and paths that hold from any directory."""
    for key in ("eval_every", "eval_batches"):
        if (value := getattr(cfg.train, key)) != TrainConfig.model_fields[key].default:
            raise UserError(f"train.{key} = {value}: a fine-tuning run scores its whole dev set, at its end; remove it")
    stored = stored_config(workdir)
    before = stored if isinstance(stored, FinetuneConfig) else FinetuneConfig()
    if stored is not None:
        shape = before.model
    else:
        shape = source_model(cfg.init_from, cfg.init_revision) if cfg.init_from else cfg.model
    model = tuned_model(cfg, shape)
    also: Sequence[str] = before.prune.include
    if stored is None and cfg.init_from and cfg.masks != "none":
        also = masked_at_start(cfg, model, "classification")
    prune = included(cfg.prune, model, also)
    paths = {key: absolute(getattr(cfg, key), getattr(before, key)) for key in ("init_from", "glue", "tokenizer")}
    masks_from = tuple(absolute(path, path if path in before.masks_from else "") for path in cfg.masks_from)
    tasks = tuple(with_paths(entry, absolute) for entry in cfg.tasks)
    teacher = cfg.teacher.model_copy(update={"source": absolute(cfg.teacher.source, before.teacher.source)})
    changes = {"masks_from": masks_from, "model": model, "prune": prune, "tasks": tasks, "teacher": teacher, **paths}
    return decisions_of(cfg.model_copy(update=changes))


def decisions_of(cfg: FinetuneConfig) -> Decisions:
    """What a resolved config of one run means."""
    title = f"{task_name(cfg.tasks[0])} lr {cfg.learning_rates[0]:g} seed {cfg.seeds[0]}"
    return Decisions(cfg, cfg.seeds[0], cfg.prune, cfg.masks, cfg.train, cfg.train.keep, title, rewrites=False)


def tuned_model(cfg: FinetuneConfig, shape: ModelConfig) -> ModelConfig:
    """`shape` with dropout and dtype as `cfg` says; UserError where its `model` says something else."""
    model = shaped(cfg.model, shape, f"init_from = {cfg.init_from}")
    most = architecture_named(model.architecture).max_tokens(model)
    if cfg.max_len > most:
        source = f"init_from = {cfg.init_from}" if cfg.init_from else "the model"
        raise UserError(f"max_len = {cfg.max_len} is above the {most} positions of {source}; lower it")
    rates: dict[str, str] = dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), "dropout"
    )
    changes = {key: getattr(cfg, ours) for key, ours in (rates | {"dtype": "dtype"}).items()}
    for key, value in changes.items():
        asked = getattr(cfg.model, key) if key in cfg.model.model_fields_set else None
        if asked not in (None, value):
            ours = rates.get(key, key)
            raise UserError(f"model.{key} = {asked}: fine-tuning takes {ours} = {value}; set {ours} instead")
    return model.model_copy(update=changes)


def open_run(read: Read, decisions: Decisions, shelf: Shelf) -> Opened:
    """Encoded examples, the plan, and how to get the weights to start from."""
    cfg: FinetuneConfig = decisions.cfg
    splits = shelf.get("splits", _splits_key(cfg), lambda: _splits(cfg, read, shelf))
    longest = max(int(part.lengths.max()) for part in (splits.train, splits.dev))
    rows = shards(make_mesh(cfg.mesh)) * cfg.train.accumulate
    epochs = max(cfg.epochs, 1)
    train = TaskData(splits.train, cfg.batch_size, decisions.seed, epochs=epochs, longest=longest, multiple=rows)
    steps = cfg.epochs * train.steps_per_epoch
    counts = f"epochs x examples / batch_size = {cfg.epochs} x {len(splits.train)} / {cfg.batch_size}"
    plan = plan_of(cfg.prune, steps, f"the steps of {splits.task.name}, {counts}")
    head = splits.task.head
    decisions = decisions._replace(prune=with_paths_of(decisions.prune, cfg.model, head, len(splits.task.labels)))
    blueprint = Blueprint(
        model=cfg.model,
        head=head,
        num_labels=len(splits.task.labels),
        prune=decisions.prune,
        masked=decisions.masks == "fixed",
        optimizer=schedule(cfg, steps),
        steps=steps,
        mesh=cfg.mesh,
        accumulate=cfg.train.accumulate,
        pooling=pooling_of(cfg) if head == "similarity" else "mean",
        teacher=_teacher(cfg, splits, longest),
        restarts=restarts_of(cfg.optimizer.decay, plan),
    )
    data = Data(
        batches=lambda lesson: TaskIterator(train, _said(lesson, blueprint, splits, cfg, shelf)),
        dev=None,
        whole=True,
        key=f"glue = {cfg.glue}" if isinstance(cfg.tasks[0], str) else f"tasks: {splits.task.name}",
        fingerprint=_fingerprint(splits, cfg),
        terms=(head,),
        tokens_per_step=len(splits.train.ids) // train.steps_per_epoch,
        source=(splits, train.shape),
    )
    key = (cfg.init_from, cfg.init_revision, cfg.init_variant)

    def read_start() -> Any:
        if not cfg.init_from:
            return None
        weights = shelf.get("weights", key, lambda: read_weights(*key), single=True)
        weights = with_masks_of(weights, cfg)
        return with_fitting_head(weights, cfg.init_revision, blueprint, splits.task.labels)

    def read_teacher() -> Lesson:
        if blueprint.teacher is None:
            return NO_LESSON
        make = functools.partial(_lesson, blueprint, splits.task)
        return shelf.get("lesson", repr(blueprint.teacher), make, single=True)

    return Opened(decisions, blueprint, plan, data, functools.cache(read_start), read_teacher)


def _teacher(cfg: FinetuneConfig, splits: Splits, longest: int) -> Teacher | None:
    """The teacher of a run of one task; of a grid of several tasks the best model of this one."""
    source, task = cfg.teacher.source, splits.task
    own = Path(source) / "best" / task.name / "hf"
    wanted = cfg.teacher.model_copy(update={"source": str(own)}) if source and own.is_dir() else cfg.teacher
    shape = functools.partial(source_model, wanted.source, wanted.revision)
    teacher = teacher_of(wanted, shape, cfg.model, task.head, len(task.labels))
    if teacher is None:
        return None
    check_pupil(teacher, splits.vocabulary, f"the tokenizer of init_from = {cfg.init_from}", longest)
    return teacher._replace(pooling=pooling_beside(wanted.source, wanted.revision))


def _lesson(blueprint: Blueprint, task: Task) -> Lesson:
    """The weights of a run's teacher; UserError for a head that is none for its task."""
    teacher = blueprint.teacher
    assert teacher is not None
    cfg = teacher.cfg
    weights = read_weights(cfg.source, cfg.revision, cfg.variant)
    if teacher.head in TASK_HEADS:
        theirs = blueprint._replace(model=teacher.model)
        if misfit := misfit_of(weights, cfg.revision, theirs, task.labels):
            raise UserError(f"teacher.source = {cfg.source}: {misfit}; fine-tune the teacher on {task.name}")
    return lesson(teacher, weights)


def _said(
    lesson: Lesson, blueprint: Blueprint, splits: Splits, cfg: FinetuneConfig, shelf: Shelf
) -> dict[str, np.ndarray]:
    """What the teacher says of each training example, if it is asked beforehand; all runs of a grid ask it once.

    Without its weights, as in a dry run, zeros.
    """
    teacher, train = blueprint.teacher, splits.train
    if teacher is None or not teacher.beforehand:
        return {}
    if lesson is NO_LESSON:
        classes = (teacher.num_labels,) if teacher.num_labels else ()
        return {"teacher_logits": np.zeros((len(train), *classes), np.float32)}
    key = (lesson.fingerprint, repr(teacher), *_splits_key(cfg), cfg.mesh.model_dump_json())
    make = functools.partial(answers, teacher, lesson.params, train, cfg.mesh)
    return {"teacher_logits": shelf.get("answers", key, make, single=True)}


def answers(teacher: Teacher, params: Any, encoded: Encoded, cfg: MeshConfig) -> np.ndarray:
    """A teacher's logits for each example, float32 (N, C), or (N,) where an example has one score.

    The shape of the batches is the data's own: every run that asks about them gets the same, whatever its seed.
    """
    mesh = make_mesh(cfg)
    forward, rows = _forward(teacher.build().apply, mesh), batch_sharding(mesh)
    placed = put_whole(params, state_shardings(params, mesh))
    masks = jax.tree.map(lambda _: None, params)  # its weights are masked

    def ask(batch: Batch) -> np.ndarray:
        return np.asarray(forward(placed, masks, put_whole(batch, dict.fromkeys(batch, rows))), np.float32)

    with within(mesh):
        return outputs(encoded, shape_for(int(encoded.lengths.max()), shards(mesh)), ask)


def schedule(cfg: FinetuneConfig, steps: int) -> OptimizerConfig:
    """The optimizer of a run of `steps` steps, with its warm-up and the shape of its learning rate."""
    rate = {"learning_rate": cfg.learning_rates[0]}
    if not cfg.sawtooth:
        return cfg.optimizer.model_copy(update=rate | {"warmup_steps": round(cfg.warmup_fraction * steps)})
    epoch = steps // max(cfg.epochs, 1)
    warmup = 0 if cfg.epochs_before else round(cfg.warmup_fraction * epoch)
    teeth = {"decay": "sawtooth", "period": epoch, "offset": epoch * cfg.epochs_before}
    return cfg.optimizer.model_copy(update=rate | teeth | {"warmup_steps": warmup})


def finish(fitted: Fitted) -> dict[str, Any]:
    """Score the dev set, write its predictions and the model; what goes into result.json."""
    (opened, program), workdir, state = fitted.ready, fitted.workdir, fitted.state
    cfg: FinetuneConfig = opened.decisions.cfg
    splits, shape = opened.data.source
    forward = _forward(opened.blueprint.build().apply, program.mesh)
    predictions = outputs(
        splits.dev, shape, lambda batch: np.asarray(forward(state.params, state.masks, program.put_whole(batch)))
    )
    values = score(splits.task, predictions, splits.dev.labels)
    if cfg.train_loss:
        batches = (program.put_whole(batch) for _, batch in eval_batches(splits.train, shape))
        terms = dict.fromkeys(opened.data.terms, 1.0)
        values["train_loss"] = means(evaluate_all(program, state, batches), terms)["loss"]
    params = whole(jax.jit(apply_masks)(state.params, state.masks)) if cfg.keep_weights else None
    masks = whole(state.masks) if cfg.keep_weights else None
    result = {
        "task": splits.task.name,
        "learning_rate": cfg.learning_rates[0],
        "seed": cfg.seeds[0],
        "masks": cfg.masks,
        "sparsity": sparsity(state.masks),
        "metric": splits.task.metric,
        "score": values[splits.task.metric],
        **values,
        "train_examples": len(splits.train),
        "dev_examples": len(splits.dev),
        "steps": opened.blueprint.steps,
        "seconds_this_session": fitted.seconds,
    }
    if workdir.owner:
        np.savez(workdir / "dev_predictions.npz", logits=predictions, labels=splits.dev.labels)
        if cfg.keep_weights:
            write_model(workdir / "hf", cfg, opened.blueprint, splits.task, splits.vocabulary, params, masks, result)
    return result


@functools.lru_cache(maxsize=4)
def _forward(apply: Callable[..., dict[str, Any]], mesh: Mesh) -> Callable[[Any, Any, Any], jax.Array]:
    """(params, masks, batch) -> logits of the masked model on every device; compiled once for all runs of a grid."""
    forward = gathered(lambda params, _, batch: apply(params, batch)["logits"], mesh)
    return jax.jit(
        lambda params, masks, batch: forward(apply_masks(params, masks), (), batch), out_shardings=everywhere(mesh)
    )


def vocabulary_of(cfg: FinetuneConfig, own: str) -> tokenizer.Vocabulary:
    """The tokenizer of a resolved config: the run's `own` copy, else `tokenizer`, else what lies beside `init_from`."""
    path, revision = cfg.tokenizer, ""
    if own and Path(own).is_dir():
        path = own
    elif not path:
        path, revision = tokenizer_beside(cfg.init_from), cfg.init_revision
    vocabulary = tokenizer.load(path, revision, special=architecture_named(cfg.model.architecture).special_tokens)
    check_vocabulary(vocabulary, cfg.model, f"tokenizer {path}", cfg.init_from)
    return vocabulary


def _splits_key(cfg: FinetuneConfig) -> tuple[Any, ...]:
    limits = (_max_len(cfg), cfg.max_train_examples, cfg.max_dev_examples)
    entry = cfg.tasks[0] if isinstance(cfg.tasks[0], str) else cfg.tasks[0].model_dump_json()
    return (entry, cfg.glue, cfg.revision, cfg.tokenizer, *limits)


def _splits(cfg: FinetuneConfig, read: Read, shelf: Shelf) -> Splits:
    vocabulary = shelf.get("vocabulary", cfg.tokenizer, lambda: vocabulary_of(cfg, cfg.tokenizer))
    if (most := _max_len(cfg)) < cfg.max_len:
        log.info("%s: reads %d tokens of a text (max_seq_length), not max_len = %d", cfg.init_from, most, cfg.max_len)
    train, dev = (encoded_for(examples, vocabulary, most) for examples in read(cfg, cfg.tasks[0]))
    if len(train.task.text) > 1 and train.task.kind != "similarity":
        check_pairs(cfg.model, f"init_from = {cfg.init_from}")
    return Splits(train.task, train, dev, vocabulary)


def _max_len(cfg: FinetuneConfig) -> int:
    """`max_len`, or what a sentence encoder reads of a text where that is less: later it is asked about no more."""
    entry = cfg.tasks[0]
    known = TASKS.get(entry) if isinstance(entry, str) else entry  # the demo's have names alone
    similar = known is not None and known.kind == "similarity"
    folder = folder_beside(cfg.init_from, cfg.init_revision) if similar else None
    return min(cfg.max_len, (max_tokens_in(folder) if folder else 0) or cfg.max_len)


def encoded_for(examples: Examples, vocabulary: tokenizer.Vocabulary, max_len: int) -> Encoded:
    """Examples as their task reads them."""
    return encode(examples, vocabulary, max_len, apart=examples.task.kind == "similarity")


def _fingerprint(splits: Splits, cfg: FinetuneConfig) -> str:
    """Hash of all that decides the batches."""
    digest = hashlib.sha256(f"{cfg.batch_size} {cfg.seeds[0]}".encode())
    for part in (splits.train, splits.dev):
        for array in (part.ids, part.types, part.ends, part.labels, part.weights):
            digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def describe_task(ready: Ready, runs: int = 1, speed: step_time.StepTime | None = None) -> float:
    """Print what the runs of a task would do; the seconds that they would take at this speed, measured if not given."""
    opened = ready.opened
    cfg, (splits, shape) = opened.decisions.cfg, opened.data.source
    seconds = runs * step_time.run_seconds(opened, speed or step_time.timed(ready))
    print(
        f"{splits.task.name}: {len(splits.train):,} train, {len(splits.dev):,} dev examples, "
        f"{splits.train.lengths.mean():.1f} tokens on average, {splits.train.lengths.max()} at most; {runs} runs of "
        f"{opened.blueprint.steps:,} steps of {cfg.batch_size} examples in {shape.rows} rows of {shape.length} tokens, "
        f"{duration(seconds)}"
    )
    if opened.blueprint.teacher:
        print(f"{splits.task.name}: teacher of {teacher_words(ready)}")
    return seconds
