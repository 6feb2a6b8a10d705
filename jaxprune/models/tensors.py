"""The mapping between params and the tensors of Hugging Face checkpoints: names, transposes, checks."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.architecture import Architecture
from jaxprune.models.model import Head, Params
from jaxprune.models.paths import layer_name

Tensors = Mapping[str, np.ndarray]

CLASSIFIER_BIAS = "classifier/bias"
"""The path whose size is the number of labels."""
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def tensor_name(architecture: Architecture, path: str) -> str:
    """Hugging Face's name of the tensor for a leaf path of params; UserError for a path that is not in the table."""
    module, _, leaf = path.rpartition("/")
    for pattern, name in architecture.tensors:
        if (match := re.fullmatch(pattern, module)) and leaf in _LEAVES:
            return f"{match.expand(name)}.{_LEAVES[leaf]}"
    raise UserError(f"{path}: not a path of {architecture.name}'s params")


def stored(path: str, array: Any) -> np.ndarray:
    """A view of a leaf's array in the layout of its tensor: kernels transposed to (out, in); also the way back."""
    return np.asarray(array).T if path.endswith("/kernel") else np.asarray(array)


def params_to_tensors(architecture: Architecture, params: Params) -> dict[str, np.ndarray]:
    """The tensors under Hugging Face's names: kernels transposed to (out, in), values and zeros bit-equal.

    Leaves that are None have no tensor. The decoder is tied to the word embeddings and not written a second time.
    """
    leaves = flatten_dict(params, sep="/").items()
    return {tensor_name(architecture, path): stored(path, leaf) for path, leaf in leaves if leaf is not None}


def params_from_tensors(
    architecture: Architecture,
    tensors: Tensors,
    cfg: ModelConfig,
    *,
    head: Head | None,
    num_labels: int = 0,
    key: jax.Array | None = None,
) -> tuple[Params, tuple[str, ...]]:
    """Float32 params for `head`, on the host, and the paths of the leaves that the tensors lack.

    Those can only be `architecture.optional`; they are drawn from `key` (default: seed 0). With `head=None` the params
    are what is in the tensors, of any head, and nothing is drawn. Names may lack the architecture's prefix and use the
    old `LayerNorm.gamma` and `beta`; float16 and bfloat16 become float32. What lies outside the encoder and is none of
    our heads, or one that `head` does not use, is left out.
    UserError names the tensor for a missing or unknown one, a wrong shape or type, a NaN or infinity, a layer that the
    config does not have, and a decoder that is not tied to the word embeddings.
    """
    unread = _canonical(architecture, tensors)
    bias = tensor_name(architecture, CLASSIFIER_BIAS)
    labels = unread[bias].size if bias in unread else 1
    classifier: Head = "regression" if labels == 1 else "classification"
    kinds: list[tuple[Head, int]] = [(head, num_labels)] if head else [("pretraining", 0)]
    if not head and any("classifier" in name for name in unread):
        kinds.append((classifier, 0 if labels == 1 else labels))
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    for kind, classes in kinds:
        shapes |= leaf_shapes(architecture, cfg, head=kind, num_labels=classes)
    params: dict[str, np.ndarray] = {}
    absent: list[str] = []
    for path, leaf in shapes.items():
        name = tensor_name(architecture, path)
        if head is None and name in unread and _is_another_head(architecture, name, unread[name], path, leaf.shape):
            continue
        if name in unread:
            params[path] = _leaf(name, unread.pop(name), path, leaf.shape)
        elif any(re.fullmatch(regex, path) for regex in architecture.optional):
            absent.append(path)
        else:
            size = f"num_hidden_layers = {cfg.num_hidden_layers}, hidden_size = {cfg.hidden_size}"
            raise UserError(f"{name}: tensor missing; the checkpoint is not a whole {architecture.name} of {size}")
    _refuse_unknown(architecture, unread, cfg)
    if head is None:
        absent = []
    if head and absent:
        init = architecture.build(cfg, head=head, num_labels=num_labels).init
        draw = jax.jit(lambda key: [flatten_dict(init(key), sep="/")[path] for path in absent])
        params |= zip(absent, map(np.asarray, draw(jax.random.key(0) if key is None else key)))
    return unflatten_dict({path: params[path] for path in shapes if path in params}, sep="/"), tuple(absent)


