"""Fine-tuning runs of one task and model shape: they share compiled steps, and may train together."""

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxprune.config import FinetuneConfig, ModelConfig, OptimizerConfig
from jaxprune.config.load import changes, to_yaml
from jaxprune.data import glue
from jaxprune.data.metrics import score
from jaxprune.experiments.environment import environment_json
from jaxprune.experiments.start import WEIGHTS, Start
from jaxprune.models.bert import bert
from jaxprune.models.losses import classification_loss, regression_loss
from jaxprune.pruning import apply_masks, sparsity
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import Program, compile_steps, evaluate_all, placed
from jaxprune.training.loop import fit
from jaxprune.training.optimizer import adamw, learning_rate_at, with_peak_rate
from jaxprune.training.population import (
    MemberBatches,
    MemberCheckpoints,
    MemberRecords,
    compile_population,
    in_workdirs,
    member,
    restored,
)
from jaxprune.training.population import stack as stack_trees
from jaxprune.training.processes import whole
from jaxprune.training.prunes import plan_of
from jaxprune.training.records import Records
from jaxprune.training.sharding import everywhere, make_mesh, within
from jaxprune.training.state import TrainState
from jaxprune.training.steps import means
from jaxprune.training.workdir import Workdir, owned_workdir

config_changes = functools.partial(changes, FinetuneConfig)
"""(old, new) YAML -> what differs between two fine-tuning configs, as `owned_workdir` asks."""


class Splits(NamedTuple):
    """One task's encoded splits."""

    train: glue.Encoded
    dev: glue.Encoded


def schedule(cfg: FinetuneConfig, steps: int) -> OptimizerConfig:
    """The optimizer of a run of `steps` steps, with its warm-up and the shape of its learning rate."""
    if not cfg.sawtooth:
        return cfg.optimizer.model_copy(update={"warmup_steps": round(cfg.warmup_fraction * steps)})
    epoch = steps // cfg.epochs
    warmup = 0 if cfg.epochs_before else round(cfg.warmup_fraction * epoch)
    teeth = {"decay": "sawtooth", "period": epoch, "offset": epoch * cfg.epochs_before}
    return cfg.optimizer.model_copy(update=teeth | {"warmup_steps": warmup})


def shared_part(cfg: FinetuneConfig) -> FinetuneConfig:
    """`cfg` without what is data to the compiled steps: runs that agree in the rest, and in shape, share a Trainer."""
    free = ("init_from", "init_revision", "masks", "learning_rates", "seeds", "keep_weights")
    default = FinetuneConfig()
    prune = cfg.prune.model_copy(update={"sparsity": 0.0, "initial": 0.0})
    return cfg.model_copy(update={name: getattr(default, name) for name in free} | {"prune": prune})


