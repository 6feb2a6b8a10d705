"""Hugging Face directories and hub names: read and write `config.json` and `model.safetensors` of BERT."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pydantic
from flax.traverse_util import flatten_dict

from jaxprune.config.sections import ModelConfig
from jaxprune.models.bert import Head, Params, bert
from jaxprune.models.hf_tensors import canonical_name, hf_name, params_from_hf, params_to_hf

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ARCHITECTURES: dict[Head, str] = {
    "pretraining": "BertForPreTraining",
    "classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
}
OVERRIDES = ("dtype", "hidden_dropout_prob", "attention_probs_dropout_prob")

_WEIGHTS, _LEGACY = "model.safetensors", "pytorch_model.bin"
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_MUST_BE = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
}
_MAX_CONFIG_BYTES = 10_000_000
_RELU_NOTE = (
    "This BERT has a ReLU on both sub-layer outputs (`sublayer_relu` in config.json). "
    "jaxprune computes it; transformers loads the weights, leaves the ReLU out and so computes something else.\n"
)
_log = logging.getLogger(__name__)


def read_hf_config(path_or_name: str | Path, *, revision: str | None = None) -> ModelConfig:
    """Return the shape that a directory's (or hub model's) `config.json` describes; weights are not read.

    ValueError names file, key, value and remedy when it is not a BERT that `models/bert.py` computes exactly.
    """
    path = _find(path_or_name, "config.json", revision)
    if path is None:
        raise ValueError(f"{path_or_name}: has no config.json; give a Hugging Face model directory or hub name")
    raw = _read_json(path)
    for key, value in _MUST_BE.items():
        if raw.get(key, value) != value:
            raise ValueError(f"{path}: {key} = {raw[key]!r}; only BERT with {key} = {value!r} is supported")
    if "model_type" not in raw and "BertFor" not in str(raw.get("architectures")):
        raise ValueError(f"{path}: has no model_type; only model_type = 'bert' is supported")
    act = raw.get("hidden_act", "gelu")
    if act != "gelu" and act not in _TANH_GELU:
        raise ValueError(f"{path}: hidden_act = {act!r}; supported are gelu, {', '.join(_TANH_GELU)}")
    if missing := [key for key in _REQUIRED if key not in raw]:
        raise ValueError(f"{path}: has no {', '.join(missing)}; a BERT config.json states its shape")
    fields = {key: raw[key] for key in ModelConfig.model_fields if raw.get(key) is not None and key != "dtype"}
    try:
        return ModelConfig.model_validate(fields | {"hidden_act": "gelu" if act == "gelu" else "gelu_new"})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: " if first["loc"] else ""
        raise ValueError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}; fix the file") from None


def load_hf(
    path_or_name: str | Path,
    *,
    head: Head,
    num_labels: int = 0,
    key: jax.Array | None = None,
    revision: str | None = None,
    **overrides: Any,
) -> tuple[ModelConfig, Params]:
    """Return config and float32 params (numpy, on the host) of a Hugging Face directory or hub name.

    `overrides` may set `dtype`, `hidden_dropout_prob` and `attention_probs_dropout_prob`. What the checkpoint lacks of
    pooler and head is drawn from `key` (default: seed 0) and logged; `params_from_hf` returns that list.
    `pytorch_model.bin` is read by `torch.load(weights_only=True)` alone; other pickles and msgpack are refused by name.
    Raises ValueError for anything that is not exactly a BERT of its own config, naming the key or tensor.
    """
    if unknown := [name for name in overrides if name not in OVERRIDES]:
        raise ValueError(f"{unknown[0]}: the checkpoint decides it; only {', '.join(OVERRIDES)} can be overridden")
    cfg = read_hf_config(path_or_name, revision=revision)
    cfg = ModelConfig.model_validate(cfg.model_dump() | overrides)
    path, tensors = _read_tensors(path_or_name, revision)
    try:
        params, fresh = params_from_hf(tensors, cfg, head=head, num_labels=num_labels, key=key)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if fresh:
        _log.info("%s has no %s: drawn at random", path, ", ".join(fresh))
    return cfg, params


def save_hf(
    directory: str | Path,
    cfg: ModelConfig,
    params: Params,
    *,
    head: Head,
    tokenizer: str | Path | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files; `transformers.AutoModelFor...` loads them.

    `tokenizer` is a directory to copy TOKENIZER_FILES from. `extra_config` is carried into `config.json` (a source
    checkpoint's own, label names) where it does not concern the shape. Kept values are bit-equal, zeros stay zeros.
    Each file is complete under its name or absent. ValueError when params do not fit `cfg` and `head`, or are not
    finite.
    """
    tensors = params_to_hf(params)
    labels = tensors["classifier.bias"].size if "classifier.bias" in tensors else 0
    classes = labels if head == "classification" else 0
    shapes = params_to_hf(_zeros_like(jax.eval_shape(bert(cfg, head=head, num_labels=classes).init, jax.random.key(0))))
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise ValueError(f"{name}: {'not a' if name in tensors else 'missing'} tensor of BERT with head = {head!r}")
    for name, array in tensors.items():
        if array.shape != shapes[name].shape or array.dtype != np.float32:
            raise ValueError(
                f"{name}: {array.dtype} {array.shape}, but the config asks for float32 {shapes[name].shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: has NaN or infinite values; not written")
    sources = [Path(tokenizer).expanduser() / name for name in TOKENIZER_FILES] if tokenizer is not None else []
    sources = [source for source in sources if source.is_file()]
    if tokenizer is not None and not sources:
        raise ValueError(f"{tokenizer}: has none of {', '.join(TOKENIZER_FILES)}; give the tokenizer's directory")
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.resolve() != (directory / source.name).resolve():
            shutil.copyfile(source, directory / source.name)
    _save_tensors(directory, tensors)
    if cfg.sublayer_relu:
        (directory / "README.md").write_text(_RELU_NOTE, encoding="utf-8")
        _log.warning("%s: %s", directory, _RELU_NOTE.strip())
    temporary = directory / ".config.json.tmp"
    text = json.dumps(_hf_config(cfg, head, labels, extra_config or {}), indent=2, sort_keys=True)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(directory / "config.json")


