"""What `masks.safetensors` says of where its masks come from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxprune.config import FinetuneConfig, PretrainConfig
from jaxprune.config.load import to_yaml
from jaxprune.config.sections import PruneConfig
from jaxprune.experiments.provenance import short_path
from jaxprune.training.records import plain_thresholds
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


def origin_of_command(prune: PruneConfig, parent: str, thresholds: Any) -> dict[str, Any]:
    """Of `jaxprune prune`, whose last prune had these thresholds."""
    return _origin(prune, parent) | {"sparsity": prune.sparsity, "thresholds": plain_thresholds(thresholds)}


def told(origin: Mapping[str, Any]) -> str:
    """An origin in a line; what is none is left out."""
    words = {key: value for key, value in origin.items() if isinstance(value, str)}
    others = origin.get("masks_from")
    others = [name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    how = ", ".join(words[key] for key in _HOW if key in words)
    when = f"step {origin['step']}" if isinstance(origin.get("step"), int) else ""
    config = f"config {words['config'][:8]}" if "config" in words else ""
    masks = f"masks of {', '.join(others)}" if others else ""
    parent = f"from {words['parent']}" if words.get("parent") else ""
    return "; ".join(filter(None, (how, when, parent, masks, config)))


def _origin(prune: PruneConfig | None, parent: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    how = {key: getattr(prune, key) for key in _HOW} if prune else {}
    return {**how, "parent": short_path(parent.rstrip("/")), "masks_from": [short_path(n.rstrip("/")) for n in others]}
