"""Units: the heads and neurons of a layer, each of which lies in several leaves of params."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.pruning.interface import Structure, Tile

_ATTENTION = r"(encoder/layer_\d+)/attention"


class Units(NamedTuple):
    """One kind of unit: of every layer the k-th slices of some leaves."""

    count: str
    """The field of ModelConfig that says how many there are in a layer, at most."""
    by_layer: str
    """The field that says how many there are in each, where layers differ."""
    incoming: tuple[tuple[str, int], ...]
    """(regex of whole paths, whose first group is the layer; the axis along which the units lie) of what a unit is
    computed with."""
    outgoing: tuple[tuple[str, int], ...]
    """The same of what reads it and nothing else."""

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        return (*self.incoming, *self.outgoing)


UNITS: dict[str, Units] = {
    "heads": Units(
        "num_attention_heads",
        "layer_heads",
        ((rf"{_ATTENTION}/(?:query|key|value)/kernel", 1), (rf"{_ATTENTION}/(?:query|key|value)/bias", 0)),
        ((rf"{_ATTENTION}/output/kernel", 0),),
    ),
    "neurons": Units(
        "intermediate_size",
        "layer_neurons",
        ((r"(encoder/layer_\d+)/intermediate/kernel", 1), (r"(encoder/layer_\d+)/intermediate/bias", 0)),
        ((r"(encoder/layer_\d+)/output/kernel", 0),),
    ),
}
"""A head is its columns of query, key and value with their biases, and its rows of the attention's output; a neuron its
column and bias of the intermediate layer, and its row of the output."""


def layer_axis(axes: Iterable[tuple[str, int]], path: str) -> tuple[str, int] | None:
    """The layer that a path belongs to and the axis along which its units lie; None where it holds none."""
    matches = ((re.fullmatch(regex, path), axis) for regex, axis in axes)
    return next(((match[1], axis) for match, axis in matches if match), None)


def count_in(one: Units, cfg: ModelConfig, layer: str) -> int:
    """How many units of a kind `encoder/layer_00`, or another layer, has."""
    return getattr(cfg.with_layers([int(layer.rpartition("_")[2])]), one.count)


def structures(units: Mapping[str, Units], cfg: ModelConfig) -> dict[str, Structure]:
    """The structures that an architecture defines: a name of `units` each, and all of them at once ("heads+neurons").

    Leaves that hold no unit are left alone.
    """
    names = [[name] for name in units] + ([[*units]] if len(units) > 1 else [])
    return {"+".join(chosen): _structure({name: units[name] for name in chosen}, cfg) for chosen in names}


def _structure(units: Mapping[str, Units], cfg: ModelConfig) -> Structure:
    def structure(path: str, shape: tuple[int, ...]) -> Tile | None:
        for name, one in units.items():
            if matched := layer_axis(one.axes, path):
                layer, axis = matched
                count = count_in(one, cfg, layer)
                if shape[axis] % count:
                    fault = f"{one.count} = {count} does not divide axis {axis} of {path}, a leaf of shape {shape}"
                    raise UserError(f"structure = {name}: {fault}")
                together = tuple(size // count if i == axis else size for i, size in enumerate(shape))
                return Tile(together, bound=f"{layer}/{name}")
        return None

    return structure


def prunable_units(units: Mapping[str, Units], structure: str) -> Sequence[str]:
    """Regexes of the paths that a structure of `structures` prunes; none where it has another name."""
    names = structure.split("+")
    return [regex for name in names for regex, _ in units[name].axes] if {*names} <= {*units} else []
