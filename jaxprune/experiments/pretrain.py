"""Continue or start MLM + NSP pre-training while pruning, then recover."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from jaxprune.training.compile import Program, evaluate_all, placed
from jaxprune.training.loop import fit
from jaxprune.training.optimizer import learning_rate_at
from jaxprune.training.population import (
    MemberCheckpoints,
    MemberRecords,
    SameBatches,
    in_workdirs,
    member,
    repeat,
    restored,
)
from jaxprune.training.population import stack as stack_trees
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
    population: Program | None = None
    """The same steps for several runs at once, where they were asked for."""


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


def compile_run(cfg: PretrainConfig, *, members: int = 0) -> Run:
    """Open the data and build the steps of a resolved config; raises on anything that does not fit.

    `members` > 0 builds those of a population of so many runs, too.
    """
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.batch_size, cfg.train.accumulate, mesh)
    rows = process_rows(mesh, cfg.batch_size)
    train, dev = _data(cfg, "train", rows), _data(cfg, "dev", rows)
    return Run(program_of(cfg, mesh), train, dev, program_of(cfg, mesh, members=members) if members else None)


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


def pretrain_together(runs: Sequence[tuple[PretrainConfig, Path]], run: Run) -> list[dict[str, Any]]:
    """`pretrain_in` for resolved configs that share `run` and the steps of their plans, as one population.

    Each workdir ends as if it had run alone. Runs that were interrupted at different steps go on one by one.
    """

    def train(places: list[Workdir]) -> list[dict[str, Any]]:
        with within(run.program.mesh):
            return _run_together([cfg for cfg, _ in runs], places, run)

    results = in_workdirs([(path, to_yaml(cfg)) for cfg, path in runs], partial(changes, PretrainConfig), train)
    return results or [pretrain_in(cfg, path, run) for cfg, path in runs]


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
    batches = data.iterator(0, prefetch=4)
    evaluation = _Evaluation(cfg, run, program, lambda batch: batch)
    place.write("run.json", environment_json(seed=cfg.seed, mesh=dict(program.mesh.shape)))
    with Checkpoints(place.path, keep=cfg.train.keep) as checkpoints:
        found = checkpoints.restore(program.abstract)
        if found is None:
            step, state = 0, first or _first_state(cfg, program)
        else:
            step, state, position = found
            batches.set_state(_checked(position, cfg, data))
            log.info("%s: resuming at step %d of %d", place.path.name, step, cfg.steps)
        with Records(place, step=step) as records:
            state = _fit(
                cfg,
                run,
                program,
                state,
                _Positions(batches, data.fingerprint),
                key=jax.random.fold_in(jax.random.key(cfg.seed), 1),
                plan=prune_plan(cfg),
                records=records,
                title=place.path.name,
                evaluate=evaluation,
                checkpoints=checkpoints,
            )
    return _result(cfg, place, run, state, evaluation.last or evaluation(state), began)


def _run_together(cfgs: Sequence[PretrainConfig], places: Sequence[Workdir], run: Run) -> list[dict[str, Any]]:
    began = time.monotonic()
    cfg, program, many, data, count = cfgs[0], run.program, run.population, run.data, len(cfgs)
    assert many is not None
    batches = data.iterator(0, prefetch=4)
    evaluation = _Evaluation(cfg, run, many, partial(repeat, members=count))
    plans = [prune_plan(one) for one in cfgs]
    for one, place in zip(cfgs, places, strict=True):
        place.write("run.json", environment_json(seed=one.seed, mesh=dict(program.mesh.shape)))
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(Checkpoints(place.path, keep=cfg.train.keep)) for place in places]
        found = restored(checkpoints, program, many)
        if found is None:
            step, states = 0, placed(many, stack_trees([jax.device_get(_first_state(one, program)) for one in cfgs]))
        else:
            step, states, positions = found
            batches.set_state(_checked(positions[0], cfg, data))
        records = [stack.enter_context(Records(place, step=step)) for place in places]
        states = _fit(
            cfg,
            run,
            many,
            states,
            SameBatches(_Positions(batches, data.fingerprint), count),
            key=jnp.stack([jax.random.fold_in(jax.random.key(cfg.seed), 1)] * count),
            plan={at: [plan[at] for plan in plans] for at in plans[0]},
            records=MemberRecords(records),
            title=f"{count} x {places[0].path.name} ...",
            evaluate=evaluation,
            checkpoints=MemberCheckpoints(checkpoints),
        )
    last = evaluation.last or evaluation(states)
    results = []
    for i, (one, place) in enumerate(zip(cfgs, places, strict=True)):
        state = placed(program, jax.device_get(member(states, i)))
        dev = {name: float(values[i]) for name, values in last.items()}
        results.append(_result(one, place, run, state, dev, began))
    return results


def _fit(cfg: PretrainConfig, run: Run, program: Program, state: TrainState, batches: Any, **rest: Any) -> TrainState:
    return fit(
        state,
        batches,
        steps=cfg.steps,
        train_step=program.train,
        prune_step=program.prune,
        put=program.put,
        terms=_terms(run),
        cfg=cfg.train,
        learning_rate=learning_rate_at(cfg.optimizer, cfg.steps, cfg.optimizer.learning_rate),
        tokens_per_step=cfg.batch_size * run.data.seq_len,
        **rest,
    )


def _terms(run: Run) -> tuple[str, ...]:
    return ("mlm", "nsp") if run.data.next_sentence else ("mlm",)


def _checked(position: dict[str, Any], cfg: PretrainConfig, data: PretrainData) -> dict[str, Any]:
    """A position in the data without the fingerprint it was saved with, which must be that of `data`."""
    if position.pop("fingerprint") != data.fingerprint:
        raise ValueError(f"data.path = {cfg.data.path}: changed since this run began; put the old data back")
    return position


def _result(
    cfg: PretrainConfig, place: Workdir, run: Run, state: TrainState, dev: dict[str, float], began: float
) -> dict[str, Any]:
    """Write the Hugging Face directory of a finished run; what goes into its result.json."""
    params = whole(jax.jit(apply_masks)(state.params, state.masks))
    if place.owner:
        save_hf(place / "hf", cfg.model, params, head="pretraining", tokenizer=_tokenizer(cfg))
    return {
        "steps": cfg.steps,
        "tokens": cfg.steps * cfg.batch_size * run.data.seq_len,
        "sparsity": sparsity(state.masks),
        "dev": dev,
        "seconds_this_session": time.monotonic() - began,
    }


class _Evaluation:
    """state -> means over the dev split; `last` is what it found last."""

    def __init__(self, cfg: PretrainConfig, run: Run, program: Program, shape: Callable[[Any], Any]):
        self._batches, self._run, self._program, self._shape = cfg.train.eval_batches, run, program, shape
        self.last: dict[str, Any] = {}

    def __call__(self, state: TrainState) -> dict[str, Any]:
        batches = (self._program.put(self._shape(batch)) for batch in self._run.dev.eval_batches(self._batches))
        self.last = means(evaluate_all(self._program, state, batches), _terms(self._run))
        return self.last


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
