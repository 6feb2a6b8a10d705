"""Fine-tune one pre-trained model on GLUE: tasks x learning rates x seeds, each run an ordinary workdir."""

from pathlib import Path
from typing import Any

import jax
import pandas

from jaxprune.config import FinetuneConfig, ModelConfig
from jaxprune.config.load import to_yaml
from jaxprune.data import glue, tokenizer
from jaxprune.experiments.environment import versions
from jaxprune.experiments.start import (
    Start,
    finetuned_config,
    finetuned_weights,
    is_workdir,
    start,
    start_config,
    workdir_config,
    zeros_as_masks,
)
from jaxprune.experiments.trainer import Splits, Trainer, config_changes
from jaxprune.pruning import apply_masks
from jaxprune.training.processes import agree, together
from jaxprune.training.sharding import check_batch, make_mesh
from jaxprune.training.workdir import owned_workdir


def finetune(cfg: FinetuneConfig, workdir: Path, *, dry_run: bool = False) -> list[dict[str, Any]] | None:
    """Run the whole grid in `workdir`; finished runs are not run again. Returns a record per run, as in results.csv."""
    if not cfg.init_from:
        raise ValueError("init_from is empty; give a jaxprune workdir, a Hugging Face directory or a hub name")
    with together("config and data"):
        model = model_config(cfg)
        vocabulary = _vocabulary(cfg, model)
        splits = {glue.task(name): read_splits(cfg, name, vocabulary) for name in cfg.tasks}
        check_batch(cfg.batch_size, cfg.train.accumulate, make_mesh(cfg.mesh))
    agree({"config": to_yaml(cfg)} | versions())
    if dry_run:
        _describe(cfg, splits)
        return None
    source = pretrained(cfg, model)
    records = []
    with owned_workdir(workdir, to_yaml(cfg), config_changes) as place:
        for row, parts in splits.items():
            trainer = Trainer(cfg, model, row, parts)
            for rate in cfg.learning_rates:
                for seed in cfg.seeds:
                    folder = place.path / row.name / f"lr{rate:g}-seed{seed}"
                    records.append(trainer.run(folder, source, one_run(cfg, row.name, rate, seed)))
                    place.write("results.csv", pandas.DataFrame(records).to_csv(index=False))
        place.finish({"runs": len(records)})
    return records


def read_splits(cfg: FinetuneConfig, name: str, vocabulary: tokenizer.Vocabulary) -> Splits:
    """Read and encode train and dev; errors name file and row."""
    train = glue.subset(glue.load(name, cfg.glue, "train", cfg.revision), cfg.max_train_examples, seed=0)
    dev = glue.subset(glue.load(name, cfg.glue, "dev", cfg.revision), cfg.max_dev_examples, seed=0)
    return Splits(*(glue.encode(examples, vocabulary.tokenizer, cfg.max_len) for examples in (train, dev)))


def model_config(cfg: FinetuneConfig) -> ModelConfig:
    """The shape of `cfg.init_from` with dropout and dtype as `cfg` says."""
    return tuned_model(cfg, start_config(*_pretrained_place(cfg), ModelConfig()))


def tuned_model(cfg: FinetuneConfig, shape: ModelConfig) -> ModelConfig:
    """`shape` with dropout and dtype as `cfg` says."""
    if cfg.max_len > shape.max_position_embeddings:
        raise ValueError(
            f"max_len = {cfg.max_len} is above the {shape.max_position_embeddings} positions of init_from = "
            f"{cfg.init_from}; lower it"
        )
    return shape.model_copy(
        update={"hidden_dropout_prob": cfg.dropout, "attention_probs_dropout_prob": cfg.dropout, "dtype": cfg.dtype}
    )


def pretrained(cfg: FinetuneConfig, model: ModelConfig) -> Start:
    """The weights to fine-tune, on the host, with their masks as `cfg.masks` says.

    A fine-tuned run brings its classifier; else there is none yet, since it depends on the task and the seed.
    """
    place, revision = cfg.init_from, cfg.init_revision
    if finetuned_config(place):
        params = finetuned_weights(place)
        masks = zeros_as_masks(params, place, cfg.prune.include, cfg.prune.exclude)
        source = Start(model, params, masks, "")
    else:
        source = start(place, revision, model, head="classification", num_labels=2, key=jax.random.key(0))
        params, masks = ({k: x for k, x in tree.items() if k != "classifier"} for tree in (source.params, source.masks))
    if cfg.masks != "none":
        params = apply_masks(params, masks)
    if cfg.masks != "fixed":
        masks = jax.tree.map(lambda _: None, params)
    return Start(model, jax.device_get(params), jax.device_get(masks), source.tokenizer)


def _pretrained_place(cfg: FinetuneConfig) -> tuple[str, str]:
    """(place, revision) of the pre-trained weights that `cfg` starts from, maybe over a fine-tuned run."""
    before = finetuned_config(cfg.init_from)
    return _pretrained_place(before) if before else (cfg.init_from, cfg.init_revision)


def one_run(cfg: FinetuneConfig, task: str, rate: float, seed: int) -> FinetuneConfig:
    """`cfg` for a single run of its grid."""
    return cfg.model_copy(update={"tasks": (task,), "learning_rates": (rate,), "seeds": (seed,)})


def _vocabulary(cfg: FinetuneConfig, shape: ModelConfig) -> tokenizer.Vocabulary:
    origin, revision = _pretrained_place(cfg)
    place = cfg.tokenizer or origin
    if not cfg.tokenizer and is_workdir(origin):
        place = str(Path(workdir_config(origin).data.path).expanduser() / "tokenizer")
    vocabulary = tokenizer.load(place, "" if cfg.tokenizer else revision)
    if vocabulary.size > shape.vocab_size:
        raise ValueError(
            f"tokenizer {place}: {vocabulary.size} pieces do not fit the {shape.vocab_size} rows of init_from = "
            f"{cfg.init_from}; use the tokenizer it was trained with"
        )
    return vocabulary


def _describe(cfg: FinetuneConfig, splits: dict[glue.Task, Splits]) -> None:
    runs = len(cfg.learning_rates) * len(cfg.seeds)
    for row, (train, dev) in splits.items():
        steps = cfg.epochs * -(-len(train) // cfg.batch_size)
        print(
            f"{row.name}: {len(train):,} train, {len(dev):,} dev examples of {train.input_ids.shape[1]} "
            f"tokens; {runs} runs of {steps:,} steps of {cfg.batch_size}"
        )
