"""The study: conditions x sparsities x tasks x learning rates x seeds, and switches, in one YAML file."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from jaxprune.config.commands import FinetuneConfig, PretrainConfig
from jaxprune.config.load import of_percent, overlaid
from jaxprune.config.sections import PruneConfig, Section
from jaxprune.config.task import OwnTaskConfig, TaskEntry

Condition = Literal["pruned", "information_deletion", "after_finetuning", "random"]
_LIMITS = ("max_train_examples", "max_dev_examples", "max_len")
_OF_RUNS = ("tasks", "seeds", "masks", "init_from", "keep_weights", "train_loss")
"""Keys of `finetune` that a study sets for each run."""
_PARTS = ("finetune", "before")
"""What of an arm is laid over `finetune`."""


class TaskConfig(Section):
    """One task of a study: GLUE's, or one of your own."""

    name: str = ""
    """GLUE's name; a task of your own brings its own."""
    own: OwnTaskConfig | None = None
    """A task of your own, as in `finetune`'s `tasks`: its files, columns and labels; null for one of GLUE."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the classifier's start, order and dropout; each is a run."""
    max_train_examples: int | None = Field(default=None, ge=0)
    """Use only so many training examples, 0 all; none takes `finetune.max_train_examples`."""
    max_dev_examples: int | None = Field(default=None, ge=0)
    """Use only so many dev examples, 0 all; none takes `finetune.max_dev_examples`."""
    max_len: int | None = Field(default=None, ge=8)
    """Tokens per example, for a task of short texts; none takes `finetune.max_len`."""
    finetune: dict[str, Any] = Field(default={})
    """Keys laid over every `finetune` of this task, last of all; `epochs: 0` scores each start as it is, once."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        own = values.get("own") if isinstance(values, dict) else None
        return {"name": own["name"]} | values if isinstance(own, dict) and "name" in own else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.name:
            raise ValueError("name: missing; give a GLUE task's, or describe your own task under own")
        if self.own and self.own.name != self.name:
            raise ValueError(f"name = {self.name}, but own.name = {self.own.name}; remove name")
        return self

    @property
    def entry(self) -> TaskEntry:
        """The task as `finetune` takes it."""
        return self.own or self.name

    @property
    def limits(self) -> dict[str, int]:
        """The keys of `finetune` that this task sets."""
        return self.model_dump(include={*_LIMITS}, exclude_none=True)


class ArmConfig(Section):
    """One condition of the paper."""

    sparsities: tuple[float, ...] = ()
    """Final fractions in [0, 1] of the prunable weights that are pruned; none leaves the condition out."""
    replicated: tuple[float, ...] = ()
    """Those of `sparsities` that are pre-trained once per fine-tuning seed, with that seed: chance in pre-training is
    then in their scores. The others are pre-trained once, by the seed of `recover`, which all their scores share."""
    recover: dict[str, Any] = Field(default={})
    """Keys laid over the study's `recover`."""
    finetune: dict[str, Any] = Field(default={})
    """Keys laid over the study's `finetune`; for `after_finetuning`, of the part after the cut."""
    before: dict[str, Any] = Field(default={})
    """Keys laid over the study's `finetune` for the part before the cut; for `after_finetuning` alone."""
    tasks: tuple[str, ...] = ()
    """Its tasks; none stands for all, and in a switch for `switch_tasks` or else those of its condition."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for sparsity in self.sparsities:
            if not 0 <= sparsity <= 1:
                raise ValueError(f"sparsities: {sparsity} is no fraction in [0, 1]{of_percent(sparsity)}")
        if len({*self.sparsities}) < len(self.sparsities):
            raise ValueError(f"sparsities: {list(self.sparsities)} has one twice; remove it")
        for sparsity in self.replicated:
            if self.sparsities and sparsity not in self.sparsities:
                raise ValueError(f"replicated: {sparsity} is none of the sparsities {list(self.sparsities)}")
        return self


class ConditionsConfig(Section):
    """The four conditions of the paper (its section 4), all from one dense start."""

    pruned: ArmConfig = ArmConfig()
    """Pruned while pre-training goes on, then recovered; masks stay while fine-tuning."""
    information_deletion: ArmConfig = ArmConfig()
    """The same pruned weights, but their masks are lifted before fine-tuning: what is lost is what they held."""
    after_finetuning: ArmConfig = ArmConfig()
    """Fine-tuned first, then pruned in one shot (amounts, scope, structure, criterion, method, include and exclude of
    `recover.prune`), then fine-tuned on."""
    random: ArmConfig = ArmConfig()
    """As `pruned`, by the same schedule, but random weights."""


class SwitchConfig(ArmConfig):
    """One change to the study, run beside it. `sparsities: []` stands for the study's `switch_sparsity`."""

    condition: Condition = "pruned"
    """The condition it changes."""
    seeds: int = Field(default=0, ge=0)
    """Take only so many of a task's seeds; 0 stands for `switch_seeds`."""

    @model_validator(mode="after")
    def _check_switch(self) -> Self:
        if self.before and self.condition != "after_finetuning":
            raise ValueError(f"before: condition = {self.condition} has no part before the cut; remove it")
        if self.replicated and not self.recover:
            raise ValueError("replicated: without recover it starts from runs of its condition; remove it")
        return self