def leaf_shapes(
    architecture: Architecture, cfg: ModelConfig, *, head: Head, num_labels: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and type} of every leaf that `build(cfg, head=...).init` makes, in the order of params.

    Of layers that are alike one is traced, so a folder is read in a breath. UserError as `build`.
    """

    def shapes(cfg: ModelConfig) -> dict[Any, Any]:
        init = architecture.build(cfg, head=head, num_labels=num_labels).init
        return flatten_dict(jax.eval_shape(init, jax.random.key(0)))

    traced: Any = lru_cache(shapes)
    if not any(layer_name(0) in path for path in traced(cfg.with_layers([0]))):
        return {"/".join(path): leaf for path, leaf in traced(cfg).items()}
    leaves: dict[tuple[str, ...], Any] = {}
    for index in range(cfg.num_hidden_layers):
        name = layer_name(index)
        for path, leaf in traced(cfg.with_layers([index])).items():
            leaves[tuple(name if part == layer_name(0) else part for part in path)] = leaf
    return {"/".join(path): leaves[path] for path in sorted(leaves)}


def canonical_name(architecture: Architecture, name: str) -> str:
    """Today's name of a tensor: with the architecture's prefix, `LayerNorm.weight` and `LayerNorm.bias`; without the
    `module.` that torch's DataParallel puts before it."""
    new = name.removeprefix("module.")
    new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new))
    prefix = architecture.prefix
    modules = {name.removeprefix(prefix).split(".")[0] for _, name in architecture.tensors if name.startswith(prefix)}
    return f"{prefix}{new}" if new.split(".")[0] in modules else new


def original_name(architecture: Architecture, name: str) -> str:
    """Today's name of the tensor whose values `name` holds: for a copy of a tied matrix that of the original."""
    new = canonical_name(architecture, name)
    return dict(architecture.tied).get(new, new)


def _canonical(architecture: Architecture, tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under today's names, those that are tied once; UserError where they are not tied."""
    named: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        new = canonical_name(architecture, name)
        if new in named:
            raise UserError(f"{name}: given twice, under its old and its new name; keep one")
        named[new] = array
    for copy, original in architecture.tied:
        if copy in named and not np.array_equal(named.setdefault(original, named[copy]), named[copy]):
            raise UserError(f"{copy}: differs from {original}; only tied decoders are supported, export the model tied")
        named.pop(copy, None)
    return named


def _is_another_head(architecture: Architecture, name: str, array: np.ndarray, path: str, shape: tuple) -> bool:
    """Whether a tensor only has the name of a head of ours: the class that wrote it has one of another shape."""
    return not name.startswith(architecture.prefix) and stored(path, array).shape != shape


def _leaf(name: str, array: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    wanted = shape[::-1] if path.endswith("/kernel") else shape
    if array.shape != wanted:
        raise UserError(f"{name}: shape {array.shape}, but the config asks for {wanted}; use the checkpoint's config")
    if array.dtype.name not in ("float32", "float16", "bfloat16"):
        raise UserError(f"{name}: type {array.dtype.name}; save the checkpoint as float32, float16 or bfloat16")
    array = np.array(stored(path, array), np.float32, order="C")  # the one copy; tensors are views of a file
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {np.count_nonzero(~np.isfinite(array))} values are NaN or infinite; repair the file")
    return array


def _refuse_unknown(architecture: Architecture, unread: Iterable[str], cfg: ModelConfig) -> None:
    """UserError for a tensor of the encoder that it does not have; other heads are nobody's business here."""
    prefix = architecture.prefix
    optional = re.compile("|".join(architecture.optional))
    unused = [f"{name}." for module, name in architecture.tensors if optional.fullmatch(f"{module}/kernel")]
    for name in unread:
        if not name.startswith(prefix):
            continue
        layer = re.search(r"\.layer\.(\d+)\.", name)
        if layer and int(layer[1]) >= cfg.num_hidden_layers:
            remedy = "use the checkpoint's own config"
            raise UserError(f"{name}: layer {layer[1]}, but num_hidden_layers = {cfg.num_hidden_layers}; {remedy}")
        if name.removeprefix(prefix) not in _BUFFERS and not name.startswith(tuple(unused)):
            raise UserError(f"{name}: not a tensor of {architecture.name}; remove it, or use such a checkpoint")
