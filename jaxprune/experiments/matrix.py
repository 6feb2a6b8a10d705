"""The matrix of a study: its config -> the list of its runs, ancestors first."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.config.commands import FinetuneConfig, PretrainConfig
from jaxprune.config.load import overlaid
from jaxprune.config.sections import ModelConfig, PruneConfig
from jaxprune.config.study import StudyConfig, SwitchConfig, TaskConfig
from jaxprune.errors import UserError
from jaxprune.experiments.pruning_plan import check_untrained
from jaxprune.experiments.weights import shallower, shaped, source_model, stored_config

NO_SWITCH = SwitchConfig()
CUT = ("amounts", "scope", "distribution", "structure", "criterion", "method", "include", "exclude")
"""What to prune and how; the rest of a PruneConfig is how far and when."""


class Job(NamedTuple):
    """One run of a study, an ordinary workdir at `path` under `runs/`."""

    path: str
    cfg: PretrainConfig | FinetuneConfig
    needs: tuple[str, ...] = ()
    """Paths of the runs it starts from, all of them."""
    group: str = ""
    """What a shard takes as a whole: the last ancestor that few others share."""
    round: int = 0
    """Place of its seed among its task's; one round of everything runs after the other."""

    @property
    def pretrains(self) -> bool:
        """Whether it is a pre-training run; else it fine-tunes one task, learning rate and seed."""
        return isinstance(self.cfg, PretrainConfig)

    @property
    def shape(self) -> str:
        """Equal for runs that differ in their seeds and starts alone: what is right with one is with all, and they take
        as long."""
        return self.cfg.model_dump_json(exclude={"init_from", "seed", "seeds"})

    def from_scratch(self, model: ModelConfig) -> PretrainConfig | FinetuneConfig:
        """Its config for a model of this shape whose weights may not exist yet."""
        scratch = {"model": model, "init_from": ""} | ({"layers": ()} if self.pretrains else {})
        return self.cfg.model_copy(update=scratch)


def matrix(cfg: StudyConfig, runs: Path) -> list[Job]:
    """Every run of `cfg` with its workdir under `runs`, each after the runs it needs; the same list every time.

    Breadth first: one seed of everything, then the second, ...; whatever is finished makes balanced tables.
    """
    jobs: dict[str, Job] = {}
    if not cfg.dense:
        jobs["dense"] = Job("dense", _on_data(cfg, cfg.dense_run), group="dense")
    for job in _jobs(cfg, runs):
        jobs.setdefault(job.path, job)
    first = {path: job.round for path, job in jobs.items()}
    for job in jobs.values():
        for need in job.needs:
            first[need] = min(first[need], job.round)
    return sorted((job._replace(round=first[job.path]) for job in jobs.values()), key=lambda job: job.round)


def models_of(jobs: list[Job], runs: Path) -> dict[str, ModelConfig]:
    """Path of a run -> the shape that it will have, though what it starts from may not exist yet."""
    models: dict[str, ModelConfig] = {}
    shape_of = cache(source_model)
    inside: dict[str, ModelConfig] = {}
    for job in jobs:
        model, source = job.cfg.model, job.cfg.init_from
        try:
            if source and source not in inside and (begun := stored_config(runs / job.path)):
                model = begun.model  # it goes on without what it began from, which may be gone
            elif source:
                shape = inside[source] if source in inside else shape_of(source, job.cfg.init_revision)
                layers = job.cfg.layers if isinstance(job.cfg, PretrainConfig) else ()
                model = shaped(model, shallower(shape, layers, source), source)
        except UserError as error:
            raise UserError(f"{job.path}: {error}") from None
        models[job.path] = inside[str(runs / job.path)] = model
    return models


