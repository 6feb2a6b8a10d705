"""One config model per command: what a YAML file in configs/ may say."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jaxprune.config.sections import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PruneConfig,
    Section,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxprune.config.task import TaskEntry, task_name
from jaxprune.config.teacher import TeacherConfig


class PrepareConfig(Section):
    """Turn documents into packed, checksummed, memory-mapped training examples."""

    command: Literal["prepare"] = "prepare"
    """The command this file is for."""
    sources: tuple[SourceConfig, ...] = Field(default=(), min_length=1)
    """Corpora, read in order."""
    architecture: str = "bert"
    """Kind of model that the data is for: it decides the special tokens."""
    tokenizer: TokenizerConfig = TokenizerConfig(path="bert-base-uncased")
    """The vocabulary."""
    seq_len: int = Field(default=128, ge=8)
    """Tokens per example, special tokens included."""
    next_sentence: bool = True
    """Pairs of segments for next-sentence prediction, which BERT alone is trained on; else single segments."""
    short_seq_prob: float = Field(default=0.1, ge=0, le=1)
    """Fraction of examples packed to a random shorter length."""
    random_next_prob: float = Field(default=0.5, ge=0, le=1)
    """Fraction of pairs whose second segment comes from another document."""
    duplicates: int = Field(default=1, ge=1)
    """Times the corpus is packed, each time into other pairs (the original data used 5)."""
    dev_fraction: float = Field(default=0.01, gt=0, lt=1)
    """Fraction of the documents held out."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split and of the pairs."""
    shard_examples: int = Field(default=65536, ge=1)
    """Examples per file."""
    processes: int = Field(default=0, ge=0)
    """Processes that tokenise; 0: one per core, at most 16, for a large corpus; 1: only this one. Same result."""


def _check_masks(cfg: "PretrainConfig | FinetuneConfig") -> None:
    if cfg.masks_from and cfg.masks == "none":
        raise ValueError(f"masks = none lifts what masks_from = {[*cfg.masks_from]} prunes; leave one of them out")


