"""Write `model.sparse.safetensors`: a bit per weight and the kept values (`docs/sparse_format.md`)."""

import json
import shutil
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxprune.errors import UserError
from jaxprune.export.source import Source
from jaxprune.models import portable_encoder, sparse_file
from jaxprune.models.folder import copy_with_config
from jaxprune.models.other_files import READERS
from jaxprune.models.sparse_file import FORM, SPARSE_WEIGHTS
from jaxprune.models.weights import write_safetensors

Arrays = dict[str, np.ndarray]

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "int8": np.int8}
"""What values can be stored as; `stored`: as the source has them."""


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write the sparse file into the directory `target`, with the source's other files and what reads it alone."""
    arrays, metadata = sparse_arrays(source, dtype=dtype, coded=coded)
    inner = copy_with_config(source.folder, target, (stored_as(array, dtype)[0] for array in source.tensors.values()))
    write_safetensors(inner / SPARSE_WEIGHTS, arrays, metadata, {})
    for module, name in zip((sparse_file, portable_encoder), READERS, strict=True):
        shutil.copyfile(str(module.__file__), inner / name)


def sparse_arrays(source: Source, *, dtype: str, coded: bool) -> tuple[Arrays, dict[str, str]]:
    """The arrays of the file under their names there, and its metadata.

    Packed is what has a mask; where the source has no masks, each matrix that zeros make smaller so. Matrices become
    int8 with a float32 scale per row; other tensors stay as they are then. UserError for a value that is too large.
    """
    arrays: Arrays = {}
    packed: dict[str, list[int]] = {}
    copies = _tied(source)
    for name, array in source.tensors.items():
        if name in copies:
            continue
        kept = source.kept(name)
        try:
            values, scales = stored_as(array, dtype)
        except UserError as error:
            raise UserError(f"{source.name}: {name}: {error}") from None
        if kept is not None and not source.masks and kept.size >= 8 * (kept.size - kept.sum()) * values.itemsize:
            kept = None
        parts = {f"{name}.scales": scales} if scales is not None else {}
        if kept is None or array.ndim == 0:
            parts[name] = values
        else:
            packed[name] = [*array.shape]
            bits = np.packbits(kept, axis=-1).reshape(-1, -(-array.shape[-1] // 8))
            parts |= {f"{name}.mask": coded_bits(bits) if coded else bits, f"{name}.values": values[kept]}
        if clash := parts.keys() & (arrays.keys() | source.tensors.keys() - {name}):
            raise UserError(f"{source.name}: has a tensor {clash.pop()}, whose name is a part of {name}; rename it")
        arrays |= parts
    metadata = {"format": FORM, "packed": json.dumps(packed), "copies": json.dumps(copies)}
    metadata |= {"masks": "stored" if source.masks else "zeros", "mask_coding": "deflate" if coded else "none"}
    return arrays, metadata


def stored_as(array: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A tensor's values in `dtype`, rounded to nearest, ties to even; for int8 those of a matrix, with their scales.

    A scale is the largest magnitude of a row / 127, float32 (rows,). UserError where float16 has no such value.
    """
    if dtype == "stored" or array.dtype.kind not in "fV" or (dtype == "int8" and array.ndim < 2):
        return array, None
    if dtype != "int8":
        with np.errstate(over="ignore"):
            values = array.astype(DTYPES[dtype])
        if not np.isfinite(values).all() and np.isfinite(array).all():
            raise UserError(f"{np.abs(array).max():g} is beyond {dtype}; use bfloat16")
        return values, None
    rows = array.astype(np.float32).reshape(-1, array.shape[-1])
    scales = np.abs(rows).max(1, initial=0) / np.float32(127)
    values = np.rint(rows / np.where(scales, scales, np.float32(1))[:, None]).clip(-127, 127)
    return values.astype(np.int8).reshape(array.shape), scales


def coded_bits(bits: np.ndarray) -> np.ndarray:
    """Bytes of masks in DEFLATE's Huffman code alone, as uint8: within 5 % of the entropy up to 95 % zeros.

    Random masks hold no repeats to find; looking for them only costs, as zstd and LZMA do.
    """
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(stream.compress(bits.tobytes()) + stream.flush(), np.uint8)


def _tied(source: Source) -> dict[str, str]:
    """{tensor: the one of the source that it is a copy of, bit for bit}."""
    tensors, copies = source.tensors, {}
    for copy, original in source.record.tied:
        name = next((name for name in (original, original.removeprefix(source.record.prefix)) if name in tensors), "")
        if copy in tensors and name and tensors[copy].tobytes() == tensors[name].tobytes():
            copies[copy] = name
    return copies
