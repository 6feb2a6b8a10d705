"""Hugging Face directories and hub names: the shape, the weights and the masks of a model, read and written."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.files import new_directory
from jaxprune.models import ARCHITECTURES, architecture
from jaxprune.models.architecture import Architecture, Head, Params
from jaxprune.models.hub import find_file
from jaxprune.models.tensors import original_name, params_from_tensors, params_to_tensors, stored, tensor_name
from jaxprune.models.weights import MASKS, OTHER_FORMATS, read_masks, read_weights, write_masks, write_weights

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OVERRIDES = ("dtype", "hidden_dropout_prob", "attention_probs_dropout_prob")

_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 10_000_000
_RELU_NOTE = (
    "This BERT has a ReLU on both sub-layer outputs (`sublayer_relu` in config.json). "
    "jaxprune computes it; transformers loads the weights, leaves the ReLU out and so computes something else.\n"
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


def read_config(path_or_name: str | Path, *, revision: str | None = None) -> ModelConfig:
    """Return the shape that a directory's (or hub model's) `config.json` describes; weights are not read.

    UserError names file, key, value and remedy when it is not a model that one of ARCHITECTURES computes exactly.
    """
    path = find_file(path_or_name, _CONFIG, revision)
    if path is None:
        raise UserError(f"{path_or_name}: has no {_CONFIG}; give a Hugging Face model directory or hub name")
    raw = _read_json(path)
    name = raw.get("model_type")
    if "model_type" not in raw:  # old files name a class alone
        classes = re.findall(r"\b\w+?(?=For)", str(raw.get("architectures")))
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
    **overrides: Any,
) -> Folder:
    """Return shape, float32 params and masks of a Hugging Face directory or hub name.

    What the file lacks of `head` (and of a pooler) is drawn from `key` (default: seed 0), logged and listed as fresh;
    `head=None` gives what is in the file, whatever its head, and draws nothing. `overrides` may set `dtype`,
    `hidden_dropout_prob` and `attention_probs_dropout_prob`. UserError for anything that is not exactly a model of its
    own config, naming the key or tensor.
    """
    if unknown := [name for name in overrides if name not in OVERRIDES]:
        raise UserError(f"{unknown[0]}: the checkpoint decides it; only {', '.join(OVERRIDES)} can be overridden")
    cfg = read_config(path_or_name, revision=revision)
    cfg = ModelConfig.model_validate(cfg.model_dump() | overrides)
    record = architecture(cfg.architecture)
    path, tensors = read_weights(path_or_name, revision)
    try:
        params, fresh = params_from_tensors(record, tensors, cfg, head=head, num_labels=num_labels, key=key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if fresh:
        _log.info("%s has no %s: drawn at random", path, ", ".join(fresh))
    masks = read_masks(path_or_name, revision)
    if masks is None:
        return Folder(cfg, params, None, fresh)
    for name in masks.keys() - {original_name(record, name) for name in tensors}:
        raise UserError(f"{path_or_name}: has a mask of {name}, but not that tensor; write the directory again")
    tree: dict[Any, Any] = flatten_dict(params, sep="/")
    for leaf, array in tree.items():
        mask = masks.get(tensor_name(record, leaf))
        tree[leaf] = None if mask is None else stored(leaf, mask)
        if mask is not None and tree[leaf].shape != array.shape:
            raise UserError(f"{path_or_name}: the mask of {leaf} has another shape; write the directory again")
    return Folder(cfg, params, unflatten_dict(tree, sep="/"), fresh)


def write_folder(
    directory: str | Path,
    cfg: ModelConfig,
    params: Params,
    *,
    head: Head,
    masks: Any = None,
    tokenizer: str | Path | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Write config, weights, masks and the tokenizer's files; `transformers.AutoModelFor...` loads the directory.

    Weights whose mask is False are written as +0.0; all others are bit-equal. `tokenizer` is a directory to copy
    TOKENIZER_FILES from. `extra_config` is carried into `config.json` (a source checkpoint's own, label names) where it
    does not concern the shape. The directory is whole under its name or absent; of one that is there already, files
    that are not written stay. UserError when params do not fit `cfg` and `head`, or are not finite.
    """
    record = architecture(cfg.architecture)
    tensors, kept = params_to_tensors(record, params), params_to_tensors(record, masks or {})
    for name in kept:
        if name not in tensors or kept[name].shape != tensors[name].shape:
            raise UserError(f"{name}: has a mask that fits no tensor of the params; make masks of these params")
    labels = tensors["classifier.bias"].size if "classifier.bias" in tensors else 0
    init = record.build(cfg, head=head, num_labels=labels if head == "classification" else 0).init
    abstract: dict[Any, Any] = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
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
    sources = [Path(tokenizer).expanduser() / name for name in TOKENIZER_FILES] if tokenizer is not None else []
    sources = [source for source in sources if source.is_file()]
    if tokenizer is not None and not sources:
        raise UserError(f"{tokenizer}: has none of {', '.join(TOKENIZER_FILES)}; give the tokenizer's directory")
    config = _config(record, cfg, head, labels, extra_config or {})
    with _replaced(directory) as temporary:
        for source in sources:
            shutil.copyfile(source, temporary / source.name)
        if cfg.sublayer_relu:
            (temporary / "README.md").write_text(_RELU_NOTE, encoding="utf-8")
            _log.warning("%s: %s", directory, _RELU_NOTE.strip())
        (temporary / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_weights(temporary, {name: _masked(array, kept.get(name)) for name, array in tensors.items()})
        if kept:
            write_masks(temporary, kept)


def write_masked(src: str | Path, directory: str | Path, masks: Any, *, revision: str | None = None) -> None:
    """Write the checkpoint `src` to `directory` with +0.0 where a mask is False; all else stays as it was.

    Tensors keep their names, types and bits, every copy of a tied matrix gets the same zeros, and other files are
    copied (of a hub name: config and tokenizer). `masks` is a tree like params, of bool arrays or None; masks that
    `src` has for other tensors are carried over. UserError when a mask belongs to no tensor of the checkpoint.
    """
    record = architecture(read_config(src, revision=revision).architecture)
    _, tensors = read_weights(src, revision)
    kept = read_masks(src, revision) or {}
    originals = {name: original_name(record, name) for name in tensors}
    for path, mask in flatten_dict(masks, sep="/").items():
        if mask is None:
            continue
        name = tensor_name(record, path)
        kept[name] = stored(path, mask)
        copies = [copy for copy, original in originals.items() if original == name]
        if not copies or any(tensors[copy].shape != kept[name].shape for copy in copies):
            raise UserError(f"{src}: has no tensor for {path} of its mask's shape; leave it out with --exclude")
        tensors |= {copy: _masked(tensors[copy], kept[name]) for copy in copies}
    source = Path(src).expanduser()
    with _replaced(directory) as temporary:
        if source.is_dir():
            _copy_files(source, temporary)
        else:
            for file in (find_file(src, name, revision) for name in (_CONFIG, *TOKENIZER_FILES)):
                if file:
                    shutil.copyfile(file, temporary / file.name)
        write_weights(temporary, tensors)
        if kept:
            write_masks(temporary, kept)


@contextmanager
def _replaced(directory: str | Path) -> Iterator[Path]:
    """A temporary directory that takes the place of a new one, or of a model directory whose other files it keeps."""
    directory = Path(directory).expanduser()
    if directory.exists() and not (directory / _CONFIG).is_file() and (directory.is_file() or any(directory.iterdir())):
        raise UserError(f"{directory}: holds something that is no model; name a new directory")
    with new_directory(directory) as temporary:
        if directory.is_dir():
            shutil.copytree(directory, temporary, symlinks=True, dirs_exist_ok=True)
            (temporary / MASKS).unlink(missing_ok=True)
        yield temporary


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a model directory that hold no weights, and the modules that sentence-transformers adds."""
    for path in source.iterdir():
        if path.is_dir() and re.fullmatch(r"\d+_\w+", path.name):
            shutil.copytree(path, target / path.name, copy_function=shutil.copyfile, dirs_exist_ok=True)
        elif path.is_file() and path.name[0] != "." and not path.name.endswith((".safetensors", *OTHER_FORMATS)):
            shutil.copyfile(path, target / path.name)


def _masked(array: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    return array if kept is None else np.where(kept, array, np.zeros((), array.dtype))


def _config(
    record: Architecture, cfg: ModelConfig, head: Head, labels: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    ours = ("torch_dtype", "dtype", "sublayer_relu")
    config: dict[str, Any] = {key: value for key, value in extra.items() if key not in ours}
    config |= record.config_to_hf(cfg) | {"dtype": "float32", "model_type": record.name}
    config |= {"architectures": [record.classes[head]], "tie_word_embeddings": True}
    if labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        if len(config.get("id2label") or {}) != labels:
            config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
        config["problem_type"] = "regression" if head == "regression" else "single_label_classification"
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a {_CONFIG} ({error}); fetch the file again") from None
    return raw
