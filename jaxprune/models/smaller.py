"""Physically smaller models: heads, neurons, layers and rows of the word embeddings that are gone from the arrays."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from jaxprune.config.sections import ModelConfig
from jaxprune.config.tokenizer_files import TOKENIZER_FILES
from jaxprune.models import architecture_named
from jaxprune.models.architecture import Architecture
from jaxprune.models.config_json import json_text, read_json
from jaxprune.models.folder import CARD, copy_with_config, masks_of, read_config, read_folder, with_notes
from jaxprune.models.hub import find_folder
from jaxprune.models.other_files import CONFIG, replaced
from jaxprune.models.paths import layer_name
from jaxprune.models.tensors import original_name, stored, tensor_name
from jaxprune.models.units import count_in, layer_axis
from jaxprune.models.weights import read_origin, read_weights, write_masks, write_weights

_LAYER = re.compile(r"(?<=\.layer\.)\d+(?=\.)")


class Kept(NamedTuple):
    """What stays of a model."""

    cfg: ModelConfig
    """The shape of what stays."""
    layers: tuple[int, ...]
    units: dict[str, dict[str, np.ndarray]]
    """Kind of unit -> layer (`encoder/layer_00`) -> numbers of those that stay."""
    rows: Sequence[int]
    """Ids that stay of the vocabulary, in their new order; empty: all."""
    alive: dict[str, list[int]]
    """Kind of unit -> how many of each layer are not pruned."""


def kept_of(
    cfg: ModelConfig,
    params: Any,
    masks: Any,
    *,
    layers: Sequence[int] = (),
    rows: Sequence[int] = (),
    uneven: bool = False,
) -> Kept:
    """What stays of params: these layers (none named: all), these rows, and units that are not pruned.

    A unit is pruned where its outgoing weights all are, or its incoming ones: it adds exactly 0 then. Pruned is what
    masks say, and 0 where they say nothing. Every layer keeps at least one, and unless `uneven` as many as the one that
    needs most, if it has them: pruned ones, that still add 0.
    """
    layers = tuple(layers) or tuple(range(cfg.num_hidden_layers))
    weights: dict[str, Any] = flatten_dict(params, sep="/")
    known: dict[str, Any] = flatten_dict(masks or {}, sep="/")
    record = architecture_named(cfg.architecture)
    units, alive, changes = {}, {}, {}
    for name, one in record.units.items():
        counts = {layer: count_in(one, cfg, layer) for layer in (f"encoder/{layer_name(i)}" for i in layers)}
        dead = {layer: [np.ones(count, bool), np.ones(count, bool)] for layer, count in counts.items()}
        for side, axes in enumerate((one.incoming, one.outgoing)):
            for path, array in weights.items():
                matched = layer_axis(axes, path)
                if matched and matched[0] in dead:
                    live = known[path] if known.get(path) is not None else np.asarray(array) != 0
                    dead[matched[0]][side] &= ~_by_unit(live, matched[1], counts[matched[0]]).any(1)
        live = {layer: np.flatnonzero(~(sides[0] | sides[1])) for layer, sides in dead.items()}
        alive[name] = [len(numbers) for numbers in live.values()]
        widest = max(1, *alive[name])
        units[name] = {
            layer: _filled(numbers, max(1, len(numbers)) if uneven else min(widest, counts[layer]), counts[layer])
            for layer, numbers in live.items()
        }
        widths = tuple(len(numbers) for numbers in units[name].values())
        changes |= {one.count: widest, one.by_layer: widths if len({*widths}) > 1 else ()}
    if changes.get("num_attention_heads", cfg.num_attention_heads) < cfg.num_attention_heads:
        changes["head_dim"] = cfg.head_width
    changes |= {"num_hidden_layers": len(layers)}
    if rows:
        changes |= {"vocab_size": len(rows), "pad_token_id": rows.index(cfg.pad_token_id)}
    return Kept(cfg.model_copy(update=changes), layers, units, rows, alive)


def write_smaller(
    src: str | Path, directory: str | Path, kept: Kept, tokenizer: Mapping[str, bytes], *, variant: str = ""
) -> None:
    """Write the directory `src` to `directory` with what is `kept` of its model, and weights under masks as 0.

    Tensors keep their names (but for the numbers of layers), types and bits; masks are kept where they still prune
    something. All other files are copied; `tokenizer` has the files of a tokenizer that takes the place of its own.
    """
    before = read_config(src)
    record = architecture_named(before.architecture)
    tensors, masks = read_weights(src, None, variant)[1], masks_of(record, src) or {}
    params = read_folder(src, head=None, variant=variant).params
    paths = {tensor_name(record, path): path for path in flatten_dict(params, sep="/")}
    cut: dict[str, np.ndarray] = {}
    cut_masks: dict[str, np.ndarray] = {}
    zeros: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        original = original_name(record, name)
        path = paths.get(original, "")
        if (array := _cut_leaf(record, kept, path, stored(path, tensor), before)) is None:
            continue
        cut[_new_name(kept, name)] = stored(path, array)
        mask = masks.get(original)
        if mask is None or mask.all():
            continue
        held = _cut_leaf(record, kept, path, stored(path, mask), before)
        if held is not None and not held.all():
            zeros[_new_name(kept, name)] = cut_masks[_new_name(kept, original)] = stored(path, held)
    with replaced(directory) as temporary:
        inner = copy_with_config(find_folder(src, None), temporary, cut.values())
        config = _cut_config(record, kept, read_json(inner / CONFIG), before)
        for name in TOKENIZER_FILES if tokenizer else ():
            (inner / name).unlink(missing_ok=True)
        for name, content in {CONFIG: json_text(config, sort_keys=False).encode(), **tokenizer}.items():
            (inner / name).write_bytes(content)
        card = inner / CARD
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        if (noted := with_notes(text, kept.cfg, directory)) != text:
            card.write_text(noted, encoding="utf-8")
        write_weights(inner, cut, zeros)
        if cut_masks:
            write_masks(inner, cut_masks, read_origin(src))


def _cut_leaf(record: Architecture, kept: Kept, path: str, array: np.ndarray, before: ModelConfig) -> np.ndarray | None:
    """What stays of a leaf in the layout of params; None where nothing does."""
    if (layer := re.match(r"encoder/layer_(\d+)/", path)) and int(layer[1]) not in kept.layers:
        return None
    if kept.rows and path in (record.word_embeddings, "mlm/bias"):
        return array[np.asarray(kept.rows)]
    for name, one in record.units.items():
        if matched := layer_axis(one.axes, path):
            size = array.shape[matched[1]] // count_in(one, before, matched[0])
            places = kept.units[name][matched[0]][:, None] * size + np.arange(size)
            array = np.take(array, places.reshape(-1), matched[1])
    return array


def _new_name(kept: Kept, name: str) -> str:
    """A tensor's name with its layer's new number."""
    return _LAYER.sub(lambda match: str(kept.layers.index(int(match[0]))), name)


def _cut_config(record: Architecture, kept: Kept, config: Mapping[str, Any], before: ModelConfig) -> dict[str, Any]:
    """A config.json with the shape of what stays, and the new ids of its special tokens."""
    old, new = record.config_to_hf(before), record.config_to_hf(kept.cfg)
    changes = {key: value for key, value in new.items() if key not in old or old[key] != value}
    config = {key: value for key, value in config.items() if key not in old or key in new}
    ids = {key: value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    if kept.rows:
        changes |= {key: kept.rows.index(value) for key, value in ids.items() if value in kept.rows}
    return json.loads(json.dumps({**config, **changes}))


def _by_unit(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """An array as (units, values of each)."""
    return np.moveaxis(np.asarray(array), axis, 0).reshape(count, -1)


def _filled(numbers: np.ndarray, width: int, count: int) -> np.ndarray:
    """`width` numbers in order: the given ones and the first of the others."""
    others = np.setdiff1d(np.arange(count), numbers)
    return np.sort(np.concatenate([numbers, others[: width - len(numbers)]]))
