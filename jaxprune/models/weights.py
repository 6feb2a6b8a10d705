"""Weight files as transformers saves them, whole or in shards, our sparse form, and `masks.safetensors` beside them."""

import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxprune.config.encoder_part import encoder_part
from jaxprune.errors import UserError
from jaxprune.files import new_file, parse_json
from jaxprune.models.hub import find_file
from jaxprune.models.sparse_file import SPARSE_WEIGHTS, SparseFileError, Tensor, read

WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"
_PICKLE = "pytorch_model.bin"
_VARIANT = re.compile(r"(?:model|pytorch_model)\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".ckpt", ".npy", ".onnx", ".ot", ".gguf")
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_TYPES |= {f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
"""Names of types in a safetensors file -> numpy's."""

Tensors = dict[str, np.ndarray]


def read_weights(path_or_name: str | Path, revision: str | None = None, variant: str = "") -> tuple[Path, Tensors]:
    """The file of a directory's (or hub model's) weights and its tensors, as they are stored; of shards their index.

    The order is transformers': `model.safetensors`, its shards, `pytorch_model.bin`, its shards; with the `variant`
    fp16 `model.fp16.safetensors`, ...; then `model.sparse.safetensors`, whose int8 come back as float32. Tensors, but
    for sparse ones, are read-only views of the mapped file, so reading again costs nothing.
    Pickles are read by `torch.load(weights_only=True)` alone; other pickles and msgpack are refused by name (UserError,
    as for a damaged file, or a shard that is missing).
    """
    for name, reader in ((WEIGHTS, _read), (_PICKLE, _read_pickle)):
        if path := find_file(path_or_name, _named(name, variant), revision):
            return path, reader(path)
        if index := find_file(path_or_name, _named(f"{name}.index.json", variant), revision):
            return index, _read_shards(path_or_name, index, revision, reader)
    if not variant and (path := find_file(path_or_name, SPARSE_WEIGHTS, revision)):
        sparse = _read_sparse(path)[0]
        decoded = {id(tensor): _decoded(tensor) for tensor in sparse.values()}  # a tied copy is no second array
        return path, {name: decoded[id(tensor)] for name, tensor in sparse.items()}
    folder = encoder_part(Path(path_or_name).expanduser())
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if variants := sorted({match[1] for name in present if (match := _VARIANT.fullmatch(name))}):
        lacks = f"has no {_named(WEIGHTS, variant)}, but the variant {', '.join(variants)}"
        raise UserError(f"{path_or_name}: {lacks}; ask for it (--variant, init_variant)")
    refused = [name for name in present if name.endswith(_OTHER_FORMATS)]
    none = "there are no weights" if folder.is_dir() else "no weights are on the hub, or offline in its cache"
    why = f"{refused[0]} is not read" if refused else none
    why = f"has no variant {variant}" if variant else why
    raise UserError(f"{path_or_name}: {why}; save the model as one {WEIGHTS} (transformers' save_pretrained)")


def write_weights(directory: Path, tensors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> None:
    """Write `model.safetensors` with +0.0 where a tensor's mask is False; OSError where the disk is full."""
    write_safetensors(directory / WEIGHTS, tensors, {"format": "pt"}, masks)


def read_masks(path_or_name: str | Path, revision: str | None = None, weights: Path | None = None) -> Tensors | None:
    """{Hugging Face's name of a tensor: bool array in its layout, True = kept} of `masks.safetensors`, if there is one.

    Else those of `model.sparse.safetensors`, where the weights that it was made of came with masks; it is not looked
    for where another file is known to hold the `weights`. UserError for a damaged file.
    """
    path = find_file(path_or_name, MASKS, revision)
    if path is None and weights and weights.name != SPARSE_WEIGHTS:
        return None
    if path is None:
        sparse_path = find_file(path_or_name, SPARSE_WEIGHTS, revision)
        if sparse_path is None or find_file(path_or_name, WEIGHTS, revision):
            return None
        sparse, metadata = _read_sparse(sparse_path)
        kept = {name: tensor.kept() for name, tensor in sparse.items() if tensor.mask is not None}
        return kept if metadata.get("masks") == "stored" else None
    packed = _read(path)
    try:
        shapes = {name: tuple(shape) for name, shape in parse_json(_header(path)["__metadata__"]["shapes"]).items()}
        return {
            name: np.unpackbits(bits)[: math.prod(shapes[name])].astype(bool).reshape(shapes[name])
            for name, bits in packed.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a file of masks ({error!r}); remove it, or write the directory again") from None


def read_origin(path_or_name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What masks, in either form, say of where they come from; empty where they say nothing, or there are none."""
    path = find_file(path_or_name, MASKS, revision) or find_file(path_or_name, SPARSE_WEIGHTS, revision)
    try:
        origin = parse_json(_header(path).get("__metadata__", {}).get("origin", "{}")) if path else {}
    except (ValueError, TypeError, AttributeError):
        return {}
    return origin if isinstance(origin, dict) else {}


def write_masks(directory: Path, masks: Mapping[str, np.ndarray], origin: Mapping[str, Any] | None = None) -> None:
    """Write `masks.safetensors`: per tensor the bits of `np.packbits` as uint8; as metadata two pieces of JSON,
    `shapes` and `origin`, where the masks come from."""
    shapes = {name: mask.shape for name, mask in sorted(masks.items())}
    packed = {name: np.packbits(mask) for name, mask in masks.items()}
    metadata = {"shapes": json.dumps(shapes)} | ({"origin": json.dumps(origin)} if origin else {})
    write_safetensors(directory / MASKS, packed, metadata, {})


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str], masks: Mapping[str, np.ndarray]
) -> None:
    """The file that `safetensors.numpy.save_file` writes, without its copy of all tensors in memory.

    +0.0 where a mask is False.
    """
    names, sizes = {name: key for key, name in _TYPES.items()}, {}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # aligned, as theirs
        array = tensors[name]
        sizes[name] = array.nbytes
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sizes:
            array = np.ascontiguousarray(tensors[name])
            if name in masks:
                array = np.where(masks[name], array, np.zeros((), array.dtype))
            file.write(array.reshape(-1).view(np.uint8).data)


def _read(path: Path) -> Tensors:
    """Tensors of a safetensors file: views of the file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks sizes, shapes and offsets
            header = _header(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    header.pop("__metadata__", None)
    content = np.asarray(np.memmap(path, np.uint8, "r"))
    content = content[8 + int.from_bytes(content[:8].tobytes(), "little") :]
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise UserError(f"{path}: {name} has type {entry['dtype']}; save it as float32, float16 or bfloat16")
        begin, end = entry["data_offsets"]
        tensors[name] = content[begin:end].view(_numpy_type(entry["dtype"])).reshape(entry["shape"])
    return tensors


def _read_sparse(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read(path)
    except SparseFileError as error:
        raise UserError(f"{error}; export the model again") from None


def _decoded(tensor: Tensor) -> np.ndarray:
    """In the type that is stored, but for int8 with its scales, which is float32."""
    if tensor.scales is not None:
        return tensor.dense()
    return tensor.raw().view(_numpy_type(tensor.dtype))


def _numpy_type(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "BF16" else _TYPES[name])


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return parse_json(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return keys


def _named(name: str, variant: str) -> str:
    """As transformers names a variant: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def _read_shards(
    path_or_name: str | Path, index: Path, revision: str | None, reader: Callable[[Path], Tensors]
) -> Tensors:
    try:
        shard_of = parse_json(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({*shard_of.values()})
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError("its shards are no files beside it")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weights ({error!r}); fetch it again") from None
    tensors: Tensors = {}
    for shard in shards:
        path = find_file(path_or_name, shard, revision)
        if path is None:
            raise UserError(f"{path_or_name}: has no {shard}, which {index.name} names; fetch it again")
        held = reader(path)
        if missing := [name for name, file in shard_of.items() if file == shard and name not in held]:
            raise UserError(f"{path}: has no {missing[0]}, which {index.name} says; fetch both again")
        tensors |= held
    return tensors


def _read_pickle(path: Path) -> Tensors:
    """Tensors of a torch pickle through the loader that builds tensors only and runs no code of the file."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs torch (the `parity` extra), or save it as {WEIGHTS}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {name: _to_numpy(tensor) for name, tensor in loaded.items()}
    except Exception as error:  # torch raises many types, among them pickle.UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a plain dict of tensors ({reason}); save it as {WEIGHTS}") from None


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy has no name for it
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
