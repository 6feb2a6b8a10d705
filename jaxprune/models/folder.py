"""Hugging Face directories and hub names: the shape, the weights and the masks of a model, read and written."""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.sections import ModelConfig
from jaxprune.config.tokenizer_files import TOKENIZER_FILES
from jaxprune.errors import UserError
from jaxprune.models import ARCHITECTURES, architecture_named
from jaxprune.models.architecture import Architecture
from jaxprune.models.config_json import config_of, json_text, read_json, with_true_type
from jaxprune.models.hub import find_file, find_folder
from jaxprune.models.model import Head, Params, Pooling
from jaxprune.models.other_files import CONFIG, READERS, copy_other_files, replaced
from jaxprune.models.sentence_folder import write_pooling
from jaxprune.models.sparse_file import SPARSE_WEIGHTS
from jaxprune.models.tensors import (
    CLASSIFIER_BIAS,
    leaf_shapes,
    original_name,
    params_from_tensors,
    params_to_tensors,
    stored,
    tensor_name,
)
from jaxprune.models.weights import MASKS, WEIGHTS, read_masks, read_origin, read_weights, write_masks, write_weights

OVERRIDES = ("dtype", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

CARD = "README.md"
SOURCE_CARD = "SOURCE_README.md"
_FOLLOWS = (WEIGHTS, MASKS, SPARSE_WEIGHTS, *READERS)
"""What is written anew, or is of no use without what is."""
_RELU_NOTE = (
    "This BERT has a ReLU on both sub-layer outputs (`sublayer_relu` in config.json). "
    "jaxprune computes it; transformers loads the weights, leaves the ReLU out and so computes something else.\n"
)
_HEADS_NOTE = (
    "Attention heads were taken out of this model (`head_dim` in config.json). jaxprune computes it; transformers, "
    "where all heads together are as wide as the model, refuses its weights.\n"
)
_UNEVEN_NOTE = (
    "The layers of this model differ in their numbers of heads or neurons (`layer_heads`, `layer_neurons` in "
    "config.json). jaxprune computes it; transformers, where all layers are alike, refuses its weights.\n"
)
_log = logging.getLogger(__name__)


class Folder(NamedTuple):
    """A model directory's content, on the host."""

    model: ModelConfig
    params: Params
    """Float32 numpy arrays."""
    masks: Any
    """The tree of params, a bool array (True = kept) where the directory has a mask and else None; None without any."""
    fresh: tuple[str, ...]
    """Paths that the file lacks, drawn at random."""
    others: tuple[str, ...]
    """Tensors beside the encoder that params do not hold: those of other heads."""


def read_config(path_or_name: str | Path, *, revision: str | None = None) -> ModelConfig:
    """Return the shape that a directory's (or hub model's) `config.json` describes; weights are not read.

    UserError names file, key, value and remedy when it is not a model that one of ARCHITECTURES computes exactly.
    """
    path = find_file(path_or_name, CONFIG, revision)
    if path is None:
        raise UserError(f"{path_or_name}: has no {CONFIG}; give a Hugging Face model directory or hub name")
    raw = read_json(path)
    name = raw.get("model_type")
    if "model_type" not in raw:  # old files name a class alone
        classes = re.findall(r"\b\w+?(?=For|Model)", str(raw.get("architectures")))
        families = {record.classes["pretraining"].split("For")[0]: name for name, record in ARCHITECTURES.items()}
        name = next((families[family] for family in classes if family in families), None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(f"{path}: model_type = {name!r}; supported are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].config_from_hf(raw, str(path))


def read_folder(
    path_or_name: str | Path,
    *,
    head: Head | None,
    num_labels: int = 0,
    key: jax.Array | None = None,
    revision: str | None = None,
    variant: str = "",
    **overrides: Any,
) -> Folder:
    """Return shape, float32 params and masks of a Hugging Face directory or hub name.

    What the file lacks of `head` (and of a pooler) is drawn from `key` (default: seed 0), logged and listed as fresh;
    `head=None` gives what is in the file, whatever its head, and draws nothing. `variant` names other weights beside
    the usual ones: `fp16` those of `model.fp16.safetensors`. `overrides` may set what OVERRIDES lists. UserError for
    anything that is not exactly a model of its own config, naming the key or tensor.
    """
    if unknown := [name for name in overrides if name not in OVERRIDES]:
        raise UserError(f"{unknown[0]}: the checkpoint decides it; only {', '.join(OVERRIDES)} can be overridden")
    cfg = read_config(path_or_name, revision=revision)
    cfg = ModelConfig.model_validate(cfg.model_dump() | overrides)
    record = architecture_named(cfg.architecture)
    path, tensors = read_weights(path_or_name, revision, variant)
    try:
        params, fresh = params_from_tensors(record, tensors, cfg, head=head, num_labels=num_labels, key=key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if fresh:
        _log.info("%s has no %s: drawn at random", path, ", ".join(fresh))
    read = {tensor_name(record, leaf) for leaf in flatten_dict(params, sep="/")}
    named = {name: original_name(record, name) for name in tensors}
    others = tuple(name for name, new in named.items() if not new.startswith(record.prefix) and new not in read)
    masks = masks_of(record, path_or_name, revision, path)
    if masks is None:
        return Folder(cfg, params, None, fresh, others)
    for name in masks.keys() - {*named.values()}:
        raise UserError(f"{path_or_name}: has a mask of {name}, but not that tensor; write the directory again")
    tree: dict[Any, Any] = flatten_dict(params, sep="/")
    for leaf, array in tree.items():
        mask = masks.get(tensor_name(record, leaf))
        tree[leaf] = None if mask is None else stored(leaf, mask)
        if mask is not None and tree[leaf].shape != array.shape:
            raise UserError(f"{path_or_name}: the mask of {leaf} has another shape; write the directory again")
    return Folder(cfg, params, unflatten_dict(tree, sep="/"), fresh, others)


def write_folder(
    directory: str | Path,
    cfg: ModelConfig,
    params: Params,
    *,
    head: Head,
    masks: Any = None,
    origin: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Mapping[str, bytes] | None = None,
    source: Path | None = None,
    extra_config: Mapping[str, Any] | None = None,
    card: str = "",
    pooling: Pooling | None = None,
) -> None:
    """Write config, weights, masks and the tokenizer's files; `transformers.AutoModelFor...` loads the directory.

    Weights whose mask is False are written as +0.0; all others are bit-equal. `origin` says where the masks come from.
    `tokenizer` is a directory to copy TOKENIZER_FILES from, or what its files hold. `source` is the directory that the
    model comes from: its other files go along (pooling modules, licence, ...; not its tokenizer where `tokenizer` is
    given), and the keys of its config.json that do not concern the shape; `extra_config` has such keys of the caller's.
    `card` becomes README.md; the source's becomes SOURCE_README.md, unless it has one. `pooling` is how the model makes
    sentence vectors, where it was trained to: sentence-transformers reads it from modules beside the weights. The
    directory is whole under its name or absent; of one that is there already, files that are not written stay.
    UserError when params do not fit `cfg` and `head`, or are not finite.
    """
    record = architecture_named(cfg.architecture)
    tensors, kept = params_to_tensors(record, params), params_to_tensors(record, masks or {})
    for name in kept:
        if name not in tensors or kept[name].shape != tensors[name].shape:
            raise UserError(f"{name}: has a mask that fits no tensor of the params; make masks of these params")
    bias = tensor_name(record, CLASSIFIER_BIAS)
    labels = tensors[bias].size if bias in tensors else 0
    classes = labels if head in ("classification", "multi_label") else 0
    abstract = leaf_shapes(record, cfg, head=head, num_labels=classes)
    shapes = {
        tensor_name(record, path): leaf.shape[::-1] if path.endswith("/kernel") else leaf.shape
        for path, leaf in abstract.items()
    }
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise UserError(
            f"{name}: {'not a' if name in tensors else 'missing'} tensor of {record.name} with head = {head!r}"
        )
    for name, array in tensors.items():
        if array.shape != shapes[name] or array.dtype != np.float32:
            raise UserError(f"{name}: {array.dtype} {array.shape}, but the config asks for float32 {shapes[name]}")
        if not np.isfinite(array).all():
            raise UserError(f"{name}: has NaN or infinite values; not written")
    files = _tokenizer_files(tokenizer)
    theirs = read_json(encoder_part(source) / CONFIG) if source else {}
    config = config_of(record, cfg, head, labels, source=theirs, own=extra_config or {})
    card = with_notes(card, cfg, directory)
    with replaced(directory) as temporary:
        if source:
            leave = (CARD, CONFIG, *(TOKENIZER_FILES if files else ()))
            copy_other_files(source, temporary, leave=leave, whole=True)
            if (source / CARD).is_file() and not (temporary / SOURCE_CARD).exists():
                shutil.copyfile(source / CARD, temporary / SOURCE_CARD)
        for name, content in (files | {CONFIG: json_text(config).encode(), CARD: card.encode()}).items():
            if content:
                (temporary / name).write_bytes(content)
        if pooling:
            write_pooling(temporary, pooling, cfg.hidden_size)
        write_weights(temporary, tensors, kept)
        if kept:
            write_masks(temporary, kept, origin)


def write_masked(
    src: str | Path,
    directory: str | Path,
    masks: Any,
    values: Any = None,
    *,
    origin: Mapping[str, Any] | None = None,
    revision: str | None = None,
    variant: str = "",
) -> None:
    """Write the checkpoint `src` to `directory` with +0.0 where a mask is False; all else stays as it was.

    Tensors keep their names, types and bits, in one file whatever the layout of `src`, in the directory that held them;
    every copy of a tied matrix gets the same zeros. All other files are copied, but for those that hold the weights in
    other forms; config.json is corrected where it names another type than the weights have. `masks` is a tree like
    params, of bool arrays or None, `values` one of new values for leaves that have masks; masks that `src` has for
    other tensors are carried over. `origin` says where the masks come from; without it what `src` says of its own
    stays. UserError when a mask belongs to no tensor of the checkpoint.
    """
    record = architecture_named(read_config(src, revision=revision).architecture)
    tensors = read_weights(src, revision, variant)[1]
    kept, zeros = masks_of(record, src, revision) or {}, {}
    new: dict[str, Any] = flatten_dict(values, sep="/") if values is not None else {}
    originals = {name: original_name(record, name) for name in tensors}
    for leaf, mask in flatten_dict(masks, sep="/").items():
        if mask is None:
            continue
        name = tensor_name(record, leaf)
        kept[name] = stored(leaf, mask)
        copies = [copy for copy, original in originals.items() if original == name]
        if not copies or any(tensors[copy].shape != kept[name].shape for copy in copies):
            raise UserError(f"{src}: has no tensor for {leaf} of its mask's shape; leave it out with --exclude")
        zeros |= dict.fromkeys(copies, kept[name])
        if leaf in new:
            tensors |= {copy: np.ascontiguousarray(stored(leaf, new[leaf]), tensors[copy].dtype) for copy in copies}
    with replaced(directory) as temporary:
        inner = copy_with_config(find_folder(src, revision), temporary, tensors.values())
        write_weights(inner, tensors, zeros)
        if kept:
            write_masks(inner, kept, origin or read_origin(src, revision))


def masks_of(
    record: Architecture, src: str | Path, revision: str | None = None, weights: Path | None = None
) -> dict[str, np.ndarray] | None:
    """The masks that lie beside a checkpoint, under today's names of its tensors; None without any."""
    masks = read_masks(src, revision, weights)
    return None if masks is None else {original_name(record, name): mask for name, mask in masks.items()}


def copy_with_config(folder: Path, target: Path, arrays: Iterable[np.ndarray]) -> Path:
    """Copy what holds no weights to `target`, and let config.json name a type that the weights have.

    Returns the directory in `target` where the weights belong.
    """
    part = encoder_part(folder)
    config = with_true_type(read_json(part / CONFIG), arrays)
    if left := [name for name in copy_other_files(folder, target) if Path(name).name not in _FOLLOWS]:
        _log.info("%s: has its weights in %s alone; left behind: %s", target, WEIGHTS, ", ".join(left))
    inner = target / part.relative_to(folder)
    if config is not None:
        (inner / CONFIG).write_text(json_text(config, sort_keys=False), encoding="utf-8")
    return inner


def with_notes(card: str, cfg: ModelConfig, directory: str | Path) -> str:
    """A model card that says what transformers does not compute of the model, which is logged too."""
    notes = ((cfg.sublayer_relu, _RELU_NOTE), (cfg.head_dim, _HEADS_NOTE), (not cfg.even, _UNEVEN_NOTE))
    for applies, note in notes:
        if applies and note not in card:
            card = f"{card}\n{note}" if card else note
            _log.warning("%s: %s", directory, note.strip())
    return card


def _tokenizer_files(tokenizer: str | Path | Mapping[str, bytes] | None) -> dict[str, bytes]:
    if tokenizer is None or isinstance(tokenizer, Mapping):
        return dict(tokenizer or {})
    paths = [path for name in TOKENIZER_FILES if (path := Path(tokenizer).expanduser() / name).is_file()]
    if not paths:
        raise UserError(f"{tokenizer}: has none of {', '.join(TOKENIZER_FILES)}; give the tokenizer's directory")
    return {path.name: path.read_bytes() for path in paths}