def _jobs(cfg: StudyConfig, runs: Path) -> Iterator[Job]:
    conditions = cfg.conditions
    for sparsity in sorted({*conditions.pruned.sparsities, *conditions.information_deletion.sparsities}):
        for condition in ("pruned", "information_deletion"):
            if sparsity in getattr(conditions, condition).sparsities:
                yield from _pruned_before(cfg, runs, condition, "pruned", sparsity, NO_SWITCH)
    for sparsity in conditions.after_finetuning.sparsities:
        yield from _pruned_after(cfg, runs, "dense", sparsity, NO_SWITCH)
    for sparsity in conditions.random.sparsities:
        if not _is_pruned_at_zero(cfg, sparsity):
            yield from _pruned_before(cfg, runs, "random", "random", sparsity, NO_SWITCH)
    for name, switch in cfg.switches.items():
        for sparsity in switch.sparsities or (cfg.switch_sparsity,):
            if switch.condition == "after_finetuning":
                yield from _pruned_after(cfg, runs, name, sparsity, switch)
            else:
                yield from _pruned_before(cfg, runs, switch.condition, name, sparsity, switch)


def _is_pruned_at_zero(cfg: StudyConfig, sparsity: float) -> bool:
    """Whether a random run is the same as a pruned one, since neither prunes anything."""
    if sparsity > 0 or 0 not in cfg.conditions.pruned.sparsities:
        return False
    random, pruned = (cfg.arm(name, NO_SWITCH, name) for name in ("random", "pruned"))
    if any((random[0].prune.amounts | pruned[0].prune.amounts).values()):
        return False
    return (random[0].model_copy(update={"prune": pruned[0].prune}), random[1]) == pruned


def _pruned_before(
    cfg: StudyConfig, runs: Path, condition: str, variant: str, sparsity: float, switch: SwitchConfig
) -> Iterator[Job]:
    """The pre-training runs and the fine-tuning runs of a condition that prunes while it pre-trains.

    Information deletion starts from the runs of `pruned`, and a switch of fine-tuning alone from its condition's.
    """
    base = "random" if condition == "random" else "pruned"
    recover, finetune = cfg.arm(base, switch, variant)[0], cfg.arm(condition, switch, variant)[1]
    name = f"{variant}-s{sparsity:g}"
    own = name if switch.recover else f"{base}-s{sparsity:g}"
    replicated = sparsity in (switch if switch.recover else getattr(cfg.conditions, base)).replicated
    start = recover.init_from if recover.init_from and condition != "random" else cfg.dense or str(runs / "dense")
    changes = {"init_from": start, "prune": {"sparsity": sparsity} | ({"initial": 0.0} if sparsity == 0 else {})}
    needs, scored = ("dense",) if start == str(runs / "dense") else (), set()
    masks = "lifted" if condition == "information_deletion" else "fixed"
    for task, tuned, rate, seed, number in _grid(cfg, condition, finetune, switch):
        again = replicated and seed != recover.seed
        path = f"pretrain/{own}-seed{seed}" if again else f"pretrain/{own}"
        seeded = changes | {"seed": seed} if again else changes
        yield Job(path, _on_data(cfg, overlaid(recover, seeded, path)), needs, path, number)
        if not tuned.epochs and (condition == "information_deletion" or (path, task.name) in scored):
            continue  # nothing trains: masks that are lifted, or another seed, change nothing
        scored.add((path, task.name))
        one = _single(cfg, task, tuned, rate, seed) | {"init_from": str(runs / path), "masks": masks}
        folder = f"finetune/{condition}/{name}/{task.name}/{_leaf(rate, seed)}"
        yield Job(folder, overlaid(tuned, one, folder), (*needs, path), path, number)


