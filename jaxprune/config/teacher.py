"""The teacher of a run: which model, and what of it the run learns."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from jaxprune.config.sections import Fraction, Section


class TeacherConfig(Section):
    """Distillation: a frozen model whose outputs the run learns from beside its labels. Without `source` there is none.

    The defaults of `hardness` and `temperature` are those of Prune OFA (Zafrir et al. 2021).
    """

    source: str = ""
    """The teacher: a jaxprune workdir, a Hugging Face directory or a hub name, with the run's own vocabulary. Of a
    fine-tuning grid over several tasks, each task takes the best model of its own."""
    revision: str = ""
    """Hub commit to pin."""
    variant: str = ""
    """Weights to read beside the usual ones: `fp16` those of `model.fp16.safetensors`."""
    hardness: Fraction = 0.5
    """Share of the teacher's outputs in the loss; the labels have the rest. Of logits (at masked positions, of next
    sentences, of classes) the divergence of their softmax, of scores and cosines the squared difference; 0 compares
    none, and the teacher needs no head."""
    temperature: float = Field(default=2.0, gt=0)
    """Logits of both are divided by it before their softmax, and the divergence multiplied by its square."""
    hidden: float = Field(default=0.0, ge=0)
    """Weight of the mean squared difference of hidden states, layer by layer, of models of one hidden_size."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """hidden, relations: the teacher's layer, from 0, that each of the run's learns from; empty spaces them evenly."""
    relations: float = Field(default=0.0, ge=0)
    """Weight of the relations in the last layer, of queries, of keys and of values among themselves (MiniLMv2, Wang et
    al. 2021); for a teacher of any hidden_size."""
    relation_heads: int = Field(default=0, ge=0)
    """relations: heads into which both models' vectors are split; 0 takes those of the run's last layer."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the teacher's weights and products; none takes the run's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.source and self != type(self).model_construct():
            raise ValueError("source: missing; name the teacher's workdir, folder or hub name")
        compared = {"layers": ("hidden or relations", self.states), "relation_heads": ("relations", self.relations > 0)}
        for key, (weights, used) in compared.items():
            if (value := getattr(self, key)) and not used:
                raise ValueError(f"{key} = {value}: nothing of them is compared; give {weights} a weight above 0")
        return self

    @property
    def teaches(self) -> bool:
        """Whether anything is learned from it: with every weight 0 a run is the one without a teacher."""
        return bool(self.source) and max(self.hardness, self.hidden, self.relations) > 0

    @property
    def states(self) -> bool:
        """Whether hidden states are needed, of both models."""
        return max(self.hidden, self.relations) > 0
