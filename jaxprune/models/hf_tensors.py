"""The mapping between params and the tensors of Hugging Face's BERT checkpoints: names, transposes, checks."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.sections import ModelConfig
from jaxprune.models.bert import Head, Params, bert

Tensors = Mapping[str, np.ndarray]

_MODULES = (
    (r"embeddings/(word|position|token_type)_embeddings", r"bert.embeddings.\1_embeddings"),
    (r"embeddings/layer_norm", r"bert.embeddings.LayerNorm"),
    (r"encoder/layer_0*(\d+)/attention/(query|key|value)", r"bert.encoder.layer.\1.attention.self.\2"),
    (r"encoder/layer_0*(\d+)/attention/output", r"bert.encoder.layer.\1.attention.output.dense"),
    (r"encoder/layer_0*(\d+)/attention/layer_norm", r"bert.encoder.layer.\1.attention.output.LayerNorm"),
    (r"encoder/layer_0*(\d+)/(intermediate|output)", r"bert.encoder.layer.\1.\2.dense"),
    (r"encoder/layer_0*(\d+)/layer_norm", r"bert.encoder.layer.\1.output.LayerNorm"),
    (r"pooler", r"bert.pooler.dense"),
    (r"mlm", r"cls.predictions"),
    (r"mlm/transform", r"cls.predictions.transform.dense"),
    (r"mlm/layer_norm", r"cls.predictions.transform.LayerNorm"),
    (r"nsp", r"cls.seq_relationship"),
    (r"classifier", r"classifier"),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_MAY_BE_FRESH = ("pooler/", "mlm/", "nsp/", "classifier/")
_OTHER_HEADS = ("cls.predictions.", "cls.seq_relationship.", "classifier.", "qa_outputs.")


def hf_name(path: str) -> str:
    """Return the tensor's name in `BertForPreTraining` or `BertForSequenceClassification` for a leaf path of params."""
    module, _, leaf = path.rpartition("/")
    for pattern, name in _MODULES:
        if (match := re.fullmatch(pattern, module)) and leaf in _LEAVES:
            return f"{match.expand(name)}.{_LEAVES[leaf]}"
    raise ValueError(f"{path}: not a path of BERT's params")


def params_to_hf(params: Params) -> dict[str, np.ndarray]:
    """Return the tensors under Hugging Face's names: kernels transposed to (out, in), values and zeros bit-equal.

    The masked-LM decoder is tied to the word embeddings and not written a second time.
    """
    tensors = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        array = np.asarray(leaf)
        tensors[hf_name(path)] = np.ascontiguousarray(array.T if path.endswith("/kernel") else array)
    return tensors


def params_from_hf(
    tensors: Tensors, cfg: ModelConfig, *, head: Head, num_labels: int = 0, key: jax.Array | None = None
) -> tuple[Params, list[str]]:
    """Return float32 params for `head`, on the host, and the paths of the leaves that the tensors lack.

    Those can only be the pooler's or a head's; they are drawn from `key` (default: seed 0). Names may lack the `bert.`
    prefix and use the old `LayerNorm.gamma` and `beta`; float16 and bfloat16 become float32. Heads that `head` does not
    use are left out. ValueError names the tensor for a missing or unknown one, a wrong shape or type, a NaN or
    infinity, a layer that the config does not have, and a decoder that is not tied to the word embeddings.
    """
    init = bert(cfg, head=head, num_labels=num_labels).init
    wanted: dict[Any, Any] = flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    found = _canonical(tensors)
    _check_decoder(found)
    params: dict[str, np.ndarray] = {}
    fresh: list[str] = []
    for path, leaf in wanted.items():
        name = hf_name(path)
        if name in found:
            params[path] = _leaf(name, found.pop(name), path, leaf.shape)
        elif path.startswith(_MAY_BE_FRESH):
            fresh.append(path)
        else:
            raise ValueError(f"{name}: tensor missing; the checkpoint is not a whole BERT of {_size(cfg)}")
    _refuse_unknown(found, cfg)
    if fresh:
        drawn = jax.jit(lambda k: [flatten_dict(init(k), sep="/")[path] for path in fresh])(
            jax.random.key(0) if key is None else key
        )
        params |= {path: np.asarray(leaf) for path, leaf in zip(fresh, drawn)}
    return unflatten_dict({path: params[path] for path in wanted}, sep="/"), fresh


def canonical_name(name: str) -> str:
    """Return today's name of a tensor: with `bert.` and `LayerNorm.weight`."""
    new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
    return f"bert.{new}" if new.startswith(("embeddings.", "encoder.", "pooler.")) else new


def _canonical(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under today's names: with `bert.`, `LayerNorm.weight` and one decoder bias."""
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        new = canonical_name(name)
        if new in found:
            raise ValueError(f"{name}: given twice, under its old and its new name; keep one")
        found[new] = array
    if "cls.predictions.decoder.bias" in found:
        found.setdefault("cls.predictions.bias", found["cls.predictions.decoder.bias"])
    return found


def _check_decoder(found: Tensors) -> None:
    for name, tied in (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ):
        if name in found and tied in found and not np.array_equal(found[name], found[tied]):
            raise ValueError(f"{name}: differs from {tied}; only tied decoders are supported, export the model tied")


def _leaf(name: str, array: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    stored = shape[::-1] if path.endswith("/kernel") else shape
    if array.shape != stored:
        raise ValueError(f"{name}: shape {array.shape}, but the config asks for {stored}; use the checkpoint's config")
    if array.dtype.name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{name}: type {array.dtype.name}; save the checkpoint as float32, float16 or bfloat16")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(array))} values are NaN or infinite; repair the file")
    return np.ascontiguousarray(array.T if path.endswith("/kernel") else array)


def _refuse_unknown(left: Iterable[str], cfg: ModelConfig) -> None:
    for name in left:
        layer = re.match(r"bert\.encoder\.layer\.(\d+)\.", name)
        if layer and int(layer[1]) >= cfg.num_hidden_layers:
            remedy = "use the checkpoint's own config"
            raise ValueError(f"{name}: layer {layer[1]}, but num_hidden_layers = {cfg.num_hidden_layers}; {remedy}")
        if name != "bert.embeddings.position_ids" and not name.startswith(_OTHER_HEADS):
            raise ValueError(f"{name}: not a tensor of BERT; remove it, or use a BERT checkpoint")


def _size(cfg: ModelConfig) -> str:
    return f"num_hidden_layers = {cfg.num_hidden_layers}, hidden_size = {cfg.hidden_size}"
