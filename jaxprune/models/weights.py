"""Weight files: `model.safetensors`, the legacy `pytorch_model.bin`, and `masks.safetensors` beside them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.errors import UserError
from jaxprune.files import write_atomically
from jaxprune.models.hub import find_file

WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".ckpt", ".npy", ".onnx")
_LEGACY = "pytorch_model.bin"


def read_weights(path_or_name: str | Path, revision: str | None = None) -> tuple[Path, dict[str, np.ndarray]]:
    """The file of a directory's (or hub model's) weights and its tensors, as they are stored.

    `pytorch_model.bin` is read by `torch.load(weights_only=True)` alone; other pickles and msgpack are refused by name
    (UserError, as for a damaged file).
    """
    if path := find_file(path_or_name, WEIGHTS, revision):
        return path, _read(path)[0]
    if path := find_file(path_or_name, _LEGACY, revision):
        return path, _read_legacy(path)
    folder = Path(path_or_name).expanduser()
    present = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    refused = [name for name in present if name.endswith(OTHER_FORMATS)]
    why = f"{refused[0]} is not read" if refused else "there are no weights"
    raise UserError(f"{path_or_name}: {why}; save the model as one {WEIGHTS} (transformers' save_pretrained)")


def write_weights(directory: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write `model.safetensors`; OSError where the disk is full."""
    _write(directory / WEIGHTS, tensors, {"format": "pt"})


def read_masks(path_or_name: str | Path, revision: str | None = None) -> dict[str, np.ndarray] | None:
    """{Hugging Face's name of a tensor: bool array in its layout, True = kept} of `masks.safetensors`, if there is one.

    UserError for a damaged file.
    """
    path = find_file(path_or_name, MASKS, revision)
    if path is None:
        return None
    packed, metadata = _read(path)
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        return {
            name: np.unpackbits(bits)[: math.prod(shapes[name])].astype(bool).reshape(shapes[name])
            for name, bits in packed.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a file of masks ({error!r}); remove it, or write the directory again") from None


def write_masks(directory: Path, masks: Mapping[str, np.ndarray]) -> None:
    """Write `masks.safetensors`: per tensor the bits of `np.packbits` as uint8; metadata `shapes` is JSON of shapes."""
    shapes = {name: mask.shape for name, mask in masks.items()}
    packed = {name: np.packbits(mask) for name, mask in masks.items()}
    _write(directory / MASKS, packed, {"shapes": json.dumps(shapes)})


def _write(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    from safetensors.numpy import save

    write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata))


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # TypeError, AttributeError: a type that numpy has no name for
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a torch pickle through the loader that builds tensors only and runs no code of the file."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs torch (the `parity` extra), or save it as {WEIGHTS}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _to_numpy(tensor) for name, tensor in loaded.items()}
    except Exception as error:  # torch raises many types, among them pickle.UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a plain dict of tensors ({reason}); save it as {WEIGHTS}") from None


def _to_numpy(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