def _pruned_after(cfg: StudyConfig, runs: Path, variant: str, sparsity: float, switch: SwitchConfig) -> Iterator[Job]:
    """Runs that fine-tune the dense start, shared by all sparsities, and runs that prune those and go on.

    A task of no epochs scores the dense start, and that pruned in one shot: what a cut costs before any recovery.
    """
    recover, finetune = cfg.arm("after_finetuning", switch, variant)
    first, shared = cfg.before(switch, variant), f"dense/{variant}" if switch.before else "dense"
    dense, scored = cfg.dense or str(runs / "dense"), set()
    needs = () if cfg.dense else ("dense",)
    where = "conditions.after_finetuning" if switch is NO_SWITCH else f"switches.{variant}"
    for task, after, rate, seed, number in _grid(cfg, "after_finetuning", finetune, switch):
        tuned = cfg.of_task(first, task)
        if not (after.epochs or tuned.epochs) and task.name in scored:
            continue
        scored.add(task.name)
        before = f"finetune/{shared}/{task.name}/{_leaf(rate, seed)}"
        one = _single(cfg, task, tuned, rate, seed) | {"masks": "fixed", "keep_weights": True}
        yield Job(before, overlaid(tuned, one | {"init_from": dense}, before), needs, before, number)
        folder = f"finetune/after_finetuning/{variant}-s{sparsity:g}/{task.name}/{_leaf(rate, seed)}"
        cut = {"sparsity": sparsity, **_cut(recover.prune, after.prune, where)}
        one = _single(cfg, task, after, rate, seed) | {"init_from": str(runs / before), "masks": "fixed", "prune": cut}
        if after.sawtooth:
            one["epochs_before"] = tuned.epochs
        yield Job(folder, overlaid(after, one, folder), (*needs, before), before, number)


def _cut(recover: PruneConfig, after: PruneConfig, where: str) -> dict[str, Any]:
    """The settings by which a cut after fine-tuning prunes: those of `recover.prune`.

    UserError, under the key `where`, for others in `finetune.prune`, and for a criterion that needs steps before the
    cut.
    """
    for key in CUT:
        ours, theirs = getattr(recover, key), getattr(after, key)
        if theirs not in (ours, PruneConfig.model_fields[key].default):
            raise UserError(
                f"{where}: finetune.prune.{key} = {theirs}, but the cut is made by recover.prune.{key} = {ours}; "
                "set the latter alone"
            )
    if after.begin == 0:
        why = f"{where} cuts before the first; in {where}.recover.prune.criterion"
        check_untrained("recover.prune.criterion", recover.criterion, why)
    return {key: getattr(recover, key) for key in CUT}


def _grid(
    cfg: StudyConfig, condition: str, finetune: FinetuneConfig, switch: SwitchConfig
) -> Iterator[tuple[TaskConfig, FinetuneConfig, float, int, int]]:
    """(task, `finetune` as it has it, learning rate, seed, place of the seed among the task's)."""
    beside = switch is not NO_SWITCH
    wanted = cfg.tasks_of(condition, switch if beside else None)
    most = (switch.seeds or cfg.switch_seeds or None) if beside else None
    for task in cfg.tasks:
        if wanted and task.name not in wanted:
            continue
        tuned = cfg.of_task(finetune, task)
        for rate in tuned.learning_rates:
            for number, seed in enumerate(task.seeds[:most]):
                yield task, tuned, rate, seed, number


def _single(cfg: StudyConfig, task: TaskConfig, tuned: FinetuneConfig, rate: float, seed: int) -> dict[str, object]:
    grid: dict[str, object] = {"tasks": (task.entry,), "learning_rates": (rate,), "seeds": (seed,), **task.limits}
    return grid | {"keep_weights": cfg.keep_weights, "train_loss": tuned.epochs > 0}


def _leaf(rate: float, seed: int) -> str:
    return f"lr{rate:g}-seed{seed}"


def _on_data(cfg: StudyConfig, run: PretrainConfig) -> PretrainConfig:
    return run.model_copy(update={"data": run.data.model_copy(update={"path": cfg.data})})


def shard(jobs: list[Job], index: int, count: int) -> list[Job]:
    """The part `index` (1 to `count`) of `jobs`: every count-th group, with all runs that it needs."""
    groups = [*dict.fromkeys(job.group for job in jobs)]
    mine = {*groups[index - 1 :: count]}
    return with_ancestors(jobs, {job.path for job in jobs if job.group in mine})


def with_ancestors(jobs: list[Job], paths: set[str]) -> list[Job]:
    """The jobs at `paths` and all that they need, in the order of `jobs`."""
    needed = paths | {need for job in jobs if job.path in paths for need in job.needs}
    return [job for job in jobs if job.path in needed]
