"""What the runs of a study share in one process, and running them: one by one, or several as one program."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxprune.config import FinetuneConfig, ModelConfig, PretrainConfig, PruneConfig, StudyConfig
from jaxprune.data import glue, tokenizer
from jaxprune.experiments import finetune, pretrain
from jaxprune.experiments.conditions import Job
from jaxprune.experiments.start import Start
from jaxprune.experiments.trainer import Splits, Trainer, shared_part
from jaxprune.training.loop import Diverged

log = logging.getLogger("jaxprune")


def is_finished(place: Path) -> bool:
    """Whether the run in this workdir wrote its result."""
    return (place / "result.json").is_file()


def program_key(cfg: PretrainConfig) -> str:
    """Equal for resolved runs that share compiled steps: they differ in start and plan alone."""
    keep = ("scope", "criterion", "method", "mode", "include", "exclude")
    prune = PruneConfig().model_copy(update={name: getattr(cfg.prune, name) for name in keep})
    return cfg.model_copy(update={"init_from": "", "prune": prune}).model_dump_json()


def trainer_key(cfg: FinetuneConfig, model: ModelConfig) -> str:
    """Equal for single fine-tuning runs that share compiled steps, but for masks that are there or not."""
    return shared_part(cfg).model_dump_json() + model.model_dump_json()


class Shared:
    """The vocabulary, encoded tasks, compiled steps and last weights that runs of a study share in one process."""

    def __init__(self, cfg: StudyConfig):
        place = cfg.finetune.tokenizer or str(Path(cfg.data) / "tokenizer")
        self.vocabulary = tokenizer.load(place, "")
        self._splits: dict[Any, Splits] = {}
        self._programs: dict[str, pretrain.Run] = {}
        self._trainers: dict[str, Trainer] = {}
        self._sources: dict[Any, Start] = {}
        self.population = cfg.population
        self._alone = set[str]()
        for task in cfg.tasks:  # what is wrong with the data is said now, not after hours
            self.splits(cfg.finetune.model_copy(update={"tasks": (task.name,), **task.limits}))

    def run(self, job: Job, runs: Path, others: Sequence[Job] = ()) -> str:
        """Run a job to its end, or resume it; returns its result in a few words.

        In a study with `population` > 1, it takes along so many of `others` as make it a full one. When a member
        diverges, each goes on by itself from where it was saved, so that the good ones are not lost.
        """
        if isinstance(job.cfg, PretrainConfig):
            result = self._pretrain(job.cfg, job, self._ready(job, others, runs), runs)
            return f"dev loss {result['dev']['loss']:.3f}, sparsity {result['sparsity']:.3f}"
        result = self._finetune(job.cfg, job, self._ready(job, others, runs), runs)
        return f"{result['metric']} {result['score']:.3f}, {result['seconds_this_session']:.0f} s"

    def _ready(self, job: Job, others: Sequence[Job], runs: Path) -> list[Job]:
        """`others` that could be members of a population with `job`, as far as can be said without their weights."""
        if self.population == 1 or job.path in self._alone:
            return []
        return [
            other
            for other in others
            if other.path != job.path
            and other.path not in self._alone
            and other.pretrains == job.pretrains
            and not is_finished(runs / other.path)
            and all(is_finished(runs / need) for need in other.needs)
        ]

    def _pretrain(self, cfg: PretrainConfig, job: Job, ready: Sequence[Job], runs: Path) -> dict[str, Any]:
        cfg = pretrain.resolve(cfg)
        run, plan = self.program(cfg), [*pretrain.prune_plan(cfg)]
        members = [(cfg, runs / job.path)]
        for other in ready:
            if isinstance(other.cfg, PretrainConfig) and len(members) < self.population:
                found = pretrain.resolve(other.cfg)
                if program_key(found) == program_key(cfg) and [*pretrain.prune_plan(found)] == plan:
                    members.append((found, runs / other.path))
        results = self._together(lambda: pretrain.pretrain_together(members, run), [path for _, path in members], runs)
        return results[0] if results else pretrain.pretrain_in(cfg, runs / job.path, run)

    def _finetune(self, cfg: FinetuneConfig, job: Job, ready: Sequence[Job], runs: Path) -> dict[str, Any]:
        trainer, members = self.tuned_together(cfg, job, ready, runs)
        results = self._together(lambda: trainer.run_together(members), [path for path, *_ in members], runs)
        return results[0] if results else trainer.run(*members[0])

    def tuned_together(
        self, cfg: FinetuneConfig, job: Job, ready: Sequence[Job], runs: Path
    ) -> tuple[Trainer, list[tuple[Path, Start, FinetuneConfig]]]:
        """The Trainer of a fine-tuning job of config `cfg`, and the job with those of `ready` that it can train too."""
        model = finetune.model_config(cfg)
        trainer, source = self.trainer(cfg, model), self._start(cfg, model)
        members = [(runs / job.path, source, cfg)]
        for other in ready:
            if isinstance(other.cfg, FinetuneConfig) and other.cfg.tasks == cfg.tasks:
                shape = finetune.model_config(other.cfg)
                if len(members) < self.population and trainer_key(other.cfg, shape) == trainer_key(cfg, model):
                    found = self._start(other.cfg, shape)
                    if trainer.group(found, other.cfg) == trainer.group(source, cfg):
                        members.append((runs / other.path, found, other.cfg))
        return trainer, members

    def _together(
        self, train: Callable[[], list[dict[str, Any]]], places: Sequence[Path], runs: Path
    ) -> list[dict[str, Any]]:
        """What `train` returns for a full population; nothing for another, or when a member diverged."""
        if self.population == 1 or len(places) < self.population:
            return []
        names = [str(place.relative_to(runs)) for place in places]
        try:
            results = train()
        except Diverged as error:
            log.warning("one of %s: %s; they go on one by one", ", ".join(names), error)
            self._alone.update(names)
            return []
        log.info("%d runs trained together: %s", len(names), ", ".join(names))
        return results

    def program(self, cfg: PretrainConfig) -> pretrain.Run:
        """The compiled steps and data of a resolved run."""
        key = program_key(cfg)
        if key not in self._programs:
            self._programs[key] = pretrain.compile_run(cfg, members=self.population if self.population > 1 else 0)
        return self._programs[key]

    def splits(self, cfg: FinetuneConfig) -> Splits:
        """The encoded data of a single-task config, read once."""
        key = (cfg.tasks, cfg.glue, cfg.revision, cfg.max_len, cfg.max_train_examples, cfg.max_dev_examples)
        if key not in self._splits:
            self._splits[key] = finetune.read_splits(cfg, cfg.tasks[0], self.vocabulary)
        return self._splits[key]

    def trainer(self, cfg: FinetuneConfig, model: ModelConfig) -> Trainer:
        """The Trainer of a single-run config, for a model of this shape."""
        key = trainer_key(cfg, model)
        if key not in self._trainers:
            self._trainers[key] = Trainer(shared_part(cfg), model, glue.task(cfg.tasks[0]), self.splits(cfg))
        return self._trainers[key]

    def _start(self, cfg: FinetuneConfig, model: ModelConfig) -> Start:
        key = (cfg.init_from, cfg.init_revision, cfg.masks, cfg.prune.include, cfg.prune.exclude)
        if key not in self._sources:
            while len(self._sources) >= self.population:  # weights of the runs in hand, and no more
                del self._sources[next(iter(self._sources))]
            self._sources[key] = finetune.pretrained(cfg, model)
        return self._sources[key]
