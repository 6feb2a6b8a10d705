"""Sections of a config file. The only place in jaxprune where defaults live; imports no jax."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of settings: unknown keys are errors, every field says what it means and in which unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers, as which pydantic takes them."""
        items = value if isinstance(value, list | tuple) else [value]
        types = _types(cls.model_fields[info.field_name or ""].annotation)
        if any(isinstance(item, bool) for item in items) and types & {int, float} and bool not in types:
            raise ValueError("true and false are no numbers")
        return value


def _types(annotation: Any) -> set[type]:
    """The plain types in an annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    return set().union(*map(_types, get_args(annotation)))


_BY_LAYER = (("layer_heads", "num_attention_heads"), ("layer_neurons", "intermediate_size"))
"""Fields of ModelConfig that say something of each layer, and those that say it of all."""


class ModelConfig(Section):
    """The model's shape, under Hugging Face's names for BERT. With `init_from`, the checkpoint decides it."""

    architecture: str = "bert"
    """Kind of model, Hugging Face's `model_type`."""
    vocab_size: int = Field(default=30522, ge=8, le=2**31 - 1)
    """Rows of the word embedding table; at least the tokenizer's vocabulary."""
    hidden_size: int = Field(default=768, ge=1, le=2**20)
    """Width D of the residual stream."""
    num_hidden_layers: int = Field(default=12, ge=1, le=1000)
    """Number of encoder layers."""
    num_attention_heads: int = Field(default=12, ge=1, le=2**20)
    """Heads per layer; divides hidden_size where `head_dim` is none."""
    head_dim: int | None = Field(default=None, ge=1, le=2**20)
    """Width of a head; none takes `hidden_size` / `num_attention_heads`, the only one that transformers loads. It is
    another one in a model that heads were taken out of."""
    intermediate_size: int = Field(default=3072, ge=1, le=2**24)
    """Width of the feed-forward layer."""
    layer_heads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Heads of each layer, of which `num_attention_heads` is the largest; empty: as many in all. transformers has no
    such models; `jaxprune compact --uneven` makes them."""
    layer_neurons: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Width of each feed-forward layer, of which `intermediate_size` is the largest; empty: the same in all."""
    max_position_embeddings: int = Field(default=512, ge=8, le=2**24)
    """Rows of the position table: the longest sequence in tokens, and with RoBERTa `pad_token_id` + 1 more."""
    type_vocab_size: int = Field(default=2, ge=1)
    """Number of segment types."""
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """Activation: `gelu` is exact, `gelu_new` is the tanh approximation of the original TensorFlow code."""
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after embeddings and sub-layers."""
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on attention probabilities."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before a classifier; none takes `hidden_dropout_prob`."""
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    """Epsilon of LayerNorm."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the truncated normal that starts matrices."""
    pad_token_id: int = Field(default=0, ge=0)
    """Id of the padding token; RoBERTa's positions begin after it."""
    sublayer_relu: bool = False
    """ReLU on the output projections of attention and feed-forward, before dropout and residual, as in the graph that
    the published study trained (an unset default of TensorFlow's `fully_connected`); transformers has no such BERT."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; params stay float32."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if {"hidden_size", "num_attention_heads"} <= self.model_fields_set:  # else the other may be a folder's
            self.check_heads()
        for by_layer, most in _BY_LAYER:
            widths = getattr(self, by_layer)
            if widths and (len(widths) != self.num_hidden_layers or max(widths) != getattr(self, most)):
                layers = f"each of the {self.num_hidden_layers} layers"
                raise ValueError(f"{by_layer} = {[*widths]}: name {layers}, {most} = {getattr(self, most)} the largest")
        return self

    @property
    def even(self) -> bool:
        """Whether all layers have one shape."""
        return not (self.layer_heads or self.layer_neurons)

    def with_layers(self, layers: Sequence[int]) -> Self:
        """The shape of a model that has these layers alone, in this order."""
        changes: dict[str, Any] = {"num_hidden_layers": len(layers)}
        for by_layer, most in _BY_LAYER:
            if widths := tuple(getattr(self, by_layer)[i] for i in layers if getattr(self, by_layer)):
                changes |= {by_layer: widths, most: max(widths)}
        if changes.get("num_attention_heads", self.num_attention_heads) < self.num_attention_heads:
            changes["head_dim"] = self.head_width
        return self.model_copy(update=changes)

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def check_heads(self, prefix: str = "") -> None:
        """ValueError where vectors cannot be split into heads; `prefix` stands before both keys."""
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            heads = f"{prefix}num_attention_heads = {self.num_attention_heads}"
            raise ValueError(f"{heads} does not divide {prefix}hidden_size = {self.hidden_size}")


class PruneConfig(Section):
    """What to prune, how far, and when. `sparsity: 0` trains without pruning."""

    sparsity: float = Field(default=0.0, ge=0, le=1)
    """Final fraction in [0, 1] of the prunable weights that is pruned."""
    initial: float = Field(default=0.0, ge=0, le=1)
    """Sparsity of the first prune, at `begin`; 0.7 takes a large first step, from which the schedule rises."""
    amounts: dict[str, Fraction | None] = Field(default={})
    """Regex over whole parameter paths -> a final sparsity of their own; null leaves them alone."""
    schedule: str = "cubic"
    """How sparsity rises from `initial` to its final value (cubic: Zhu & Gupta 2017, the paper's choice)."""
    begin: int = Field(default=0, ge=0)
    """Step of the first prune."""
    end: int = Field(default=0, ge=0)
    """Step at which the final sparsity is reached; recovery follows. A plan that takes more than one prune names it."""
    every: int = Field(default=10, ge=1)
    """Steps between two prunes; the final sparsity is reached at `end` even off this grid."""
    lift_steps: int = Field(default=0, ge=0)
    """Steps before each prune but the first in which nothing is masked: AC/DC's dense phases (Peste et al. 2021), with
    schedule = one_shot and an `end`. Hard masks give weights back as 0, soft ones as they are under the mask."""
    refresh: bool = False
    """Soft masks: recompute them every `every` steps after `end` too, to the last step; else they are frozen there."""
    scope: str = "matrix"
    """The set over which one threshold holds."""
    distribution: str = "uniform"
    """How the sparsity is shared out among the sets of `scope`: the same for each, or by shape with the same total
    (erk, Erdos-Renyi-Kernel: Evci et al. 2020)."""
    structure: str = "weights"
    """Which weights live or die together: each by itself, n of m consecutive ones (2:4), blocks (block(4, 4)), or what
    `jaxprune compact` takes out: attention heads, neurons of the feed-forward layers. Those prune their own leaves
    alone where `include` names none, and with scope = matrix as many in every layer."""
    criterion: str = "magnitude"
    """Which weights score low and go first."""
    method: str = "exact"
    """`exact` counts in integers; `quantile` is jnp.quantile; `hist256` is TensorFlow <= 1.13's histogram."""
    mode: Literal["hard", "soft"] = "hard"
    """`hard`: a pruned weight is 0 and stays 0. `soft`: its dense value is kept under the mask and may return; no
    gradient reaches it, but Adam's moments from before and weight decay still move it."""
    straight_through: float | None = Field(default=None, ge=0)
    """Soft masks: gradients reach the values under them too, plus this times the value, a decay (SR-STE's lambda; 0 is
    the plain straight-through estimator) beside the optimizer's own; null stops gradients at the mask."""
    regrow: str = ""
    """Which weights come back at each prune of hard masks, in place of the lowest kept: by chance (SET), by the last
    step's gradient (RigL), or none do. With schedule = one_shot and an `end` the sparsity stays and the masks move."""
    regrow_fraction: float = Field(default=0.3, ge=0, le=1)
    """Fraction of the kept weights that is exchanged so; it falls to 0 at `end`, by a cosine."""
    include: tuple[str, ...] = ()
    """Regexes over whole parameter paths: the prunable weights; empty takes the architecture's (for BERT-Base the
    paper's 74 matrices) and what `init_from` has masks of."""
    exclude: tuple[str, ...] = ()
    """Regexes over whole parameter paths taken out of `include`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prunes and "end" not in self.model_fields_set and self.schedule != "one_shot":
            once = "set schedule = one_shot to prune all at once before the first step"
            raise ValueError(f"end: missing with sparsity = {self.sparsity}; set the step of the last prune, or {once}")
        if self.begin > self.end:
            raise ValueError(f"begin = {self.begin} lies after end = {self.end}; set begin <= end")
        if 0 < self.sparsity < self.initial:
            raise ValueError(f"initial = {self.initial} is above sparsity = {self.sparsity}; set initial <= sparsity")
        if self.initial and self.prunes and self.schedule == "one_shot":
            raise ValueError(f"initial = {self.initial}: schedule = one_shot takes all at once; leave one of them out")
        if self.scope == "global" and self.distribution != "uniform":
            raise ValueError(f"distribution = {self.distribution} shares out among matrices; set scope = matrix")
        if self.mode == "soft" and self.criterion == "random":
            raise ValueError("mode = soft needs a criterion of the weights; criterion = random would redraw its masks")
        if self.regrow and (self.mode == "soft" or self.method != "exact" or self.begin >= self.end):
            raise ValueError(f"regrow = {self.regrow} needs mode = hard, method = exact and an end after begin")
        if self.straight_through is not None and self.mode == "hard":
            raise ValueError(f"straight_through = {self.straight_through} needs mode = soft")
        if self.lift_steps and self.mode == "hard" and self.method != "exact":
            raise ValueError(f"lift_steps = {self.lift_steps} needs method = exact, or mode = soft")
        if self.lift_steps and self.prunes and self.begin >= self.end:
            raise ValueError(f"lift_steps = {self.lift_steps} needs an end after begin, and prunes between")
        if self.lift_steps >= self.every:
            raise ValueError(f"lift_steps = {self.lift_steps} leaves every = {self.every} no masked step; set it lower")
        if self.refresh and self.mode == "hard":
            raise ValueError("refresh = true needs mode = soft; hard masks do not change at the same sparsity")
        return self

    @property
    def finals(self) -> dict[str, float | None]:
        """Regex -> its final sparsity, None where it is left alone; "" stands for the paths that no other matches."""
        return {"": self.sparsity, **self.amounts}

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned at all."""
        return any(self.finals.values())


class OptimizerConfig(Section):
    """AdamW: decoupled decay off LayerNorm and biases, clip by global norm, linear warm-up, decay of the rate."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""
    decay: Literal["linear", "published", "constant", "sawtooth", "cycles", "rewound"] = "linear"
    """After warm-up: `linear` (ours) falls from the peak to 0 at the last step; `published` is 1 - step / steps from
    the very first step, cut off below the end of the warm-up, as in google-research/bert; `sawtooth` falls to 0 at the
    end of every `period`, from peak / k in the k-th, as jobs do that resume with a decay over all steps up to their own
    end; `cycles` falls to 0 from each prune that takes more to the next, always from the peak, and the last time to the
    last step; `rewound` begins once more, at the last such prune. Without prunes these two are `linear`."""
    period: int = Field(default=0, ge=0)
    """sawtooth: steps of one period (the published study: 5,000)."""
    offset: int = Field(default=0, ge=0)
    """sawtooth: steps made before this run, from which it counts on."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay per step, times the learning rate; not on LayerNorm and biases."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the root of the second moment."""
    bias_correction: bool = True
    """Adam's bias correction; the original BERT code has none."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Clip gradients to this global norm; 0 turns it off."""
    frozen: tuple[str, ...] = ()
    """Regexes over whole parameter paths: weights that are not trained, such as an encoder's while fresh heads warm up.
    They get no update and hold no moments, and clipping does not see them; pruning them still makes them 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.decay == "sawtooth") != (self.period > 0):
            raise ValueError(f"decay = {self.decay}, period = {self.period}: sawtooth, and it alone, has a period >= 1")
        if self.offset and self.decay != "sawtooth":
            raise ValueError(f"offset = {self.offset} needs decay = sawtooth, not {self.decay}")
        return self


class TrainConfig(Section):
    """The loop: how often it logs, evaluates and saves."""

    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step; divides the batch size."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between two evaluations; 0 evaluates at the end only."""
    eval_batches: int = Field(default=100, ge=1)
    """Batches per evaluation, at most; the dev set may have fewer."""
    save_every: int = Field(default=500, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep: int = Field(default=3, ge=1)
    """Newest checkpoints to keep."""
    stall_minutes: float = Field(default=60, ge=0)
    """Minutes without a step, compiling included, after which the process ends with code 79; 0 waits for ever."""


class MeshConfig(Section):
    """Device mesh axes. One of them may be -1, which takes what is left."""

    data: int = Field(default=-1, ge=-1)
    """Devices along `data`: the batch is split, params are copied."""
    fsdp: int = Field(default=1, ge=-1)
    """Devices along `fsdp`: the batch and the params are split."""
    axes: Literal["auto", "explicit"] = "auto"
    """Who places intermediate values: the compiler, or JAX's sharding-in-types, which refuses what it cannot place."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = (self.data, self.fsdp)
        if 0 in sizes or sizes.count(-1) > 1:
            raise ValueError(f"data = {self.data}, fsdp = {self.fsdp}: sizes are >= 1, at most one is -1")
        return self


class SourceConfig(Section):
    """One corpus of documents."""

    kind: Literal["hub", "local", "builtin"] = "local"
    """`hub`: a `datasets` name. `local`: files. `builtin`: documentation text that every machine already has."""
    path: str = ""
    """hub: dataset name; local: a file, folder or glob of files."""
    format: str = "auto"
    """local: file format; `auto` goes by the file's name (text formats also packed: .gz, .bz2, .xz, .zst)."""
    name: str = ""
    """hub: configuration of the dataset, such as 20231101.en."""
    split: str = "train"
    """hub: split."""
    revision: str = ""
    """hub: commit to pin."""
    streaming: bool = True
    """hub: read while downloading instead of first."""
    text_field: str = "text"
    """Column or key that holds a document's text."""
    max_documents: int = Field(default=0, ge=0)
    """Take only the first documents; 0 takes all."""
    max_chars: int = Field(default=0, ge=0)
    """Stop after about this many characters; 0 takes all."""
    paragraphs: bool = False
    """A line is a document (for corpora of short texts); else a file or row is one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "builtin" and not self.path:
            raise ValueError(f"path is empty, but kind = {self.kind} needs one")
        return self


class TokenizerConfig(Section):
    """WordPiece tokenizer: an existing one by `path`, or one trained on the corpus with `train_size` pieces."""

    path: str = ""
    """Directory with tokenizer.json or vocab.txt, or a hub name such as bert-base-uncased."""
    revision: str = ""
    """Hub commit to pin."""
    train_size: int = Field(default=0, ge=0)
    """Pieces of a vocabulary trained on this corpus; 0 uses `path`."""
    lowercase: bool = True
    """Lower-case and strip accents, when training a vocabulary."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.path) == bool(self.train_size):
            raise ValueError("set exactly one of path (an existing tokenizer) and train_size (train one)")
        return self


class DataConfig(Section):
    """Prepared data and how it is masked."""

    path: str = ""
    """Directory written by `jaxprune prepare`."""
    masked_prob: float = Field(default=0.15, ge=0, le=1)
    """Fraction of the tokens that is predicted."""
    max_predictions: int | None = Field(default=None, ge=1)
    """Predictions per example, at most; none takes `masked_prob` of the length (20 of 128 tokens, 77 of 512)."""
    masking: Literal["known", "published"] = "known"
    """`known` (ours): [UNK] is never predicted and no special token stands in for another. `published`: as in
    google-research/bert, all but [CLS] and [SEP] may be predicted, and any piece of the vocabulary stand in."""
    whole_word: bool = False
    """Mask all pieces of a word together."""

    def predictions(self, seq_len: int) -> int:
        """Predictions per example of so many tokens, at most."""
        return self.max_predictions or math.ceil(self.masked_prob * seq_len) or 1
