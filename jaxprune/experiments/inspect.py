"""Tables about one checkpoint, or about two and what lies between them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprune.analysis import weights
from jaxprune.analysis.heads import head_sparsity
from jaxprune.analysis.mask_distance import mask_distance
from jaxprune.analysis.paths import flat, short_names
from jaxprune.analysis.rank_movement import RANDOM, movement
from jaxprune.config.sections import ModelConfig, PruneConfig
from jaxprune.experiments.mask_origin import told
from jaxprune.experiments.pruning_plan import included
from jaxprune.experiments.weights import kept_model, read_weights, run_of, start_masks, stored_config, there
from jaxprune.models import architecture_named
from jaxprune.models.weights import read_origin
from jaxprune.pruning.masks import pruned_share


class Checkpoint(NamedTuple):
    """Weights on the host, as the model computes with them (0 where pruned), and masks; both {path: array}."""

    model: ModelConfig
    params: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    origin: dict[str, Any]
    """What the model says of where its masks come from."""

    @property
    def prunable(self) -> dict[str, np.ndarray]:
        """The weights that have a mask."""
        return {path: self.params[path] for path in self.masks}

    def masked(self, paths: Iterable[str]) -> "Checkpoint":
        """With masks at all these paths: where there is none, and weights are, all of them are kept."""
        whole = {path: np.ones(self.params[path].shape, bool) for path in paths if path in self.params}
        return self._replace(masks=whole | self.masks)


def load(source: str) -> Checkpoint:
    """Read a workdir (its newest good checkpoint, or the model that a fine-tuning run kept), or a Hugging Face
    directory or hub name, of which only what is in it counts."""
    held, cfg = read_weights(source), stored_config(source)
    prune = there(included(cfg.prune if cfg else PruneConfig(), held.model), held)
    masks = held.masks if held.masks is not None else start_masks(held.params, held, prune)
    kept, values = flat(masks), flat(held.params)
    params = {path: np.where(kept[path], w, 0) if path in kept else w for path, w in values.items()}
    return Checkpoint(held.model, params, kept, _origin(source))


def _origin(source: str) -> dict[str, Any]:
    """What a model says of its masks; nothing of a run that is not finished, or of one of its checkpoints."""
    run, step = run_of(source)
    return {} if step is not None else read_origin(kept_model(run) or source)


def inspect_checkpoint(source: str, *, as_json: bool = False) -> dict[str, Any]:
    """Print and return sparsity per matrix and per head, weight statistics and memory by part of one checkpoint."""
    loaded = load(source)
    rows = [
        {**row, "kept": int(np.count_nonzero(loaded.masks[row["path"]]))}
        for row in weights.moments(loaded.prunable, loaded.masks)
    ]
    size, kept = (sum(row[key] for row in rows) for key in ("size", "kept"))
    record = architecture_named(loaded.model.architecture)
    report = {
        "checkpoint": source,
        "sparsity": pruned_share(kept, size),
        "masks": loaded.origin,
        "matrices": [{**row, "sparsity": pruned_share(row["kept"], row["size"])} for row in rows],
        "heads": {
            group.rpartition("/")[0]: values.tolist()  # `encoder/layer_00/attention`: the layer that holds the heads
            for group, values in head_sparsity(loaded.masks, record.scopes(loaded.model)["head"]).items()
        },
        "memory": weights.memory(loaded.params, record.parts, loaded.masks),
    }
    if as_json:
        _print_json(report)
        return report
    columns = ("size", "sparsity", "mean", "std", "kept_std", "abs_mean")
    _print(
        f"{source}: {report['sparsity']:.6f} of {size:,} prunable weights are 0", "path", columns, report["matrices"]
    )
    if loaded.origin:
        print(f"masks: {told(loaded.origin)}")
    heads = [{"layer": layer, **dict(enumerate(values))} for layer, values in report["heads"].items()]
    _print("sparsity per attention head", "layer", range(loaded.model.num_attention_heads), heads)
    _print("memory by part (weights, biases and LayerNorm)", "part", ("weights", "share", "kept"), report["memory"])
    return report


def diff_checkpoints(a: str, b: str, *, as_json: bool = False) -> dict[str, Any]:
    """Print and return what lies between two checkpoints of one shape, per matrix and over all: mask distance,
    sort-order movement of |w| and cosine of the weights."""
    first, second = load(a), load(b)
    masked = first.masks.keys() | second.masks.keys()
    first, second = first.masked(masked), second.masked(masked)
    apart = mask_distance(first.masks, second.masks)
    moved = movement(first.prunable, second.prunable)
    cosines = [weights.cosine(first.params[path], second.params[path]) for path in first.masks]
    vectors = [np.concatenate([w.reshape(-1) for w in side.prunable.values()]) for side in (first, second)]
    rows = [
        {**row, "movement": move.mean, "movement_std": move.std, "cosine": cosine}
        for row, move, cosine in zip(apart, moved, [*cosines, weights.cosine(*vectors)], strict=True)
    ]
    changed = {name: apart[-1][name] for name in ("regrown", "newly_pruned")}
    origins = {"masks_a": first.origin, "masks_b": second.origin}
    report = {"a": a, "b": b, **origins, "movement_of_random_orders": RANDOM, **changed, "matrices": rows}
    if as_json:
        _print_json(report)
        return report
    columns = ("sparsity_a", "sparsity_b", "hamming", "iou", "ratio", "movement", "cosine")
    _print(f"a = {a}, b = {b}", "path", columns, rows, names={"sparsity_a": "in a", "sparsity_b": "in b"})
    for name, origin in (("a", first.origin), ("b", second.origin)):
        if origin:
            print(f"masks of {name}: {told(origin)}")
    print(f"b keeps {changed['regrown']:,} weights that a prunes, and prunes {changed['newly_pruned']:,} that a keeps")
    print(
        "in a, in b: sparsity; hamming: share of the weights that one side keeps and the\n"
        "other prunes; ratio: that / what independent masks give; iou: kept by both / by\n"
        f"either; movement: in the order of |w|, as a share of all places (random: {RANDOM:.3f})"
    )
    return report


def _print(
    title: str,
    first: str,
    columns: Iterable[Any],
    rows: Sequence[Mapping[Any, Any]],
    names: Mapping[Any, str] | None = None,
) -> None:
    """A table with `names` over its columns; where the terminal is too narrow for whole paths, with short ones."""
    columns = list(columns)
    heads = [first, *((names or {}).get(column, str(column)) for column in columns)]
    cells = [[str(row[first]), *(_cell(row.get(column)) for column in columns)] for row in rows]
    console = Console(width=None if Console().is_terminal else 160, markup=False)
    if sum(max(map(len, column)) + 1 for column in zip(heads, *cells, strict=True)) > console.width:
        short = short_names(line[0] for line in cells)
        cells = [[short[path], *numbers] for path, *numbers in cells]
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(heads[0], overflow="fold")
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _print_json(report: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(report), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
