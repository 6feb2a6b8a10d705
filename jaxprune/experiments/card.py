"""The model card of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from flax.traverse_util import flatten_dict

import jaxprune
from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.data.tasks import Task
from jaxprune.experiments.provenance import short_path
from jaxprune.models import architecture_named
from jaxprune.models.architecture import encoder_matrices
from jaxprune.reports.model_card import model_card

_PATHS = ("init_from", "masks_from", "tokenizer", "glue", "path", "source", "train", "dev", "dataset")
"""Keys of a run's config whose texts may be paths."""


def card_of_task(
    cfg: FinetuneConfig, task: Task, pooling: str, params: Any, masks: Any, result: Mapping[str, Any]
) -> str:
    """Of a fine-tuned model."""
    return _card(
        cfg,
        params,
        masks,
        title=f"{task.name}, fine-tuned from {_short(cfg.init_from)}",
        command="finetune",
        kind=task.kind,
        labels=task.labels,
        pooling=pooling,
        scored=f"dev set ({result['dev_examples']:,} examples)",
        scores={name: result[name] for name in task.metrics},
        trained=f"{result['train_examples']:,} examples for {result['steps']:,} steps",
        learning_rate=result["learning_rate"],
        seed=result["seed"],
    )


def card_of_pretraining(cfg: PretrainConfig, params: Any, masks: Any, result: Mapping[str, Any]) -> str:
    """Of a pre-trained model."""
    return _card(
        cfg,
        params,
        masks,
        title=f"Pre-trained on from {_short(cfg.init_from)}" if cfg.init_from else "Pre-trained from scratch",
        command="pretrain",
        kind="pretraining",
        labels=(),
        pooling="",
        scored="dev set",
        scores=result["dev"],
        trained=f"{result['tokens']:,} tokens in {result['steps']:,} steps",
        learning_rate=cfg.optimizer.learning_rate,
        seed=cfg.seed,
    )


def _card(cfg: PretrainConfig | FinetuneConfig, params: Any, masks: Any, **more: Any) -> str:
    record, prune = architecture_named(cfg.model.architecture), cfg.prune
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    sizes = {path: leaf.size for path, leaf in leaves.items()}
    held: dict[str, Any] = flatten_dict(masks, sep="/")
    zeros = {path: int(np.count_nonzero(~np.asarray(mask))) for path, mask in held.items() if mask is not None}
    matrices = encoder_matrices(record, sizes)
    bases = {"the prunable weights": zeros, "the encoder's matrices": matrices, "all weights": sizes}
    of = (" and " if cfg.masks_kept_by == "all" else " or ").join(map(_short, cfg.masks_from or (cfg.init_from,)))
    how = f"The masks are those of {of}, held while it was trained." if any(zeros.values()) else ""
    if prune.prunes:
        how = f"Pruned while it was trained, by {prune.criterion}, scope {prune.scope}, structure {prune.structure}."
    return model_card(
        architecture=record.name,
        bases={
            name: (sum(zeros.get(path, 0) for path in paths), sum(sizes[path] for path in paths))
            for name, paths in bases.items()
        },
        how=how,
        version=jaxprune.__version__,
        config=yaml.safe_dump(_published(cfg.model_dump(mode="json")), sort_keys=False, allow_unicode=True).strip(),
        **more,
    )


def _published(value: Any, key: str = "") -> Any:
    """What a config holds, without the folders of this machine: cards are published."""
    if isinstance(value, dict):
        return {name: _published(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_published(part, key) for part in value]
    return _short(value) if key in _PATHS and isinstance(value, str) else value


def _short(source: str) -> str:
    return short_path(source.rstrip("/")) if source.startswith("/") else source