class PretrainConfig(Section):
    """Continue (or start) MLM + NSP pre-training while pruning."""

    command: Literal["pretrain"] = "pretrain"
    """The command this file is for."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, data order, masking and dropout."""
    steps: int = Field(default=100_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per step, over all devices."""
    init_from: str = ""
    """Weights to start from: a jaxprune workdir, a Hugging Face directory or a hub name; empty starts from scratch."""
    init_revision: str = ""
    """Hub commit to pin."""
    init_variant: str = ""
    """Weights to read beside the usual ones: `fp16` those of `model.fp16.safetensors`."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers of `init_from` to keep, from 0 and in this order, for a shallower start; empty keeps all."""
    masks: Literal["fixed", "none"] = "fixed"
    """What `init_from` has pruned: `fixed` stays pruned, `none` lifts its masks at the start."""
    masks_from: tuple[str, ...] = ()
    """Workdirs or Hugging Face directories of the same shape whose masks take the place of those of `init_from`: with
    an earlier checkpoint of the same run as `init_from` a lottery ticket, with another task's run a transfer."""
    masks_kept_by: Literal["all", "any"] = "all"
    """Of several `masks_from`: a weight stays where all of them keep it (intersection), or any (union)."""
    data: DataConfig = DataConfig()
    """Prepared data."""
    model: ModelConfig = ModelConfig()
    """The model's shape."""
    prune: PruneConfig = PruneConfig()
    """What to prune, how far, and when."""
    teacher: TeacherConfig = TeacherConfig()
    """Distillation: a frozen model that the run also learns from."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.init_from:
            self.model.check_heads("model.")
        if self.masks_from and not self.init_from:
            raise ValueError(f"masks_from = {[*self.masks_from]} needs init_from, whose weights they mask")
        _check_masks(self)
        if self.prune.prunes and self.prune.end > self.steps:
            raise ValueError(f"prune.end = {self.prune.end} lies after steps = {self.steps}")
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(f"optimizer.warmup_steps = {self.optimizer.warmup_steps} is above steps = {self.steps}")
        if self.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.accumulate = {self.train.accumulate} does not divide batch_size = {self.batch_size}"
            )
        return self


class FinetuneConfig(Section):
    """Fine-tune a pre-trained model: tasks (GLUE's and your own) x learning rates x seeds."""

    command: Literal["finetune"] = "finetune"
    """The command this file is for."""
    tasks: tuple[TaskEntry, ...] = Field(default=("SST-2", "CoLA"), min_length=1)
    """GLUE's tasks by name, or in a file also your own (name, train, dev, text, label, ...), here by their names."""
    glue: str = "nyu-mll/glue"
    """Hub dataset, or a local folder in the layout of the official `glue_data/`."""
    revision: str = ""
    """Hub commit to pin."""
    init_from: str = ""
    """A jaxprune workdir (of fine-tuning: one that kept its weights), a Hugging Face directory or a hub name."""
    init_revision: str = ""
    """Hub commit to pin."""
    init_variant: str = ""
    """Weights to read beside the usual ones: `fp16` those of `model.fp16.safetensors`."""
    model: ModelConfig = ModelConfig()
    """The model's shape: `init_from` decides it."""
    tokenizer: str = ""
    """Tokenizer directory or hub name; empty takes the one beside `init_from`."""
    masks: Literal["fixed", "lifted", "none"] = "fixed"
    """`fixed`: pruned weights stay 0. `lifted`: they start at 0 and train (information deletion). `none`: dense."""
    masks_from: tuple[str, ...] = ()
    """Workdirs or Hugging Face directories of the same shape whose masks take the place of those of `init_from`: with
    an earlier checkpoint of the same run as `init_from` a lottery ticket, with another task's run a transfer."""
    masks_kept_by: Literal["all", "any"] = "all"
    """Of several `masks_from`: a weight stays where all of them keep it (intersection), or any (union)."""
    learning_rates: tuple[float, ...] = Field(default=(2e-5, 3e-5, 4e-5, 5e-5), min_length=1)
    """Peak learning rates; each is a run."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the classifier's start, order and dropout; each is a run."""
    epochs: int = Field(default=3, ge=0)
    """Passes over the training set; 0 scores the start as it is, pruned if `prune` says so."""
    batch_size: int = Field(default=32, ge=1)
    """Examples per step."""
    max_len: int = Field(default=128, ge=8)
    """Tokens per example; longer pairs are cut, the longer text first."""
    max_train_examples: int = Field(default=0, ge=0)
    """Use only the first examples of a shuffled training set; 0 uses all."""
    max_dev_examples: int = Field(default=0, ge=0)
    """Use only the first examples of a shuffled dev set; 0 uses all."""
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    """Fraction of the steps that warms up; with `sawtooth`, of the first epoch's."""
    sawtooth: bool = False
    """A learning rate that falls to 0 in every epoch, from peak / k in the k-th, as the published study's did."""
    epochs_before: int = Field(default=0, ge=0)
    """sawtooth: epochs that `init_from` was fine-tuned before, from which it counts on (then nothing warms up)."""
    prune: PruneConfig = PruneConfig(schedule="one_shot")
    """Prune while fine-tuning, with `masks: fixed`; after fine-tuning, if `init_from` is a fine-tuned run."""
    teacher: TeacherConfig = TeacherConfig()
    """Distillation: a frozen model, fine-tuned on the same task, that the run also learns from."""
    keep_weights: bool = True
    """Write the fine-tuned model to `hf/`, a Hugging Face directory; another run can start from it."""
    train_loss: bool = False
    """Run the training set once more after the last step, for its loss; studies do."""
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """similarity: what a sentence's vector is, the mean of its tokens' or the first one's; `auto` asks the folder of
    `init_from` (1_Pooling/config.json), without one it is `mean`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout everywhere while fine-tuning."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """AdamW; its learning rate and warm-up are replaced by the grid above."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""

    @field_validator("prune", mode="before")
    @classmethod
    def _at_once(cls, prune: Any) -> Any:
        """Without a schedule or an end: as the default has it."""
        given = isinstance(prune, dict) and not {"schedule", "end"} & prune.keys()
        return {"schedule": "one_shot"} | prune if given else prune

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_masks(self)
        names = [task_name(entry) for entry in self.tasks]
        if len({*names}) < len(names):
            raise ValueError(f"tasks: {', '.join(names)} has one twice; remove it")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds: {seed} is outside [0, 2**32)")
        for rate in self.learning_rates:
            if rate <= 0:
                raise ValueError(f"learning_rates: {rate} is not above 0")
        if self.prune.prunes and self.masks != "fixed":
            amounts = f", prune.amounts = {self.prune.amounts}" if self.prune.amounts else ""
            raise ValueError(f"prune.sparsity = {self.prune.sparsity}{amounts} needs masks = fixed, not {self.masks}")
        if self.epochs_before and not self.sawtooth:
            raise ValueError(f"epochs_before = {self.epochs_before} needs sawtooth = true")
        if self.optimizer.decay == "sawtooth":
            raise ValueError("optimizer.decay = sawtooth: set sawtooth = true, whose period is one epoch")
        return self


class DemoConfig(Section):
    """The demo: text that every machine has, a small BERT, a few sparsities, two tasks; minutes on 2 CPU cores."""

    model: str = ""
    """A pre-trained model to prune, a Hugging Face directory or hub name; empty pre-trains a small BERT."""
    prepare: PrepareConfig = PrepareConfig(
        sources=(SourceConfig(kind="builtin", max_chars=4_000_000),),
        tokenizer=TokenizerConfig(train_size=1024),
        seq_len=64,
        next_sentence=False,
        dev_fraction=0.05,
    )
    """Documentation text of the standard library and the installed packages."""
    dense: PretrainConfig = PretrainConfig(
        steps=2000,
        batch_size=32,
        data=DataConfig(),
        model=ModelConfig(
            vocab_size=1024,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=256,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,  # 0.02 suits a width of 768; here attention would begin as a plain mean
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        train=TrainConfig(save_every=10_000, eval_batches=40),
    )
    """Pre-training of the dense model that every sparsity starts from."""
    sparsities: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9)
    """Final sparsities; 0 is an unpruned continuation of the same length."""
    recover: PretrainConfig = PretrainConfig(
        steps=300,
        batch_size=32,
        data=DataConfig(),
        model=ModelConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        prune=PruneConfig(end=150, every=10, scope="matrix"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
        train=TrainConfig(save_every=10_000, eval_batches=40),
    )
    """Pruning and recovery, once per sparsity."""
    finetune: FinetuneConfig = FinetuneConfig(
        tasks=("package", "word order"),
        learning_rates=(1e-3,),
        seeds=(0, 1),
        epochs=3,
        max_len=32,
        keep_weights=False,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(save_every=10_000),
    )
    """Two tasks made from the same text: which package a sentence comes from; whether its words are in order."""
    train_examples: int = Field(default=1600, ge=1)
    """Training examples per task."""
    dev_examples: int = Field(default=600, ge=1)
    """Dev examples per task, from held-out documents."""
    packages: int = Field(default=3, ge=2)
    """Classes of the package task: the packages with the most sentences."""
