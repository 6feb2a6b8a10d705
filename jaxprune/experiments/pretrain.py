"""Continue or start MLM + NSP pre-training while pruning, then recover."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.config import PretrainConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.data.mlm import PretrainData
from jaxprune.experiments.dryrun import describe
from jaxprune.experiments.environment import environment_json, versions
from jaxprune.experiments.start import program_of, start, start_config
from jaxprune.models.bert import bert
from jaxprune.models.hf import save_hf
from jaxprune.pruning import apply_masks, init_masks, sparsity
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program, evaluate_all
from jaxprune.training.loop import fit
from jaxprune.training.optimizer import learning_rate_at
from jaxprune.training.processes import agree, from_first, together, whole
from jaxprune.training.prunes import plan_of
from jaxprune.training.records import Records
from jaxprune.training.sharding import check_batch, make_mesh, process_rows, within
from jaxprune.training.state import TrainState
from jaxprune.training.steps import means
from jaxprune.training.workdir import Workdir, owned_workdir

log = logging.getLogger("jaxprune")


class Run(NamedTuple):
    """The compiled steps and the data of a run; runs that differ only in their plan or start share one."""

    program: Program
    data: PretrainData
    dev: PretrainData


def pretrain(cfg: PretrainConfig, workdir: Path, *, dry_run: bool = False) -> dict[str, Any] | None:
    """Run `cfg` in `workdir`, or resume it there; returns what result.json holds.

    Everything that can be wrong with the input is checked before the workdir is made. `dry_run` prints and stops there.
    """
    with together("config and data"):
        cfg = resolve(cfg)
        run = compile_run(cfg)
    agree({"config": to_yaml(cfg), "data": run.data.fingerprint} | versions())
    if dry_run:
        describe(cfg, run.program, run.data, prune_plan(cfg))
        return None
    return pretrain_in(cfg, workdir, run)


def resolve(cfg: PretrainConfig) -> PretrainConfig:
    """`cfg` with the shape of the weights it starts from, and paths that hold from any directory."""
    model = start_config(cfg.init_from, cfg.init_revision, cfg.model)
    data = cfg.data.model_copy(update={"path": absolute(cfg.data.path)})
    return cfg.model_copy(update={"model": model, "data": data, "init_from": absolute(cfg.init_from)})


def absolute(place: str) -> str:
    """`place` as it holds from any directory; a hub name, or what is not there, as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if place and path.exists() else place


def compile_run(cfg: PretrainConfig) -> Run:
    """Open the data and build the steps of a resolved config; raises on anything that does not fit."""
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, cfg.train.accumulate, mesh)
    rows = process_rows(mesh, cfg.batch_size)
    train, dev = _data(cfg, "train", rows), _data(cfg, "dev", rows)
    return Run(program_of(cfg, mesh), train, dev)


def pretrain_in(cfg: PretrainConfig, workdir: Path, run: Run) -> dict[str, Any]:
    """Run a resolved config in `workdir` with steps compiled before; a finished run only returns its result."""
    # Weights to start from are read before anything is written, so that bad ones leave no workdir behind.
    begun = from_first((Path(workdir).expanduser() / "checkpoints").is_dir())
    first = _first_state(cfg, run.program) if cfg.init_from and not begun else None
    with owned_workdir(workdir, to_yaml(cfg), partial(changes, PretrainConfig)) as place:
        result = place.result()
        if result is not None:
            log.info("%s: finished before; nothing to do", place.path)
            return result
        with within(run.program.mesh):
            result = _run(cfg, place, run, first)
        place.finish(result)
        return result


def prune_plan(cfg: PretrainConfig) -> dict[int, float]:
    """Step -> sparsity for every prune of the run; empty when it does not prune."""
    return plan_of(cfg.prune, cfg.steps)