class StudyConfig(Section):
    """The matrix of runs: what they share is computed once."""

    command: Literal["study"] = "study"
    """The command this file is for."""
    data: str = ""
    """Prepared data: the directory that `jaxprune prepare` wrote."""
    dense: str = ""
    """An existing pre-training workdir that all conditions start from; empty trains one by `dense_run`."""
    dense_run: PretrainConfig = PretrainConfig()
    """Pre-training of the dense start."""
    recover: PretrainConfig = PretrainConfig(prune=PruneConfig(end=10_000))
    """Pruning and recovery, once per sparsity. `init_from` empty: from the dense start."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Fine-tuning, once per task, learning rate and seed; its tasks, seeds, keep_weights and train_loss (true) are
    replaced by the study's, its init_from and masks are the conditions' to set."""
    keep_weights: bool = False
    """Write every fine-tuned model to its run's `hf/`; else those alone that other runs start from."""
    tasks: tuple[TaskConfig, ...] = Field(default=(), min_length=1)
    """GLUE tasks, and your own."""
    conditions: ConditionsConfig = ConditionsConfig()
    """Which conditions, at which sparsities."""
    switches: dict[str, SwitchConfig] = Field(default={})
    """Name -> a change to a condition, which may have sparsities, tasks and seeds of its own."""
    switch_sparsity: float = Field(default=0.7, ge=0, le=1)
    """Sparsity of the switches that name none."""
    switch_tasks: tuple[str, ...] = ()
    """Tasks of the switches that name none; none stands for all."""
    switch_seeds: int = Field(default=0, ge=0)
    """Take only so many of a task's seeds for the switches that do not say; 0 takes all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [task.name for task in self.tasks]
        if len({*names}) < len(names):
            raise ValueError(f"tasks: {', '.join(names)} has one twice; remove it")
        asked = {"switch_tasks": self.switch_tasks}
        asked |= {f"conditions.{name}.tasks": arm.tasks for name, arm in self._conditions()}
        asked |= {f"switches.{name}.tasks": switch.tasks for name, switch in self.switches.items()}
        for where, wanted in asked.items():
            for name in wanted:
                if name not in names:
                    raise ValueError(f"{where}: {name} is none of the tasks {', '.join(names)}")
        if self.conditions.information_deletion.recover:
            raise ValueError("conditions.information_deletion.recover: it starts from runs of pruned; set it there")
        for name in ("information_deletion", "after_finetuning"):
            if getattr(self.conditions, name).replicated:
                raise ValueError(f"conditions.{name}.replicated: it has no pre-training of its own; remove it")
        for name, arm in self._conditions():
            if name != "after_finetuning" and arm.before:
                raise ValueError(f"conditions.{name}.before: it has no part before a cut; remove it")
            if arm != ArmConfig():  # an arm that is left out may be one that cannot be
                self.arm(name, SwitchConfig(), f"conditions.{name}")
        for task in self.tasks:
            self.of_task(self.finetune, task)
        self.before(SwitchConfig(), "conditions.after_finetuning")
        for name, switch in self.switches.items():
            if not name.replace("_", "").isalnum() or name in ("pruned", "random", "dense"):
                raise ValueError(f"switches: {name!r} is no name for a directory; use letters, digits and _")
            self.arm(switch.condition, switch, f"switches.{name}")
            self.before(switch, f"switches.{name}")
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        """ValueError for a key of `finetune` that would have no effect."""
        for key in ("masks", "init_from"):
            if (value := getattr(self.finetune, key)) != FinetuneConfig.model_fields[key].default:
                raise ValueError(f"finetune.{key} = {value}: the study's conditions set it; remove it")
        arms = [(f"conditions.{name}", arm, arm.tasks) for name, arm in self._conditions()]
        arms += [(f"switches.{name}", one, self.tasks_of(one.condition, one)) for name, one in self.switches.items()]
        layers = [(f"{where}.{part}", getattr(arm, part), only) for where, arm, only in arms for part in _PARTS]
        layers += [(f"tasks.{task.name}.finetune", task.finetune, (task.name,)) for task in self.tasks]
        for where, layer, only in layers:
            for key in layer:  # both parts of a cut have one grid of rates, that of the part after it
                if key in _OF_RUNS or (key == "learning_rates" and where.endswith(".before")):
                    raise ValueError(f"{where}.{key}: the study sets it for each run; remove it")
                for task in self.tasks:
                    if key in task.limits and (not only or task.name in only):
                        raise ValueError(f"{where}.{key}: tasks.{task.name}.{key} takes its place; remove one of them")

    def _conditions(self) -> list[tuple[str, ArmConfig]]:
        return [(name, getattr(self.conditions, name)) for name in ConditionsConfig.model_fields]

    def tasks_of(self, condition: str, switch: SwitchConfig | None = None) -> tuple[str, ...]:
        """Names of the tasks of a condition, or of a `switch` of it; none stands for all."""
        theirs = switch.tasks or self.switch_tasks if switch else ()
        return theirs or getattr(self.conditions, condition).tasks

    def with_limits(self, task: TaskConfig) -> TaskConfig:
        """`task` with the limits of `finetune` where it has none of its own."""
        finetune = self.of_task(self.finetune, task)
        return task.model_copy(update={key: getattr(finetune, key) for key in _LIMITS if key not in task.limits})

    def of_task(self, finetune: FinetuneConfig, task: TaskConfig) -> FinetuneConfig:
        """A `finetune` of the study as `task` has it."""
        return overlaid(finetune, task.finetune, f"tasks.{task.name}.finetune")

    def before(self, switch: SwitchConfig, where: str) -> FinetuneConfig:
        """`finetune` of the part before the cut of `after_finetuning`; `where` goes into errors."""
        finetune = overlaid(
            self.finetune, self.conditions.after_finetuning.before, "conditions.after_finetuning.before"
        )
        return overlaid(finetune, switch.before, f"{where}.before")

    def arm(self, condition: str, switch: SwitchConfig, where: str) -> tuple[PretrainConfig, FinetuneConfig]:
        """`recover` and `finetune` of a condition with a switch on top; `where` goes into errors."""
        arm: ArmConfig = getattr(self.conditions, condition)
        recover, finetune = self.recover, self.finetune
        if condition == "random":  # drawn once and kept: random masks have nothing to be recomputed from
            hard = {"criterion": "random", "mode": "hard", "refresh": False, "straight_through": None}
            recover = overlaid(recover, {"prune": hard}, where)
        for layer in (arm, switch):
            recover = overlaid(recover, layer.recover, f"{where}.recover")
            finetune = overlaid(finetune, layer.finetune, f"{where}.finetune")
        return recover, finetune
