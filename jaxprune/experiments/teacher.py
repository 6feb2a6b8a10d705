"""The teacher of a run as its program sees it: its shape, what of it is compared, its part of the loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.config.sections import ModelConfig
from jaxprune.config.teacher import TeacherConfig
from jaxprune.errors import UserError
from jaxprune.models import architecture_named
from jaxprune.models.distillation import TEACHER, Compared, distillation_loss, evenly_spaced, said_before
from jaxprune.models.losses import Apply, LossFn
from jaxprune.models.model import Head, Model, Pooling


class Teacher(NamedTuple):
    """A teacher as the program of a run sees it; its params are the program's `frozen`."""

    cfg: TeacherConfig
    model: ModelConfig
    """Its shape, and the type of its weights and products."""
    head: Head
    """The run's where logits are compared; else `similarity`, which has no params."""
    num_labels: int
    compared: Compared
    pooling: Pooling = "mean"

    @property
    def beforehand(self) -> bool:
        """Whether it is asked once about every example, before the first step: what it says of a task's examples is the
        same in each epoch, and small where logits alone are compared."""
        return self.head != "pretraining" and not self.cfg.states

    def build(self) -> Model:
        """The model as pure functions."""
        build = architecture_named(self.model.architecture).build
        return build(self.model, head=self.head, num_labels=self.num_labels, pooling=self.pooling)

    def shapes(self) -> Any:
        """Its params as ShapeDtypeStructs."""
        shapes = jax.eval_shape(self.build().init, jax.random.key(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(self.model.dtype)), shapes)

    def loss(self, head: Head, apply: Apply) -> LossFn:
        """The loss of a model that learns from it, trained with `head`."""
        return distillation_loss(head, apply, said_before if self.beforehand else self.build().apply, self.compared)

    def weights(self, terms: Sequence[str]) -> dict[str, float]:
        """The weight of every term of that loss, where the task's own are `terms`."""
        weights, record = dict.fromkeys(terms, 1.0), architecture_named(self.model.architecture)
        for term in terms:
            if self.cfg.hardness and (term != "nsp" or record.next_sentence):
                weights |= {term: 1 - self.cfg.hardness, TEACHER + term: self.cfg.hardness}
        more = {"teacher_hidden": self.cfg.hidden, "teacher_relations": self.cfg.relations}
        return weights | {term: weight for term, weight in more.items() if weight}

    def words(self) -> str:
        """What is learned from it, for a log."""
        shares = {"logits": self.cfg.hardness, "hidden states": self.cfg.hidden, "relations": self.cfg.relations}
        return ", ".join(f"{name} x {weight:g}" for name, weight in shares.items() if weight)

    def flops(self, *, seq_len: int, predictions: int) -> float:
        """FLOPs of its forward pass for one sequence, masked-LM head included where that is compared."""
        predictions = predictions if self.head == "pretraining" else 0
        count = architecture_named(self.model.architecture).train_flops
        return count(self.model, seq_len=seq_len, predictions=predictions) / 3


class Lesson(NamedTuple):
    """A teacher's params on the host, () without one, and the hash of its weights, "" without one."""

    params: Any
    fingerprint: str


NO_LESSON = Lesson((), "")


def teacher_of(
    cfg: TeacherConfig, shape: Callable[[], ModelConfig], student: ModelConfig, head: Head, num_labels: int = 0
) -> Teacher | None:
    """The teacher of a run that trains `student` with `head`, from its `shape`; None where it teaches nothing.

    UserError where both models cannot be compared as `cfg` asks.
    """
    if not cfg.teaches:
        return None
    model = shape()
    where, ours, theirs = f"teacher.source = {cfg.source}", student.num_hidden_layers, model.num_hidden_layers
    if cfg.hidden and model.hidden_size != student.hidden_size:
        sizes = f"its hidden_size is {model.hidden_size}, the run's {student.hidden_size}"
        raise UserError(f"{where}: {sizes}; set teacher.hidden = 0, logits and relations need no equal sizes")
    if cfg.layers and (len(cfg.layers) != ours or max(cfg.layers) >= theirs):
        wanted = f"name one of its layers 0 to {theirs - 1} for each of the run's {ours}"
        raise UserError(f"teacher.layers = {[*cfg.layers]}: {wanted}")
    layers = cfg.layers or evenly_spaced(ours, theirs)
    last, its = student.with_layers([ours - 1]), model.with_layers([layers[-1]])  # whose relations are compared
    heads = (cfg.relation_heads or last.num_attention_heads) if cfg.relations else 0
    for name, one in (("the run's", last), (f"{where}'s", its)):
        if heads and (size := one.num_attention_heads * one.head_width) % heads:
            kind = "width of all heads" if one.head_dim else "hidden_size"
            raise UserError(f"teacher.relation_heads = {heads} does not divide {name} {kind} {size}")
    if cfg.hardness and head == "pretraining" and model.vocab_size != student.vocab_size:
        rows = f"it has {model.vocab_size} pieces, the run's model {student.vocab_size}"
        raise UserError(f"{where}: {rows}; set model.vocab_size = {model.vocab_size}, or teacher.hardness = 0")
    logits = cfg.hardness > 0
    compared = Compared(logits, cfg.temperature, cfg.hidden > 0, heads, layers)
    model = model.model_copy(update={"dtype": cfg.dtype or student.dtype})
    return Teacher(cfg, model, head if logits else "similarity", num_labels if logits else 0, compared)