def _data(cfg: PretrainConfig, split: str, rows: np.ndarray) -> PretrainData:
    if not cfg.data.path:
        raise ValueError("data.path is empty; give the directory that `jaxprune prepare` wrote")
    data = PretrainData(
        Path(cfg.data.path).expanduser(),
        cfg.data,
        split=split,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        rows=rows,
    )
    if data.vocab_size > cfg.model.vocab_size:
        raise ValueError(
            f"model.vocab_size = {cfg.model.vocab_size} is below the {data.vocab_size} pieces of data.path = "
            f"{cfg.data.path}; raise it, or prepare the data with the model's tokenizer"
        )
    if data.seq_len > cfg.model.max_position_embeddings:
        raise ValueError(
            f"model.max_position_embeddings = {cfg.model.max_position_embeddings} is below the sequence length "
            f"{data.seq_len} of data.path = {cfg.data.path}"
        )
    return data


def _run(cfg: PretrainConfig, place: Workdir, run: Run, first: TrainState | None) -> dict[str, Any]:
    began = time.monotonic()
    program, data = run.program, run.data
    key = jax.random.key(cfg.seed)
    terms = ("mlm", "nsp") if data.next_sentence else ("mlm",)
    batches = data.iterator(0, prefetch=4)
    last_evaluation: dict[str, float] = {}

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = evaluate_all(program, state, map(program.put, run.dev.eval_batches(cfg.train.eval_batches)))
        last_evaluation.update(means(sums, terms))
        return last_evaluation

    place.write("run.json", environment_json(seed=cfg.seed, mesh=dict(program.mesh.shape)))
    with Checkpoints(place.path, keep=cfg.train.keep) as checkpoints:
        found = checkpoints.restore(program.abstract)
        if found is None:
            step, state = 0, first or _first_state(cfg, program)
        else:
            step, state, position = found
            if position.pop("fingerprint") != data.fingerprint:
                raise ValueError(f"data.path = {cfg.data.path}: changed since this run began; put the old data back")
            batches.set_state(position)
            log.info("%s: resuming at step %d of %d", place.path.name, step, cfg.steps)
        with Records(place, step=step) as records:
            state = fit(
                state,
                _Positions(batches, data.fingerprint),
                key=jax.random.fold_in(key, 1),
                steps=cfg.steps,
                train_step=program.train,
                prune_step=program.prune,
                plan=prune_plan(cfg),
                put=program.put,
                terms=terms,
                cfg=cfg.train,
                records=records,
                title=place.path.name,
                evaluate=evaluate,
                learning_rate=learning_rate_at(cfg.optimizer, cfg.steps, cfg.optimizer.learning_rate),
                checkpoints=checkpoints,
                tokens_per_step=cfg.batch_size * data.seq_len,
            )
    if not last_evaluation:  # every step was done before a restart that came too late to train
        evaluate(state)
    params = whole(jax.jit(apply_masks)(state.params, state.masks))
    if place.owner:
        save_hf(place / "hf", cfg.model, params, head="pretraining", tokenizer=_tokenizer(cfg))
    return {
        "steps": cfg.steps,
        "tokens": cfg.steps * cfg.batch_size * data.seq_len,
        "sparsity": sparsity(state.masks),
        "dev": last_evaluation,
        "seconds_this_session": time.monotonic() - began,
    }


def _tokenizer(cfg: PretrainConfig) -> Path:
    return Path(cfg.data.path).expanduser() / "tokenizer"


def _first_state(cfg: PretrainConfig, program: Program) -> TrainState:
    key = jax.random.key(cfg.seed)
    if not cfg.init_from:
        return program.draw(bert(cfg.model, head="pretraining").init, key)
    source = start(cfg.init_from, cfg.init_revision, cfg.model, head="pretraining", num_labels=0, key=key)
    masks = init_masks(source.params, cfg.prune.include, cfg.prune.exclude)
    masks = jax.tree.map(lambda _, m, old: m if old is None or m is None else old, source.params, masks, source.masks)
    return program.init(source.params, masks)


class _Positions:
    """The data iterator with the fingerprint of its data beside the position, so that a swap is noticed."""

    def __init__(self, batches: Any, fingerprint: str):
        self._batches, self._fingerprint = batches, fingerprint

    def __iter__(self) -> "_Positions":
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return {**self._batches.get_state(), "fingerprint": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)
