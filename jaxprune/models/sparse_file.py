"""Read `model.sparse.safetensors` (the form jaxprune-sparse-1, `docs/sparse_format.md`) with numpy alone.

A copy of this file, `jaxprune_sparse.py`, lies beside the weights that it reads. Nothing is believed before it is
checked, and what is decoded of a file of N bytes is at most 512 N bytes, a half of them copies.
"""

import json
import re
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORM = "jaxprune-sparse-1"
SPARSE_WEIGHTS = "model.sparse.safetensors"
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
TYPES |= {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
"""Names of types in a safetensors file -> numpy's; it has none for bfloat16, whose bits are those of an integer."""
PACKED_TYPES = ("F32", "F16", "BF16", "I8")
_MOST_JSON = 100_000_000
_LARGEST_SCALE = np.finfo(np.float32).max / 128
_MOST_AXES, _MOST_SIZE = 32, 1 << 48
NAME = r"[\w-]+(\.[\w-]+)*"
"""A regex for names of tensors."""
_SIZES = {
    "V": ("vocab_size",),
    "P": ("max_position_embeddings",),
    "T": ("type_vocab_size",),
    "D": ("hidden_size", "dim"),
    "F": ("intermediate_size", "hidden_dim"),
    "H": ("num_attention_heads", "n_heads"),
    "K": ("head_dim",),
}
_BY_LAYER = {"F": "layer_neurons", "H": "layer_heads"}
"""Axes whose length may be given for each layer."""
_SHAPES = (
    (r"word_embeddings\.weight|(cls\.predictions|lm_head)\.decoder\.weight|vocab_projector\.weight", "VD"),
    (r"position_embeddings\.weight", "PD"),
    (r"token_type_embeddings\.weight", "TD"),
    (r"layer\.\d+\.(intermediate\.dense|ffn\.lin1)\.weight", "FD"),
    (r"layer\.\d+\.(output\.dense|ffn\.lin2)\.weight", "DF"),
    (r"layer\.\d+\.attention\.(self\.(query|key|value)|(q|k|v)_lin)\.weight", "AD"),
    (r"layer\.\d+\.attention\.(output\.dense|out_lin)\.weight", "DA"),
    (r"(pooler|cls\.predictions\.transform|classifier|lm_head)\.dense\.weight", "DD"),
    (r"(pre_classifier|vocab_transform)\.weight", "DD"),
)
"""(how a tensor's name ends, its axes): what config.json must say of them."""


class SparseFileError(ValueError):
    """The file is not what it should be: one line that says where."""


class Tensor(NamedTuple):
    """A tensor of the file, packed or whole: views of the mapped file, but for a coded mask."""

    shape: tuple[int, ...]
    dtype: str
    """Of the values: F32, BF16, F16, I8, ..."""
    values: np.ndarray
    """The kept ones, row after row; all of them, in `shape`, where there is no mask."""
    mask: np.ndarray | None = None
    """uint8 (rows, ceil(columns / 8)): a bit per weight, the first the highest; 1 = kept. A row is the last axis."""
    starts: np.ndarray | None = None
    """int64 (rows,): where each row's values begin."""
    scales: np.ndarray | None = None
    """float32 (rows,): what the values of I8 are multiplied with."""

    def kept(self) -> np.ndarray:
        """The mask as a bool array of `shape`."""
        if self.mask is None:
            return np.ones(self.shape, bool)
        return np.unpackbits(self.mask, axis=1, count=self.shape[-1]).view(bool).reshape(self.shape)

    def raw(self) -> np.ndarray:
        """All values in the type that they are stored in, +0 where the mask has none."""
        if self.mask is None:
            return self.values
        out = np.zeros(self.shape, self.values.dtype)
        out[self.kept()] = self.values
        return out

    def dense(self) -> np.ndarray:
        """All values, floats as float32."""
        out = self._floats(self.raw())
        return out if self.scales is None else out * self.scales.reshape(*self.shape[:-1], 1)

    def rows(self, ids: Any) -> np.ndarray:
        """Some rows of a matrix: ids (...) -> float32 (..., columns); nothing else of it is decoded."""
        ids = np.asarray(ids)
        if self.mask is None or self.starts is None:
            out = self._floats(self.values[ids])
        else:
            kept = np.unpackbits(self.mask[ids], axis=-1, count=self.shape[-1]).view(bool)
            at = self.starts[ids][..., None] + np.cumsum(kept, -1) - 1
            out = np.zeros(kept.shape, np.float32)
            out[kept] = self._floats(self.values[at[kept]])
        return out if self.scales is None else out * self.scales[ids][..., None]

    def _floats(self, values: np.ndarray) -> np.ndarray:
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if self.dtype == "F16" or self.scales is not None else values


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """{name: tensor} and the metadata of a file, or of the one in a directory; `config.json` lies beside it.

    SparseFileError, before anything is decoded, unless sizes, offsets, shapes, masks and counts of values all fit each
    other, the file and the config.
    """
    path = Path(path).expanduser()
    path = path / SPARSE_WEIGHTS if path.is_dir() else path
    try:
        return _read(path)
    except SparseFileError as error:
        raise SparseFileError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error) as error:
        raise SparseFileError(f"{path}: not a file of the form {FORM} ({error!r:.200})") from None


