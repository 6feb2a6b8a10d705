"""Write `model.sparse.safetensors`: a bit per weight and the kept values (`docs/sparse_format.md`)."""

import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np

from jaxprune.errors import UserError
from jaxprune.export.source import Source
from jaxprune.export.values import stored_as
from jaxprune.models import portable_encoder, sparse_file
from jaxprune.models.folder import copy_with_config
from jaxprune.models.other_files import READERS
from jaxprune.models.sparse_file import FORM, NAME, SPARSE_WEIGHTS
from jaxprune.models.weights import write_safetensors

Arrays = dict[str, np.ndarray]


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
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"{source.name}: a tensor is called {name!r:.100}; a name has letters, digits, _, - and dots"
            )
        reserved = {f"{name}.{part}" for part in ("mask", "values", "scales")}
        if clash := reserved & source.tensors.keys() or parts.keys() & arrays.keys():
            raise UserError(f"{source.name}: has a tensor {clash.pop()}, whose name is a part of {name}; rename it")
        arrays |= parts
    metadata = {"format": FORM, "packed": json.dumps(packed), "copies": json.dumps(copies)}
    metadata |= {"masks": "stored" if source.masks else "zeros", "mask_coding": "deflate" if coded else "none"}
    return arrays, metadata | ({"origin": json.dumps(source.origin)} if source.origin else {})


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