class Trainer:
    """Runs of one task and model shape, whose configs have the same `shared_part`; they share compiled steps."""

    def __init__(self, cfg: FinetuneConfig, model: ModelConfig, row: glue.Task, splits: Splits):
        self.cfg, self.row, self.splits = cfg, row, splits
        self.steps = cfg.epochs * -(-len(splits.train) // cfg.batch_size)
        self.optimizer = schedule(cfg, self.steps)
        if cfg.prune.sparsity > 0 and cfg.prune.end > self.steps:
            raise ValueError(f"prune.end = {cfg.prune.end} lies after the {self.steps} steps of {row.name}")
        head, labels = ("regression", 0) if row.regression else ("classification", row.num_labels)
        self.terms = (head,)
        self.model = bert(model, head=head, num_labels=labels)
        self._programs: dict[Any, Program] = {}
        self._mesh = make_mesh(cfg.mesh)
        self._predict = jax.jit(
            lambda state, batch: self.model.apply(apply_masks(state.params, state.masks), batch)["logits"],
            out_shardings=everywhere(self._mesh),
        )
        self._init_classifier = jax.jit(lambda key: self.model.init(key)["classifier"])
        self._heads = model.num_attention_heads

    def run(self, workdir: Path, source: Start, cfg: FinetuneConfig) -> dict[str, Any]:
        """Train `cfg` (see `one_run`) from `source`, score the dev set, save predictions; returns its result.json.

        Resumes a run that was begun, and leaves a finished one alone.
        """
        with owned_workdir(workdir, to_yaml(cfg), config_changes) as place:
            result = place.result()
            if result is not None:
                return result
            with within(self._mesh):
                result = self._run(place, source, cfg)
            _finish(place, result)
            return result

    def weights(self, source: Start, key: jax.Array) -> tuple[Any, Any]:
        """Params and masks of `source` with the classifier it brings, else one drawn from `key`."""
        params, masks = source.params, source.masks
        if "classifier" not in params:
            params = {**params, "classifier": self._init_classifier(key)}
        return params, {**masks, "classifier": jax.tree.map(lambda _: None, params["classifier"])}

    def program(self, params: Any, masks: Any) -> Program:
        """The steps for masks of this structure, built once."""
        return self._compiled(compile_steps, params, masks)

    def _compiled(self, compiler: Callable[..., Program], params: Any, masks: Any) -> Program:
        key = (compiler, jax.tree.structure(masks), jax.tree.leaves(params)[0].shape)
        if key not in self._programs:
            loss = regression_loss if self.row.regression else classification_loss
            self._programs[key] = compiler(
                params,
                masks,
                self._mesh,
                loss_fn=loss(self.model.apply),
                tx=adamw(self.optimizer, self.steps),
                prune=self.cfg.prune,
                num_heads=self._heads,
                accumulate=self.cfg.train.accumulate,
            )
        return self._programs[key]

    def run_together(self, runs: Sequence[tuple[Path, Start, FinetuneConfig]]) -> list[dict[str, Any]]:
        """`run` for several runs as one population; each workdir ends as if it had run alone.

        They must have the same `group`. Runs that were interrupted at different steps go on one by one.
        """

        def train(places: list[Workdir]) -> list[dict[str, Any]]:
            with within(self._mesh):
                members = zip(places, runs, strict=True)
                return self._run_together([_Member(place, source, cfg) for place, (_, source, cfg) in members])

        results = in_workdirs([(path, to_yaml(cfg)) for path, _, cfg in runs], config_changes, train, _finish)
        return results or [self.run(*run) for run in runs]

    def group(self, source: Start, cfg: FinetuneConfig) -> Any:
        """Equal for runs that can train as one population: masks on the same matrices, cut at the same steps."""
        return jax.tree.structure(source.masks), tuple(plan_of(cfg.prune, self.steps))

    def _run(self, place: Workdir, source: Start, cfg: FinetuneConfig) -> dict[str, Any]:
        began = time.monotonic()
        rate, seed = cfg.learning_rates[0], cfg.seeds[0]
        key = jax.random.key(seed)
        params, masks = self.weights(source, key)
        program = self.program(params, masks)
        batches = iter(glue.GlueData(self.splits.train, self.cfg.batch_size, seed))
        place.write("run.json", environment_json(seed=seed, mesh=dict(program.mesh.shape)))
        with Checkpoints(place.path, keep=1) as checkpoints:
            found = checkpoints.restore(program.abstract)
            if found is None:
                step, state = 0, program.init(params, masks)
                state = state._replace(opt_state=with_peak_rate(state.opt_state, rate))
            else:
                step, state, position = found
                batches.set_state(position)
            with Records(place, step=step) as records:
                state = self._fit(
                    program,
                    state,
                    batches,
                    key=jax.random.fold_in(key, 1),
                    plan=plan_of(cfg.prune, self.steps),
                    records=records,
                    title=f"{self.row.name} lr {rate:g} seed {seed}",
                    learning_rate=learning_rate_at(self.optimizer, self.steps, rate),
                    checkpoints=checkpoints,
                )
        return self._result(place, program, state, cfg, began)

    def _run_together(self, members: Sequence["_Member"]) -> list[dict[str, Any]]:
        began = time.monotonic()
        keys = [jax.random.key(m.cfg.seeds[0]) for m in members]
        rates = np.array([m.cfg.learning_rates[0] for m in members], np.float32)
        weights = [jax.device_get(self.weights(m.source, key)) for m, key in zip(members, keys, strict=True)]
        program = self.program(*weights[0])
        params, masks = (stack_trees(parts) for parts in zip(*weights, strict=True))
        many = self._compiled(compile_population, params, masks)
        data = [iter(glue.GlueData(self.splits.train, self.cfg.batch_size, m.cfg.seeds[0])) for m in members]
        plans = [plan_of(m.cfg.prune, self.steps) for m in members]
        for m in members:
            m.place.write("run.json", environment_json(seed=m.cfg.seeds[0], mesh=dict(program.mesh.shape)))
        with ExitStack() as stack:
            checkpoints = [stack.enter_context(Checkpoints(m.place.path, keep=1)) for m in members]
            found = restored(checkpoints, program, many)
            if found is None:
                step, states = 0, many.init(params, masks)
                states = states._replace(opt_state=with_peak_rate(states.opt_state, rates))
            else:
                step, states, positions = found
                for batches, position in zip(data, positions, strict=True):
                    batches.set_state(position)
            records = [stack.enter_context(Records(m.place, step=step)) for m in members]
            curve = learning_rate_at(self.optimizer, self.steps, 1.0)
            states = self._fit(
                many,
                states,
                MemberBatches(data),
                key=jax.vmap(lambda key: jax.random.fold_in(key, 1))(jnp.stack(keys)),
                plan={at: [plan[at] for plan in plans] for at in plans[0]},
                records=MemberRecords(records),
                title=f"{len(members)} x {self.row.name}",
                learning_rate=lambda at: rates * curve(at),
                checkpoints=MemberCheckpoints(checkpoints),
            )
        ends = [placed(program, jax.device_get(member(states, i))) for i in range(len(members))]
        return [self._result(m.place, program, end, m.cfg, began) for m, end in zip(members, ends, strict=True)]

    def _fit(self, program: Program, state: TrainState, batches: Any, **rest: Any) -> TrainState:
        return fit(
            state,
            batches,
            steps=self.steps,
            train_step=program.train,
            prune_step=program.prune,
            put=program.put_whole,
            terms=self.terms,
            cfg=self.cfg.train,
            tokens_per_step=self.cfg.batch_size * self.splits.train.input_ids.shape[1],
            **rest,
        )

    def _result(
        self, place: Workdir, program: Program, state: TrainState, cfg: FinetuneConfig, began: float
    ) -> dict[str, Any]:
        if cfg.keep_weights:
            _save_weights(place, state)
        return {
            "task": self.row.name,
            "learning_rate": cfg.learning_rates[0],
            "seed": cfg.seeds[0],
            "masks": cfg.masks,
            "sparsity": sparsity(state.masks),
            **self._score(place, program, state),
            "train_loss": self._train_loss(program, state),
            "train_examples": len(self.splits.train),
            "dev_examples": len(self.splits.dev),
            "steps": self.steps,
            "seconds_this_session": time.monotonic() - began,
        }

    def _score(self, place: Workdir, program: Program, state: TrainState) -> dict[str, Any]:
        logits = []
        for batch in glue.eval_batches(self.splits.dev, self.cfg.batch_size):
            real = batch["example_weights"] > 0
            logits.append(np.asarray(self._predict(state, program.put_whole(batch)))[real])
        predictions = np.concatenate(logits)
        if place.owner:
            np.savez(place / "dev_predictions.npz", logits=predictions, labels=self.splits.dev.labels)
        values = score(self.row, predictions, self.splits.dev.labels)
        return {"metric": self.row.metric, "score": values[self.row.metric], **values}

    def _train_loss(self, program: Program, state: TrainState) -> float:
        """Mean over the whole training set without dropout, as the paper reports it."""
        batches = map(program.put_whole, glue.eval_batches(self.splits.train, self.cfg.batch_size))
        return means(evaluate_all(program, state, batches), self.terms)["loss"]


class _Member(NamedTuple):
    """One run of a population."""

    place: Workdir
    source: Start
    cfg: FinetuneConfig


def _finish(place: Workdir, result: dict[str, Any]) -> None:
    place.finish(result)
    if place.owner:
        for name in ("checkpoints", "integrity"):  # the result is what counts; a study has hundreds of these
            shutil.rmtree(place / name)


def _save_weights(place: Workdir, state: TrainState) -> None:
    flat: dict[str, Any] = flatten_dict(whole(jax.jit(apply_masks)(state.params, state.masks)), sep="/")
    if place.owner:
        temporary = place / "weights.tmp.npz"
        np.savez(temporary, allow_pickle=False, **flat)
        temporary.replace(place / WEIGHTS)
