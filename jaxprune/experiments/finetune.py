"""Fine-tune one pre-trained model on GLUE: tasks x learning rates x seeds, each run an ordinary workdir."""

import functools
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.config.sections import ModelConfig, OptimizerConfig
from jaxprune.data import tokenizer
from jaxprune.data.glue_batches import Encoded, GlueData, GlueIterator, encode, eval_batches
from jaxprune.data.glue_examples import Examples, load, subset
from jaxprune.data.glue_tasks import Task
from jaxprune.data.metrics import score
from jaxprune.errors import UserError
from jaxprune.experiments.environment import versions
from jaxprune.experiments.program import Blueprint
from jaxprune.experiments.pruning_plan import included, plan_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import (
    Command,
    Data,
    Decisions,
    Fitted,
    Opened,
    Ready,
    begun,
    compile_run,
    read_start,
    walk,
)
from jaxprune.experiments.weights import absolute, masked_beyond, read_weights, shaped, source_model, stored_config
from jaxprune.files import write_atomically
from jaxprune.models import architecture
from jaxprune.models.folder import write_folder
from jaxprune.pruning.masks import apply_masks, sparsity
from jaxprune.training.compile import evaluate_all
from jaxprune.training.processes import agree, together, whole
from jaxprune.training.sharding import check_batch, everywhere, make_mesh
from jaxprune.training.steps import means
from jaxprune.training.workdir import owned_workdir

CHECKPOINTS = ("checkpoints", "integrity")


class Splits(NamedTuple):
    """One task's encoded splits."""

    task: Task
    train: Encoded
    dev: Encoded
    vocabulary: tokenizer.Vocabulary


Read = Callable[[FinetuneConfig, str], tuple[Examples, Examples]]
"""(config, task) -> train and dev examples."""


def finetune(cfg: FinetuneConfig, workdir: Path | None, *, dry_run: bool = False) -> list[dict[str, Any]] | None:
    """Run the whole grid in `workdir`; finished runs are not run again. Returns a record per run, as in results.csv."""
    if not cfg.init_from:
        raise UserError("init_from is empty; give a jaxprune workdir, a Hugging Face directory or a hub name")
    shelf, command = Shelf(), tuning()
    with together("config and data"):
        cfg = resolve(cfg, workdir).cfg
        own = str(Path(workdir).expanduser().absolute() / "tokenizer") if workdir else cfg.tokenizer
        vocabulary = vocabulary_of(cfg, own)
        shelf.get("vocabulary", own, lambda: vocabulary)
        grid = [one_run(cfg.model_copy(update={"tokenizer": own}), *cell) for cell in _cells(cfg)]
        first = {run.tasks: run for run in reversed(grid)}  # what is wrong with a task's data is said before any runs
        ready = [compile_run(command.open(_decisions(run), shelf), shelf) for run in first.values()]
    agree({"config": to_yaml(cfg)} | versions())
    if not workdir or not all(begun(_folder(workdir, run)) for run in grid):
        read_start(ready[0].opened)
    if dry_run or workdir is None:
        for task_ready in reversed(ready):
            describe_task(task_ready, len(grid) // len(ready))
        return None
    records = []
    with owned_workdir(workdir, to_yaml(cfg), functools.partial(changes, FinetuneConfig)) as directory:
        if directory.owner and not Path(own).is_dir():
            _write_tokenizer(vocabulary, Path(own))  # so that a resumed run needs nothing else
        for run in grid:
            records.append(walk(command, run, _folder(directory.path, run), shelf))
            directory.write("results.csv", pandas.DataFrame(records).to_csv(index=False))
        directory.finish({"runs": len(records)})
    return records


def _folder(workdir: Path, run: FinetuneConfig) -> Path:
    return Path(workdir) / run.tasks[0] / f"lr{run.learning_rates[0]:g}-seed{run.seeds[0]}"


def tuning(read: Read | None = None) -> Command:
    """The command that fine-tunes one task with one learning rate and seed; `read` gives the examples (GLUE's)."""
    return Command(resolve, functools.partial(open_run, read or read_glue), describe_task, finish)


def resolve(cfg: FinetuneConfig, workdir: Path | None) -> Decisions:
    """`cfg` with the shape of the weights it starts from, prunable paths, and paths that hold from any directory."""
    stored = stored_config(workdir)
    before = stored if isinstance(stored, FinetuneConfig) else FinetuneConfig()
    if stored is not None:
        shape = before.model
    else:
        shape = source_model(cfg.init_from, cfg.init_revision) if cfg.init_from else cfg.model
    model = tuned_model(cfg, shape)
    also: Sequence[str] = before.prune.include
    if stored is None and cfg.init_from and cfg.masks != "none":
        also = masked_beyond(cfg.init_from, cfg.init_revision, model, "classification")
    prune = included(cfg.prune, model, also)
    paths = {key: absolute(getattr(cfg, key), getattr(before, key)) for key in ("init_from", "glue", "tokenizer")}
    cfg = cfg.model_copy(update={"model": model, "prune": prune, **paths})
    return _decisions(cfg)


def _decisions(cfg: FinetuneConfig) -> Decisions:
    title = f"{cfg.tasks[0]} lr {cfg.learning_rates[0]:g} seed {cfg.seeds[0]}"
    return Decisions(cfg, cfg.seeds[0], cfg.prune, cfg.masks, cfg.train, 1, title)


def tuned_model(cfg: FinetuneConfig, shape: ModelConfig) -> ModelConfig:
    """`shape` with dropout and dtype as `cfg` says."""
    model = shaped(cfg.model, shape, f"init_from = {cfg.init_from}")
    if cfg.max_len > model.max_position_embeddings:
        raise UserError(
            f"max_len = {cfg.max_len} is above the {model.max_position_embeddings} positions of init_from = "
            f"{cfg.init_from}; lower it"
        )
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), cfg.dropout)
    return model.model_copy(update=dropout | {"dtype": cfg.dtype})