def save_masked(
    src: str | Path, directory: str | Path, masks: Mapping[str, Any], *, revision: str | None = None
) -> None:
    """Write the checkpoint `src` to `directory` with +0.0 where a mask is False; all else stays as it was.

    Tensors keep their names, types and bits; config and tokenizer files are copied. `masks` is a tree like params, of
    bool arrays or None. ValueError when a mask belongs to no tensor of the checkpoint.
    """
    _, tensors = _read_tensors(src, revision)
    names = {canonical_name(name): name for name in tensors}
    for path, mask in flatten_dict(masks, sep="/").items():
        if mask is None:
            continue
        name = names.get(hf_name(path))
        if name is None:
            raise ValueError(f"{src}: has no tensor for {path}; leave it out with --exclude")
        kept = np.asarray(mask).T if path.endswith("/kernel") else np.asarray(mask)
        tensors[name] = np.where(kept, tensors[name], np.zeros((), tensors[name].dtype))
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *TOKENIZER_FILES):
        path = _find(src, name, revision)
        if path is not None:
            shutil.copyfile(path, directory / name)
    _save_tensors(directory, tensors)


def _save_tensors(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    temporary = directory / f".{_WEIGHTS}.tmp"
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary, {"format": "pt"})
    temporary.replace(directory / _WEIGHTS)


def _hf_config(cfg: ModelConfig, head: Head, labels: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {key: value for key, value in extra.items() if key not in ("torch_dtype", "dtype")}
    config |= cfg.model_dump() | {"dtype": "float32", "model_type": "bert", "architectures": [ARCHITECTURES[head]]}
    if not cfg.sublayer_relu:
        del config["sublayer_relu"]
    config["tie_word_embeddings"] = True
    if labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        if len(config.get("id2label") or {}) != labels:
            config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
        config["problem_type"] = "regression" if head == "regression" else "single_label_classification"
    return config


def _zeros_like(abstract: Params) -> Params:
    """Zeros that take no memory, for their names and shapes."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), abstract)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a config.json ({error}); fetch the file again") from None
    return raw


def _read_tensors(path_or_name: str | Path, revision: str | None) -> tuple[Path, dict[str, np.ndarray]]:
    if path := _find(path_or_name, _WEIGHTS, revision):
        return path, _read_safetensors(path)
    if path := _find(path_or_name, _LEGACY, revision):
        return path, _read_legacy(path)
    folder = Path(path_or_name).expanduser()
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    refused = [n for n in present if n.endswith((".bin", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".ckpt", ".npy"))]
    why = f"{refused[0]} is not read" if refused else "there are no weights"
    raise ValueError(f"{path_or_name}: {why}; save the model as one {_WEIGHTS} (transformers' save_pretrained)")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # TypeError, AttributeError: a type that numpy has no name for
        raise ValueError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a torch pickle through the loader that builds tensors only and runs no code of the file."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path}: reading it needs torch (the `parity` extra), or save it as {_WEIGHTS}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _to_numpy(tensor) for name, tensor in loaded.items()}
    except Exception as error:  # torch raises many types, among them pickle.UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a plain dict of tensors ({reason}); save it as {_WEIGHTS}") from None


def _to_numpy(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _find(path_or_name: str | Path, filename: str, revision: str | None) -> Path | None:
    """The file in a local directory, else in the hub's cache, fetched if it is not there; None if it has none."""
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    name = str(path_or_name)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"{name}: no such directory; give a Hugging Face model directory or hub name")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{name}: neither a directory nor reachable on the hub ({_first_line(error)})") from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # unknown repository or revision, no access, not a valid name
        raise ValueError(f"{name}: neither a directory nor a model on the hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
