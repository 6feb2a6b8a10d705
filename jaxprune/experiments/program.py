"""The compiled steps of a run: the one place where a model, its loss, an optimizer and a pruner become a program."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.config.sections import MeshConfig, ModelConfig, OptimizerConfig, PruneConfig
from jaxprune.experiments.pruning_plan import check_layers, named, pruner_of, unpruned
from jaxprune.experiments.teacher import Teacher
from jaxprune.models import architecture_named
from jaxprune.models.losses import LOSSES
from jaxprune.models.model import Head, Model, Pooling
from jaxprune.training.compile import Program, compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.sharding import make_mesh

TERMS: dict[Head, tuple[str, ...]] = {"pretraining": ("mlm", "nsp")}
"""The terms of a loss that are not its head's name; without pairs of segments there is no `nsp`."""


class Blueprint(NamedTuple):
    """All that a program depends on; runs that agree in it share one."""

    model: ModelConfig
    head: Head
    num_labels: int
    prune: PruneConfig
    """`include` must be filled in (`pruning_plan.included`)."""
    masked: bool
    """False: a dense run, without masks."""
    optimizer: OptimizerConfig
    steps: int
    mesh: MeshConfig
    accumulate: int
    pooling: Pooling = "mean"
    """Of the similarity head."""
    teacher: Teacher | None = None
    restarts: tuple[int, ...] = ()
    """Steps at which the learning rate begins anew (`pruning_plan.restarts_of`)."""

    def key(self) -> str:
        """Equal for runs that share a program: how far they prune, the peak rate and, but where masks regrow, when they
        prune are data to it."""
        keep = ("scope", "distribution", "structure", "criterion", "method", "mode", "include", "exclude")
        keep += ("lift_steps", "straight_through")
        if self.prune.regrow:
            keep += ("regrow", "regrow_fraction", "begin", "end")
        prune = {name: getattr(self.prune, name) for name in keep} | {"amounts": sorted(self.prune.amounts)}
        optimizer = self.optimizer.model_dump(exclude={"learning_rate"})
        rest = (
            self.model.model_dump(),
            self.head,
            self.num_labels,
            self.masked,
            self.steps,
            self.accumulate,
            self.pooling,
            repr(self.teacher),
            self.restarts,
        )
        return json.dumps([prune, optimizer, self.mesh.model_dump(), rest], sort_keys=True)

    def build(self) -> Model:
        """The model as pure functions."""
        build = architecture_named(self.model.architecture).build
        return build(self.model, head=self.head, num_labels=self.num_labels, pooling=self.pooling)

    def weights(self, terms: Sequence[str]) -> dict[str, float]:
        """The weight of every term of the loss in training, where the task's own are `terms`."""
        return self.teacher.weights(terms) if self.teacher else dict.fromkeys(terms, 1.0)

    def masks(self, params: Any) -> Any:
        """All-True masks of params (or of their shapes): None where nothing is prunable."""
        with named("prune."):  # a dense run may begin with pruned weights: the paths must be right there too
            masks = unpruned(self.prune, params)
        return masks if self.masked else jax.tree.map(lambda _: None, params)


def compile_program(blueprint: Blueprint, devices: Sequence[Any] | None = None) -> Program:
    """The steps of a blueprint on a mesh over `devices` (default: all), from shapes alone; compiled on first use."""
    model, teacher, head = blueprint.build(), blueprint.teacher, blueprint.head
    check_layers("optimizer.frozen", blueprint.optimizer.frozen)
    loss = LOSSES[head](model.apply)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return compile_steps(
        params,
        blueprint.masks(params),
        make_mesh(blueprint.mesh, devices),
        loss_fn=teacher.loss(head, model.apply) if teacher else loss,
        tx=adamw(blueprint.optimizer, blueprint.steps, blueprint.restarts),
        pruner=pruner_of(blueprint.prune, blueprint.model),
        accumulate=blueprint.accumulate,
        frozen=teacher.shapes() if teacher and not teacher.beforehand else (),
        weights=blueprint.weights(TERMS.get(head, (head,))),
        measured=loss if teacher else None,
    )