def open_run(read: Read, decisions: Decisions, shelf: Shelf) -> Opened:
    """Encoded examples, the plan, and how to get the weights to start from."""
    cfg: FinetuneConfig = decisions.cfg
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, cfg.train.accumulate, mesh)
    splits = shelf.get("splits", _splits_key(cfg), lambda: _splits(cfg, read, shelf))
    steps = cfg.epochs * -(-len(splits.train) // cfg.batch_size)
    counts = f"epochs x examples / batch_size = {cfg.epochs} x {len(splits.train)} / {cfg.batch_size}"
    plan = plan_of(cfg.prune, steps, f"the steps of {splits.task.name}, {counts}")
    regression = splits.task.regression
    blueprint = Blueprint(
        model=cfg.model,
        head="regression" if regression else "classification",
        num_labels=0 if regression else splits.task.num_labels,
        prune=decisions.prune,
        masked=decisions.masks == "fixed",
        optimizer=schedule(cfg, steps),
        steps=steps,
        mesh=cfg.mesh,
        accumulate=cfg.train.accumulate,
    )
    data = Data(
        batches=lambda: GlueIterator(GlueData(splits.train, cfg.batch_size, decisions.seed)),
        dev=None,
        whole=True,
        key=f"glue = {cfg.glue}",
        fingerprint=_fingerprint(splits, cfg),
        terms=("regression",) if regression else ("classification",),
        tokens_per_step=cfg.batch_size * splits.train.input_ids.shape[1],
        source=splits,
    )
    key = (cfg.init_from, cfg.init_revision)
    start = functools.cache(
        lambda: shelf.get("weights", key, lambda: read_weights(*key), single=True) if cfg.init_from else None
    )
    return Opened(decisions, blueprint, plan, data, start)


def schedule(cfg: FinetuneConfig, steps: int) -> OptimizerConfig:
    """The optimizer of a run of `steps` steps, with its warm-up and the shape of its learning rate."""
    rate = {"learning_rate": cfg.learning_rates[0]}
    if not cfg.sawtooth:
        return cfg.optimizer.model_copy(update=rate | {"warmup_steps": round(cfg.warmup_fraction * steps)})
    epoch = steps // cfg.epochs
    warmup = 0 if cfg.epochs_before else round(cfg.warmup_fraction * epoch)
    teeth = {"decay": "sawtooth", "period": epoch, "offset": epoch * cfg.epochs_before}
    return cfg.optimizer.model_copy(update=rate | teeth | {"warmup_steps": warmup})


def finish(fitted: Fitted) -> dict[str, Any]:
    """Score the dev set, write its predictions and, if asked to, the model; what goes into result.json."""
    (opened, program), workdir, state = fitted.ready, fitted.workdir, fitted.state
    cfg: FinetuneConfig = opened.decisions.cfg
    splits: Splits = opened.data.source
    apply = opened.blueprint.build().apply
    predict = jax.jit(
        lambda state, batch: apply(apply_masks(state.params, state.masks), batch)["logits"],
        out_shardings=everywhere(program.mesh),
    )
    logits = []
    for batch in eval_batches(splits.dev, cfg.batch_size):
        real = batch["example_weights"] > 0
        logits.append(np.asarray(predict(state, program.put_whole(batch)))[real])
    predictions = np.concatenate(logits)
    values = score(splits.task, predictions, splits.dev.labels)
    batches = map(program.put_whole, eval_batches(splits.train, cfg.batch_size))
    loss = means(evaluate_all(program, state, batches), opened.data.terms)["loss"]
    params = whole(jax.jit(apply_masks)(state.params, state.masks)) if cfg.keep_weights else None
    masks = whole(state.masks) if cfg.keep_weights else None
    if workdir.owner:
        np.savez(workdir / "dev_predictions.npz", logits=predictions, labels=splits.dev.labels)
        if cfg.keep_weights:
            _write_model(workdir / "hf", opened, splits, params, masks)
        for name in CHECKPOINTS:  # the result is what counts; a study has hundreds of these
            shutil.rmtree(workdir / name, ignore_errors=True)
    return {
        "task": splits.task.name,
        "learning_rate": cfg.learning_rates[0],
        "seed": cfg.seeds[0],
        "masks": cfg.masks,
        "sparsity": sparsity(state.masks),
        "metric": splits.task.metric,
        "score": values[splits.task.metric],
        **values,
        "train_loss": loss,
        "train_examples": len(splits.train),
        "dev_examples": len(splits.dev),
        "steps": opened.blueprint.steps,
        "seconds_this_session": fitted.seconds,
    }


def _write_model(directory: Path, opened: Opened, splits: Splits, params: Any, masks: Any) -> None:
    names = {str(i): name for i, name in enumerate(splits.task.labels)}
    labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}} if names else {}
    blueprint = opened.blueprint
    write_folder(directory, blueprint.model, params, head=blueprint.head, masks=masks, extra_config=labels)
    _write_tokenizer(splits.vocabulary, directory)


