"""The model of a task: what of its start it keeps, how it makes sentence vectors, and the directory that it leaves."""

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.sections import ModelConfig
from jaxprune.data import tokenizer
from jaxprune.data.tasks import Task
from jaxprune.experiments.card import card_of_task
from jaxprune.experiments.mask_origin import origin_of_run
from jaxprune.experiments.program import Blueprint
from jaxprune.experiments.weights import Weights, folder_beside
from jaxprune.files import new_directory
from jaxprune.models import architecture_named
from jaxprune.models.config_json import label_names, read_json
from jaxprune.models.folder import write_folder
from jaxprune.models.model import Pooling
from jaxprune.models.other_files import CONFIG
from jaxprune.models.sentence_folder import vectors_in
from jaxprune.models.tensors import leaf_shapes

log = logging.getLogger("jaxprune")


def pooling_of(cfg: FinetuneConfig) -> Pooling:
    """How sentence vectors come from tokens': as the config says, else the folder of `init_from`, else `mean`."""
    return pooling_beside(cfg.init_from, cfg.init_revision) if cfg.pooling == "auto" else cfg.pooling


def pooling_beside(source: str, revision: str) -> Pooling:
    """How the model at `source` makes sentence vectors, as its folder says; `mean` without one."""
    folder = folder_beside(source, revision)
    return vectors_in(folder).pooling if folder else "mean"


def with_fitting_head(weights: Weights, revision: str, blueprint: Blueprint, labels: tuple[str, ...]) -> Weights:
    """`weights` without a head of another class, or for other labels than `labels` (in this order); which is said."""
    own = _own_head(weights, blueprint)
    if not own:
        return weights
    if misfit := misfit_of(weights, revision, blueprint, labels):
        log.info("%s: %s; a new one is drawn", weights.source, misfit)
        return _without(weights, own)
    log.info("%s: its head for %s is kept", weights.source, ", ".join(labels) or "a score")
    return weights


def misfit_of(weights: Weights, revision: str, blueprint: Blueprint, labels: tuple[str, ...]) -> str:
    """Why the head in `weights` is none for these labels in this order; "" where it is one."""
    folder = folder_beside(weights.source, revision)
    config = read_json(encoder_part(folder) / CONFIG) if folder else {}
    theirs = label_names(config) if folder else ()
    record, classes = architecture_named(blueprint.model.architecture), config.get("architectures") or ()
    if classes and record.classes[blueprint.head] not in classes:
        return f"its head is that of a {classes[0]}"
    unnamed = theirs == tuple(f"LABEL_{i}" for i in range(len(theirs)))
    if theirs == labels or (unnamed and len(theirs) == max(len(labels), 1)):
        return ""
    return f"its head is for {', '.join(theirs) or 'a score'}, this task is about {', '.join(labels) or 'a score'}"


def _own_head(weights: Weights, blueprint: Blueprint) -> Set[str]:
    """The paths in `weights` of a task's head."""
    record = architecture_named(blueprint.model.architecture)
    body = leaf_shapes(record, blueprint.model, head="pretraining").keys()
    whole = leaf_shapes(record, blueprint.model, head=blueprint.head, num_labels=blueprint.num_labels).keys()
    return (whole - body) & flatten_dict(weights.params, sep="/").keys()


def _without(weights: Weights, own: Set[str]) -> Weights:
    """`weights` without the leaves at the paths `own`."""
    rest = {path: value for path, value in flatten_dict(weights.params, sep="/").items() if path not in own}
    masks: dict[Any, Any] = flatten_dict(weights.masks, sep="/") if weights.masks is not None else {}
    kept = unflatten_dict({path: mask for path, mask in masks.items() if path not in own}, sep="/")
    return weights._replace(params=unflatten_dict(rest, sep="/"), masks=kept if masks else None)


def write_model(
    directory: Path,
    cfg: FinetuneConfig,
    blueprint: Blueprint,
    task: Task,
    vocabulary: tokenizer.Vocabulary,
    params: Any,
    masks: Any,
    result: Mapping[str, Any],
) -> None:
    """The Hugging Face directory of a finished run: weights, masks, labels, tokenizer and model card."""
    config: dict[str, Any] = {}
    if task.labels:
        config["id2label"] = {str(i): name for i, name in enumerate(task.labels)}
        config["label2id"] = {name: i for i, name in enumerate(task.labels)}
    most = architecture_named(blueprint.model.architecture).max_tokens(blueprint.model)
    write_folder(
        directory,
        blueprint.model,
        params,
        head=blueprint.head,
        masks=masks,
        origin=origin_of_run(cfg, directory.parent),
        tokenizer=tokenizer.files(vocabulary, max_length=most),
        source=folder_beside(cfg.init_from, cfg.init_revision),
        extra_config=config,
        card=card_of_task(cfg, task, blueprint.pooling, params, masks, result),
        pooling=blueprint.pooling if blueprint.head == "similarity" else None,
    )


def write_tokenizer(vocabulary: tokenizer.Vocabulary, model: ModelConfig, directory: Path) -> None:
    """The tokenizer's files in a directory of their own."""
    most = architecture_named(model.architecture).max_tokens(model)
    with new_directory(directory) as temporary:
        for name, content in tokenizer.files(vocabulary, max_length=most).items():
            (temporary / name).write_bytes(content)
