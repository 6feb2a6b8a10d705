"""What `masks.safetensors` says of where its masks come from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.load import to_yaml
from jaxprune.config.sections import PruneConfig
from jaxprune.experiments.provenance import short_path
from jaxprune.training.workdir import read_records

_HOW = ("criterion", "structure", "scope", "method", "distribution")


def origin_of_run(cfg: PretrainConfig | FinetuneConfig, workdir: Path) -> dict[str, Any]:
    """Of a finished run: how its last prune chose, at which step and thresholds, the config, and what it began with.

    A run that prunes nothing itself has masks that it began with.
    """
    records = read_records(workdir / "prunes.jsonl")
    last = {key: records[-1][key] for key in ("step", "sparsity", "thresholds")} if records else {}
    config = hashlib.sha256(to_yaml(cfg).encode()).hexdigest()
    return _origin(cfg.prune if records else None, cfg.init_from, cfg.masks_from) | last | {"config": config}


def origin_of_command(prune: PruneConfig, parent: str) -> dict[str, Any]:
    """Of `jaxprune prune`."""
    return _origin(prune, parent) | {"sparsity": prune.sparsity}


def told(origin: Mapping[str, Any]) -> str:
    """An origin in a line."""
    how = ", ".join(origin[key] for key in _HOW if key in origin)
    when = f"step {origin['step']}" if "step" in origin else ""
    config = f"config {origin['config'][:8]}" if "config" in origin else ""
    masks = f"masks of {', '.join(origin['masks_from'])}" if origin.get("masks_from") else ""
    parent = f"from {origin['parent']}" if origin.get("parent") else ""
    return "; ".join(filter(None, (how, when, parent, masks, config)))


def _origin(prune: PruneConfig | None, parent: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    how = {key: getattr(prune, key) for key in _HOW} if prune else {}
    return {**how, "parent": short_path(parent.rstrip("/")), "masks_from": [short_path(n.rstrip("/")) for n in others]}
