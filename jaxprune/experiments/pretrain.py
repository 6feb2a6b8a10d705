"""Continue or start masked-LM (and next-sentence) pre-training while pruning, then recover."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxprune.config.commands import PretrainConfig
from jaxprune.config.sections import ModelConfig
from jaxprune.data import tokenizer
from jaxprune.data.mlm import PretrainData
from jaxprune.errors import UserError
from jaxprune.experiments.card import card_of_pretraining
from jaxprune.experiments.dry_run import describe_pretraining
from jaxprune.experiments.lesson import check_pupil, lesson
from jaxprune.experiments.mask_origin import origin_of_run
from jaxprune.experiments.program import Blueprint
from jaxprune.experiments.pruning_plan import included, plan_of, restarts_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.summary import say_pretrained
from jaxprune.experiments.teacher import teacher_of
from jaxprune.experiments.walk import Command, Data, Decisions, Fitted, Opened, walk
from jaxprune.experiments.weights import (
    absolute,
    check_pairs,
    check_vocabulary,
    folder_beside,
    masked_at_start,
    read_weights,
    shallower,
    shaped,
    source_model,
    stored_config,
    with_layers,
    with_masks_of,
)
from jaxprune.models import architecture_named
from jaxprune.models.folder import write_folder
from jaxprune.pruning.masks import apply_masks, sparsity
from jaxprune.training.processes import whole
from jaxprune.training.sharding import check_batch, make_mesh, process_rows

log = logging.getLogger("jaxprune")


def pretrain(
    cfg: PretrainConfig, workdir: Path | None, *, dry_run: bool = False, from_scratch: bool = False
) -> dict[str, Any] | None:
    """Run `cfg` in `workdir`, or resume it there; returns what result.json holds, None for a dry run.

    `from_scratch` moves a run that is there to `before/` in it and begins anew.
    """
    result = walk(PRETRAIN, cfg, workdir, dry_run=dry_run, from_scratch=from_scratch)
    if result is not None and workdir is not None:
        say_pretrained(Path(workdir), result)
    return result


def resolve(cfg: PretrainConfig, workdir: Path | None) -> Decisions:
    """`cfg` with the shape of the weights it starts from, prunable paths, and paths that hold from any directory."""
    stored = stored_config(workdir)
    before = stored if isinstance(stored, PretrainConfig) else PretrainConfig()
    init_from = absolute(cfg.init_from, before.init_from)
    also: Sequence[str] = before.prune.include
    if stored is not None:
        model = shaped(cfg.model, before.model, f"the run in {workdir}")
    elif cfg.init_from:
        source = f"init_from = {cfg.init_from}"
        shape = shallower(source_model(cfg.init_from, cfg.init_revision), cfg.layers, source)
        model = shaped(cfg.model, shape, source)
        if cfg.masks != "none":
            also = masked_at_start(cfg, model, "pretraining")
    elif cfg.layers:
        raise UserError(f"layers = {[*cfg.layers]}: needs init_from, whose layers they are")
    else:
        model = cfg.model
    architecture_named(model.architecture)
    prune = included(cfg.prune, model, also)
    data = cfg.data.model_copy(update={"path": absolute(cfg.data.path)})
    teacher = cfg.teacher.model_copy(update={"source": absolute(cfg.teacher.source, before.teacher.source)})
    masks_from = tuple(absolute(path, path if path in before.masks_from else "") for path in cfg.masks_from)
    changes = {
        "masks_from": masks_from,
        "model": model,
        "data": data,
        "init_from": init_from,
        "prune": prune,
        "teacher": teacher,
    }
    cfg = cfg.model_copy(update=changes)
    return Decisions(cfg, cfg.seed, prune, cfg.masks, cfg.train, cfg.train.keep, "", rewrites=True)


def open_run(decisions: Decisions, shelf: Shelf) -> Opened:
    """Prepared data, the plan, and how to get the weights to start from."""
    cfg: PretrainConfig = decisions.cfg
    plan = plan_of(cfg.prune, cfg.steps, "steps")
    data = shelf.get("pretraining data", _data_key(cfg), lambda: _data(cfg))
    blueprint = blueprint_of(cfg)
    start = functools.cache(lambda: _weights(cfg, shelf))
    if (teacher := blueprint.teacher) is None:
        return Opened(decisions, blueprint, plan, data, start)
    check_pupil(teacher, data.source.vocabulary, f"data.path = {cfg.data.path}", data.source.seq_len)
    pairs = "nsp" in data.terms
    teach = functools.partial(shelf.get, "lesson", repr((teacher, pairs)), lambda: lesson(teacher, pairs=pairs))
    return Opened(decisions, blueprint, plan, data, start, functools.partial(teach, single=True))


def blueprint_of(cfg: PretrainConfig, taught_by: Callable[[], ModelConfig] | None = None) -> Blueprint:
    """What the program of a resolved config depends on; `taught_by` gives the shape of its teacher where that is not
    to be looked up."""
    taught_by = taught_by or functools.partial(source_model, cfg.teacher.source, cfg.teacher.revision)
    return Blueprint(
        model=cfg.model,
        head="pretraining",
        num_labels=0,
        prune=cfg.prune,
        masked=True,
        optimizer=cfg.optimizer,
        steps=cfg.steps,
        mesh=cfg.mesh,
        accumulate=cfg.train.accumulate,
        teacher=teacher_of(cfg.teacher, taught_by, cfg.model, "pretraining"),
        restarts=restarts_of(cfg.optimizer.decay, plan_of(cfg.prune, cfg.steps, "steps")),
    )


def finish(fitted: Fitted) -> dict[str, Any]:
    """Write the Hugging Face directory of a finished run, masks included; what goes into its result.json."""
    state, opened = fitted.state, fitted.ready.opened
    cfg: PretrainConfig = opened.decisions.cfg
    params = whole(jax.jit(apply_masks)(state.params, state.masks))
    masks = whole(state.masks)
    result = {
        "steps": cfg.steps,
        "tokens": cfg.steps * opened.data.tokens_per_step,
        "sparsity": sparsity(state.masks),
        "dev": fitted.dev,
        "seconds_this_session": fitted.seconds,
    }
    if fitted.workdir.owner:
        most = architecture_named(cfg.model.architecture).max_tokens(cfg.model)
        write_folder(
            fitted.workdir / "hf",
            cfg.model,
            params,
            head="pretraining",
            masks=masks,
            origin=origin_of_run(cfg, fitted.workdir.path),
            tokenizer=tokenizer.files(opened.data.source.vocabulary, max_length=most),
            source=folder_beside(cfg.init_from, cfg.init_revision),
            card=card_of_pretraining(cfg, params, masks, result),
        )
    return result


def _weights(cfg: PretrainConfig, shelf: Shelf) -> Any:
    if not cfg.init_from:
        return None
    key = (cfg.init_from, cfg.init_revision, cfg.init_variant)
    weights = with_layers(shelf.get("weights", key, lambda: read_weights(*key), single=True), cfg.layers)
    return with_masks_of(weights, cfg)


def _data_key(cfg: PretrainConfig) -> str:
    parts = (cfg.data, cfg.mesh, cfg.batch_size, cfg.train.accumulate, cfg.train.eval_batches, cfg.seed)
    return f"{parts} {cfg.model.vocab_size} {cfg.model.max_position_embeddings} {cfg.model.architecture}"


def _data(cfg: PretrainConfig) -> Data:
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, cfg.train.accumulate, mesh)
    if not cfg.data.path:
        raise UserError("data.path is empty; give the directory that `jaxprune prepare` wrote")
    rows = process_rows(mesh, cfg.batch_size)
    train, dev = (
        PretrainData(cfg.data.path, cfg.data, split=split, batch_size=cfg.batch_size, seed=cfg.seed, rows=rows)
        for split in ("train", "dev")
    )
    check_vocabulary(train.vocabulary, cfg.model, f"data.path = {cfg.data.path}", cfg.init_from)
    record = architecture_named(cfg.model.architecture)
    if train.seq_len > (most := record.max_tokens(cfg.model)):
        raise UserError(
            f"model.max_position_embeddings = {cfg.model.max_position_embeddings} is enough for {most} tokens, not for "
            f"the sequence length {train.seq_len} of data.path = {cfg.data.path}"
        )
    pairs = train.next_sentence and record.next_sentence
    if pairs:
        check_pairs(cfg.model, f"model, for the sentence pairs of data.path = {cfg.data.path}")
    elif train.next_sentence:
        log.warning(
            "data.path = %s: holds pairs of segments, many from two documents, and a %s learns nothing from which; "
            "prepare it with next_sentence: false",
            cfg.data.path,
            record.name,
        )
    return Data(
        batches=lambda _: train.iterator(0, prefetch=4),
        dev=lambda: dev.eval_batches(cfg.train.eval_batches),
        whole=False,
        key=f"data.path = {cfg.data.path}",
        fingerprint=train.fingerprint,
        terms=("mlm", "nsp") if pairs else ("mlm",),
        tokens_per_step=cfg.batch_size * train.seq_len,
        source=train,
    )


PRETRAIN = Command(resolve, open_run, describe_pretraining, finish)
