"""Weights that torch's `to_sparse_semi_structured` takes: at most 2 of 4 along each row, in 16 bits."""

import json
from pathlib import Path

import numpy as np

from jaxprune.errors import UserError
from jaxprune.export.source import Source
from jaxprune.export.values import stored_as
from jaxprune.models.folder import copy_with_config
from jaxprune.models.tensors import original_name, tensor_name
from jaxprune.models.weights import WEIGHTS, write_masks, write_safetensors

LIST = "two_four.json"
TILE = (32, 64)
"""Rows and columns that divide what torch's CUTLASS kernels take in 16 bits."""


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write a Hugging Face directory in `dtype`, and `two_four.json`, the list of the modules that qualify.

    On a GPU, `module.weight = torch.nn.Parameter(to_sparse_semi_structured(module.weight))` for each of them. UserError
    where none qualifies, and where layers differ in width.
    """
    source.check_even()
    if not (modules := qualifying(source)):
        raise UserError(f"{source.name}: no matrix keeps 2 of 4; prune it with jaxprune prune --structure 2:4")
    tensors = {name: stored_as(array, dtype)[0] for name, array in source.tensors.items()}
    inner = copy_with_config(source.folder, target, tensors.values())
    write_safetensors(inner / WEIGHTS, tensors, {"format": "pt"}, {})
    if source.masks:
        masks = {original_name(source.record, name): mask for name, mask in source.masks.items()}
        write_masks(inner, masks, source.origin)
    (inner / LIST).write_text(json.dumps(modules, indent=2) + "\n")


def qualifying(source: Source) -> list[str]:
    """The names of the linear modules whose matrix (out, in) has at most 2 values in each 4 of a row.

    The word embeddings are looked up and never multiplied with, but for the decoder: they are not among them.
    """
    words = tensor_name(source.record, source.record.word_embeddings)
    return [
        name.removesuffix(".weight")
        for name, array in source.tensors.items()
        if array.ndim == 2 and original_name(source.record, name) != words
        if not any(size % tile for size, tile in zip(array.shape, TILE))
        if (np.count_nonzero(array.reshape(-1, 4), axis=1) <= 2).all()
    ]