def _write_tokenizer(vocabulary: tokenizer.Vocabulary, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for name, content in tokenizer.files(vocabulary).items():
        write_atomically(directory / name, content)


def read_glue(cfg: FinetuneConfig, name: str) -> tuple[Examples, Examples]:
    """Train and dev examples of a GLUE task; errors name file and row."""
    train, dev = (load(name, cfg.glue, split, cfg.revision) for split in ("train", "dev"))
    return subset(train, cfg.max_train_examples, seed=0), subset(dev, cfg.max_dev_examples, seed=0)


def one_run(cfg: FinetuneConfig, name: str, rate: float, seed: int) -> FinetuneConfig:
    """`cfg` for a single run of its grid."""
    return cfg.model_copy(update={"tasks": (name,), "learning_rates": (rate,), "seeds": (seed,)})


def vocabulary_of(cfg: FinetuneConfig, own: str) -> tokenizer.Vocabulary:
    """The tokenizer of a resolved config: the run's `own` copy, else `tokenizer`, else what lies beside `init_from`."""
    path, revision = cfg.tokenizer, ""
    if own and Path(own).is_dir():
        path = own
    elif not path:
        path, revision = _beside(cfg.init_from), cfg.init_revision
    vocabulary = tokenizer.load(path, revision, special=architecture(cfg.model.architecture).special_tokens)
    if vocabulary.size > cfg.model.vocab_size:
        raise UserError(
            f"tokenizer {path}: {vocabulary.size} pieces do not fit the {cfg.model.vocab_size} rows of init_from = "
            f"{cfg.init_from}; use the tokenizer it was trained with"
        )
    return vocabulary


def _beside(init_from: str) -> str:
    stored = stored_config(init_from)
    if stored is None:
        return init_from
    own = Path(init_from).expanduser() / "hf"
    if isinstance(stored, FinetuneConfig) or own.is_dir():
        return str(own)
    return str(Path(stored.data.path).expanduser() / "tokenizer")


def _cells(cfg: FinetuneConfig) -> list[tuple[str, float, int]]:
    return [(name, rate, seed) for name in cfg.tasks for rate in cfg.learning_rates for seed in cfg.seeds]


def _splits_key(cfg: FinetuneConfig) -> tuple[Any, ...]:
    limits = (cfg.max_len, cfg.max_train_examples, cfg.max_dev_examples)
    return (cfg.tasks, cfg.glue, cfg.revision, cfg.tokenizer, *limits)


def _splits(cfg: FinetuneConfig, read: Read, shelf: Shelf) -> Splits:
    vocabulary = shelf.get("vocabulary", cfg.tokenizer, lambda: vocabulary_of(cfg, cfg.tokenizer))
    train, dev = (encode(examples, vocabulary, cfg.max_len) for examples in read(cfg, cfg.tasks[0]))
    return Splits(train.task, train, dev, vocabulary)


def _fingerprint(splits: Splits, cfg: FinetuneConfig) -> str:
    """Hash of all that decides the batches."""
    digest = hashlib.sha256(f"{cfg.batch_size} {cfg.seeds[0]}".encode())
    for part in (splits.train, splits.dev):
        for array in (part.input_ids, part.token_type_ids, part.attention_mask, part.labels):
            digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def describe_task(ready: Ready, runs: int = 1) -> None:
    """Print what the runs of a task would do."""
    opened = ready.opened
    cfg, splits = opened.decisions.cfg, opened.data.source
    print(
        f"{splits.task.name}: {len(splits.train):,} train, {len(splits.dev):,} dev examples of "
        f"{splits.train.input_ids.shape[1]} tokens; {runs} runs of {opened.blueprint.steps:,} steps of {cfg.batch_size}"
    )