def read_config(folder: str | Path) -> dict[str, Any]:
    """What `config.json` in a directory says; SparseFileError where it is no JSON object."""
    path = Path(folder).expanduser() / "config.json"
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError("too large")
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
        raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise SparseFileError(f"{path}: not a config.json ({error!r:.200})") from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    header, content = _entries(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORM:
        raise SparseFileError(f"its header does not say that its format is {FORM}")
    arrays = {name: _array(name, entry, content) for name, entry in header.items()}
    packed, copies = (_object(metadata.get(key, "{}")) for key in ("packed", "copies"))
    coding = metadata.get("mask_coding", "none")
    if coding not in ("none", "deflate"):
        raise SparseFileError(f"mask_coding is {coding!r:.50}; this reader knows none and deflate")
    config, tensors = read_config(path.parent), {}
    for name, shape in packed.items():
        if name in arrays or not re.fullmatch(NAME, name) or not _is_shape(shape) or not shape or 0 in shape:
            raise SparseFileError(f"{name:.200} is no name or given twice, or its shape is none: {shape!r:.100}")
        tensors[name] = _packed(name, tuple(shape), arrays, coding, config)
    scales = {name: arrays.pop(f"{name}.scales") for name in [*arrays] if f"{name}.scales" in arrays}
    for name, (dtype, values) in arrays.items():
        _check_config(name, values.shape, config)
        scale = _scales(name, values.shape, dtype, scales.get(name))
        tensors[name] = Tensor(values.shape, dtype, values, scales=scale)
    copied = set()
    for copy, original in copies.items():
        if copy in tensors or original not in tensors or original in copied or not re.fullmatch(NAME, copy):
            raise SparseFileError(f"{copy:.200} is given as a copy of {original!r:.200}, which it cannot be")
        _check_config(copy, tensors[original].shape, config)
        copied |= {copy, original}
        tensors[copy] = tensors[original]
    return tensors, metadata


def _entries(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The header, and the bytes behind it, mapped; they are what the header says, without gaps and overlaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_JSON):
            raise SparseFileError(f"{size} bytes hold no header of {length}: cut off, or no safetensors file")
        header = _object(file.read(length))
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        if not re.fullmatch(NAME, name):
            raise SparseFileError(f"{name!r:.100} is no name of a tensor")
        (begin, stop), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
        if dtype not in TYPES or not _is_shape(shape) or not (_is_size(begin) and _is_size(stop)):
            raise SparseFileError(f"{name} has type {dtype!r:.50} and shape {shape!r:.100}")
        if begin != end or stop - begin != prod(shape) * np.dtype(TYPES[dtype]).itemsize:
            raise SparseFileError(f"{name} of {dtype} {shape!r:.100} lies at {begin} to {stop}, after {end}")
        end = stop
    if end != size - 8 - length:
        raise SparseFileError(f"its header speaks of {end} bytes of data, and there are {size - 8 - length}")
    return header, np.memmap(path, np.uint8, "r", 8 + length) if end else np.zeros(0, np.uint8)


def _array(name: str, entry: Mapping[str, Any], content: np.ndarray) -> tuple[str, np.ndarray]:
    begin, end = entry["data_offsets"]
    return entry["dtype"], np.asarray(content[begin:end]).view(TYPES[entry["dtype"]]).reshape(entry["shape"])


def _packed(
    name: str, shape: tuple[int, ...], arrays: dict[str, tuple[str, np.ndarray]], coding: str, config: Mapping[str, Any]
) -> Tensor:
    """A packed tensor; what it consists of leaves `arrays`."""
    _check_config(name, shape, config)
    if missing := [part for part in ("mask", "values") if f"{name}.{part}" not in arrays]:
        raise SparseFileError(f"{name:.200} has no {missing[0]}")
    (mask_type, mask), (dtype, values) = (arrays.pop(f"{name}.{part}") for part in ("mask", "values"))
    rows, columns = prod(shape[:-1]), shape[-1]
    bits = (rows, -(-columns // 8))
    if mask_type != "U8" or values.ndim != 1 or dtype not in PACKED_TYPES:
        raise SparseFileError(f"{name:.200}: a mask of {mask_type} with values of {dtype} {values.shape}")
    if coding == "deflate":
        mask = _decoded(name, mask, prod(bits)).reshape(bits)
    if mask.shape != bits:
        raise SparseFileError(f"{name:.200}: its mask has shape {mask.shape}, but {shape} needs {bits}")
    if columns % 8 and (mask[:, -1] & (0xFF >> columns % 8)).any():
        raise SparseFileError(f"{name:.200}: its mask keeps weights behind the end of a row")
    counts = np.bitwise_count(mask).sum(1, dtype=np.int64)
    if (kept := int(counts.sum())) != len(values):
        raise SparseFileError(f"{name:.200}: its mask keeps {kept} weights, and there are {len(values)} values")
    scales = _scales(name, shape, dtype, arrays.pop(f"{name}.scales", None))
    return Tensor(shape, dtype, values, mask, np.cumsum(counts) - counts, scales)


def _decoded(name: str, coded: np.ndarray, size: int) -> np.ndarray:
    """The bytes of a coded mask; each takes at least a bit, so a small file cannot ask for much."""
    if size > 8 * coded.size:
        raise SparseFileError(f"{name:.200}: {coded.size} bytes cannot code a mask of {size}")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    mask = stream.decompress(coded.tobytes(), size + 1)
    if len(mask) != size or not stream.eof or stream.unused_data:
        raise SparseFileError(f"{name:.200}: its coded mask is damaged: {len(mask)} bytes and not {size}")
    return np.frombuffer(mask, np.uint8)


def _scales(name: str, shape: tuple[int, ...], dtype: str, given: tuple[str, np.ndarray] | None) -> np.ndarray | None:
    if given is None:
        return None
    if dtype != "I8" or given[0] != "F32" or given[1].shape != (prod(shape[:-1]),):
        raise SparseFileError(f"{name:.200}: scales of {given[0]} {given[1].shape} do not fit {dtype} {shape}")
    if not (np.abs(given[1]) <= _LARGEST_SCALE).all():
        raise SparseFileError(f"{name:.200}: its scales are no numbers, or above {_LARGEST_SCALE:g}")
    return given[1]


def _check_config(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> None:
    """SparseFileError where config.json asks for another shape of a tensor that it decides."""
    axes = next((axes for ending, axes in _SHAPES if re.search(rf"(^|\.)({ending})$", name)), "")
    layer = re.search(r"(?<=layer\.)\d{1,4}(?=\.)", name)
    wanted = [_size(axis, config, int(layer[0]) if layer else None) for axis in axes]
    if axes and (len(shape) != len(wanted) or any(n not in (size, None) for n, size in zip(wanted, shape))):
        raise SparseFileError(f"{name} has shape {shape!r:.100}, but config.json asks for {wanted!r:.100}")


def _size(axis: str, config: Mapping[str, Any], layer: int | None = None) -> Any:
    """What config.json says of an axis, in a layer; None if nothing."""
    widths = config.get(_BY_LAYER.get(axis, ""))
    if widths is not None and layer is not None:
        return widths[layer] if isinstance(widths, list) and layer < len(widths) else widths
    if axis == "A" and (config.get("head_dim") or config.get("layer_heads")):  # as many heads as were not taken out
        heads, width = (_size(part, config, layer) for part in ("H", "K"))
        if width is None:
            all_heads, wide = (_size(part, config) for part in ("H", "D"))
            width = wide // all_heads if _is_size(all_heads) and all_heads and _is_size(wide) else wide
        return heads * width if _is_size(heads) and _is_size(width) else (heads, width)
    keys = _SIZES["D" if axis == "A" else axis]
    keys = keys[::-1] if config.get("model_type") == "distilbert" else keys  # others' keys may stand there too
    return next((config[key] for key in keys if key in config), None)


def _object(text: str | bytes) -> dict[str, Any]:
    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(keys := dict(pairs)) < len(pairs):
            raise SparseFileError("a name stands twice in its header")
        return keys

    content = json.loads(text, object_pairs_hook=each_once)
    if not isinstance(content, dict):
        raise SparseFileError("its header is no JSON object")
    return content


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and len(shape) <= _MOST_AXES and all(map(_is_size, shape))


def _is_size(n: Any) -> bool:
    return type(n) is int and 0 <= n < _MOST_SIZE
