"""Read what `jaxprune export --format sparse` wrote: as our params, as numpy arrays, or as torch tensors."""

from pathlib import Path
from typing import Any, Literal

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.encoder_part import encoder_part
from jaxprune.errors import UserError
from jaxprune.export.compressed_table import compressed
from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder
from jaxprune.models.sparse_file import SPARSE_WEIGHTS, SparseFileError, read
from jaxprune.models.tensors import original_name, tensor_name


def load(
    path: str | Path, *, framework: Literal["jax", "numpy", "torch"] = "jax", compressed_embeddings: bool = False
) -> dict[str, Any]:
    """The weights of an exported directory: params of JAX arrays, or {Hugging Face's name: float32 array or tensor}.

    With `compressed_embeddings` the word embeddings stay as in the file: in params a CompressedTable, which `looked_up`
    feeds to a model; else a `sparse_file.Tensor`, whose `rows(ids)` decodes rows. UserError for a damaged or lying
    file, before anything of it is decoded.
    """
    folder = encoder_part(Path(path).expanduser())
    try:
        tensors = read(folder)[0]
    except SparseFileError as error:
        raise UserError(f"{error}; export the model again") from None
    read_in = read_folder(path, head=None)  # looks at every shape and value
    record = architecture_named(read_in.model.architecture)
    words = tensor_name(record, record.word_embeddings)
    if framework == "jax":
        params: dict[str, Any] = flatten_dict(read_in.params, sep="/")
        if compressed_embeddings:
            packed = next(tensor for name, tensor in tensors.items() if original_name(record, name) == words)
            params[record.word_embeddings] = compressed(packed, name=str(folder / SPARSE_WEIGHTS))
        return unflatten_dict(jax.tree.map(jax.numpy.asarray, params), sep="/")
    as_is = {name for name in tensors if compressed_embeddings and original_name(record, name) == words}
    arrays: dict[str, Any] = {name: tensor if name in as_is else tensor.dense() for name, tensor in tensors.items()}
    if framework == "numpy":
        return arrays
    import torch

    return {name: array if name in as_is else torch.from_numpy(array.copy()) for name, array in arrays.items()}
