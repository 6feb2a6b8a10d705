"""Tables about one checkpoint, or about two and what lies between them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprune.analysis import weights
from jaxprune.analysis.churn import churn
from jaxprune.analysis.distance import distance
from jaxprune.analysis.heads import head_sparsity
from jaxprune.analysis.leaves import flat
from jaxprune.analysis.movement import RANDOM, movement
from jaxprune.config import ModelConfig
from jaxprune.experiments.start import is_workdir, restore_state, zeros_as_masks
from jaxprune.models.hf import load_hf


class Checkpoint(NamedTuple):
    """Weights on the host, as the model computes with them (0 where pruned), and masks; both {path: array}."""

    model: ModelConfig
    params: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]

    @property
    def prunable(self) -> dict[str, np.ndarray]:
        """The weights that have a mask."""
        return {path: self.params[path] for path in self.masks}


def load(place: str) -> Checkpoint:
    """Read a pre-training workdir (its newest good checkpoint), or a Hugging Face directory or hub name, where exact
    zeros count as pruned."""
    if is_workdir(place):
        cfg, state = restore_state(place)
        model, params, masks = cfg.model, state.params, state.masks
    else:
        model, params = load_hf(place, head="pretraining")
        masks = zeros_as_masks(params, place)
    kept = flat(jax.device_get(masks))
    values = flat(jax.device_get(params))
    return Checkpoint(model, {p: np.where(kept[p], w, 0) if p in kept else w for p, w in values.items()}, kept)


def inspect_checkpoint(place: str, *, as_json: bool = False) -> dict[str, Any]:
    """Print and return sparsity per matrix and per head, weight statistics and memory by part of one checkpoint."""
    loaded = load(place)
    rows = [
        {**row, "kept": int(np.count_nonzero(loaded.masks[row["path"]]))}
        for row in weights.moments(loaded.prunable, loaded.masks)
    ]
    size, kept = (sum(row[key] for row in rows) for key in ("size", "kept"))
    found = {
        "checkpoint": place,
        "sparsity": (size - kept) / size,
        "matrices": [{**row, "sparsity": 1 - row["kept"] / row["size"]} for row in rows],
        "heads": {
            layer: values.tolist()
            for layer, values in head_sparsity(loaded.masks, loaded.model.num_attention_heads).items()
        },
        "memory": weights.memory(loaded.params, loaded.masks),
    }
    if as_json:
        _print_json(found)
        return found
    columns = ("size", "kept", "sparsity", "mean", "std", "kept_std", "abs_mean")
    _print(f"{place}: {found['sparsity']:.6f} of {size:,} prunable weights are 0", "path", columns, found["matrices"])
    heads = [{"layer": layer, **dict(enumerate(values))} for layer, values in found["heads"].items()]
    _print("sparsity per attention head", "layer", range(loaded.model.num_attention_heads), heads)
    _print("memory by part (weights, biases and LayerNorm)", "part", ("weights", "share", "kept"), found["memory"])
    return found


def diff_checkpoints(a: str, b: str, *, as_json: bool = False) -> dict[str, Any]:
    """Print and return what lies between two checkpoints of one shape, per matrix and over all: mask distance,
    sort-order movement of |w| and cosine of the weights."""
    first, second = load(a), load(b)
    apart = distance(first.masks, second.masks)
    moved = movement(first.prunable, second.prunable)
    cosines = [weights.cosine(first.params[path], second.params[path]) for path in first.masks]
    vectors = [np.concatenate([w.reshape(-1) for w in side.prunable.values()]) for side in (first, second)]
    rows = [
        {**row, "movement": move.mean, "movement_std": move.std, "cosine": cosine}
        for row, move, cosine in zip(apart, moved, [*cosines, weights.cosine(*vectors)], strict=True)
    ]
    (changed,) = churn([(0, first.masks), (1, second.masks)])
    changed = {name: changed[name] for name in ("regrown", "newly_pruned")}
    found = {"a": a, "b": b, "movement_of_random_orders": RANDOM, **changed, "matrices": rows}
    if as_json:
        _print_json(found)
        return found
    columns = ("sparsity_a", "sparsity_b", "hamming", "iou", "ratio", "movement", "movement_std", "cosine")
    _print(f"a = {a}, b = {b}", "path", columns, rows)
    print(f"b keeps {changed['regrown']:,} weights that a prunes, and prunes {changed['newly_pruned']:,} that a keeps")
    print(
        "hamming: share of the weights that one side keeps and the other prunes; ratio: that / what independent masks\n"
        "give; iou: kept by both / by either; movement: in the order of |w|, as a share of all places "
        f"(random: {RANDOM:.3f})"
    )
    return found


def _print(title: str, first: str, columns: Iterable[Any], rows: Sequence[Mapping[Any, Any]]) -> None:
    columns = list(columns)
    table = Table(first, title=title, title_justify="left")
    for name in columns:
        table.add_column(str(name), justify="right")
    for row in rows:
        table.add_row(str(row[first]), *(_cell(row.get(name)) for name in columns))
    Console(width=None if Console().is_terminal else 160).print(table)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _print_json(found: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(found), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
