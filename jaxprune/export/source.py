"""A model that is to leave the house: its tensors as they are stored, their masks, and where its other files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models import architecture_named
from jaxprune.models.architecture import Architecture
from jaxprune.models.folder import masks_of, read_config
from jaxprune.models.hub import find_folder
from jaxprune.models.tensors import original_name, params_from_tensors
from jaxprune.models.weights import read_origin, read_weights
from jaxprune.pruning.masks import pruned_share

FEWEST_ZEROS = 0.1
"""Share of a matrix below which its zeros are chance: a table's row of padding, a weight that is 0 by itself."""


class Source(NamedTuple):
    """A Hugging Face directory, or one of our sparse form, on the host."""

    name: str
    folder: Path
    model: ModelConfig
    record: Architecture
    tensors: dict[str, np.ndarray]
    """Under the file's own names and in its own types; kernels are (out, in)."""
    masks: dict[str, np.ndarray]
    """Masks that lie beside the weights, under their tensors' names in the file; copies of a tied matrix share one."""
    revision: str
    variant: str
    origin: Mapping[str, Any] = {}
    """What the masks say of where they come from."""

    def kept(self, name: str) -> np.ndarray | None:
        """What is kept of a tensor: by its mask; without any masks, what is not +0 of a matrix; None: all of it."""
        array = self.tensors[name]
        if self.masks:
            return self.masks.get(name)
        if array.ndim < 2 or array.dtype.kind not in "fV":
            return None
        kept = array.view(f"u{array.itemsize}") != 0  # -0 is a value
        return None if kept.all() else kept

    def pruned(self) -> dict[str, np.ndarray]:
        """What is kept of pruned tensors: those with a mask; without any masks, matrices with FEWEST_ZEROS or more."""
        kept = {name: mask for name in self.tensors if (mask := self.kept(name)) is not None}
        return {name: mask for name, mask in kept.items() if self.masks or share_gone(mask) >= FEWEST_ZEROS}

    def check_even(self) -> None:
        """UserError where layers differ in width, which nothing that reads a Hugging Face directory computes."""
        if not self.model.even:
            raise UserError(
                f"{self.name}: its layers differ in width (layer_heads, layer_neurons in config.json), and "
                "transformers has one for all; export sparse or onnx, or leave out compact --uneven"
            )


def share_gone(mask: np.ndarray) -> float:
    """The share of a mask that is False."""
    return pruned_share(int(np.count_nonzero(mask)), mask.size)


def read_source(name: str, revision: str = "", variant: str = "") -> Source:
    """What a directory or hub name holds.

    UserError for what is no whole model of its config, and where a weight is not 0 though its mask says so.
    """
    model = read_config(name, revision=revision or None)
    record = architecture_named(model.architecture)
    path, tensors = read_weights(name, revision or None, variant)
    try:
        params_from_tensors(record, tensors, model, head=None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    stored, masks = masks_of(record, name, revision or None) or {}, {}
    for tensor, array in tensors.items():
        if (mask := stored.get(original_name(record, tensor))) is None:
            continue
        if mask.shape != array.shape:
            raise UserError(f"{name}: the mask of {tensor} has another shape; write the directory again")
        if alive := np.count_nonzero(array[~mask]):
            remedy = "prune it again, or remove masks.safetensors"
            raise UserError(f"{name}: {alive} pruned weights of {tensor} are not 0; {remedy}")
        masks[tensor] = mask
    origin = read_origin(name, revision or None) if masks else {}
    return Source(name, find_folder(name, revision or None), model, record, tensors, masks, revision, variant, origin)
