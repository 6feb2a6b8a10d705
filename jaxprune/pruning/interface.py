"""The values that pruning gives and takes: tiles, groups, amounts, a pruner and its report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax

Masks = Any
"""Tree like params: bool arrays, True = kept; None where nothing is prunable."""


Scores = Any
"""The tree of masks with a float array at every prunable leaf."""


class Criterion(NamedTuple):
    """Three pure functions, and others where scores need no memory or the kept weights change.

    `init(params, masks)` gives the state, () for none; its leaves begin with the axes of params, so that they shard
    like them, unless it watches inputs.
    `observe(state, params, masks, seen)` gives the next state. What is seen in every train step are the gradients of
    the effective (masked) weights, dense; by a criterion that `watches` "inputs", of calibration texts, the products
    X^T X (n, n) of what a matrix (n, m) multiplies, summed over tokens. It is None where scores mean something without.
    `score(state, params, masks, key)` gives scores; `key` is a `jax.random` key or None.
    `elementwise(w)`, if any, is the score of weights w alone and free of rounding: it is taken as weights are read.
    `compensate(state, params, before, after)`, if any, gives new values of the weights that stay, as a tree of masks,
    when hard masks go from `before` to `after`; what was observed until then is forgotten.
    """

    init: Callable[[Any, Any], Any]
    observe: Callable[[Any, Any, Any, Any], Any] | None
    score: Callable[[Any, Any, Any, jax.Array | None], Scores]
    elementwise: Callable[[jax.Array], jax.Array] | None = None
    compensate: Callable[[Any, Any, Any, Any], Any] | None = None
    watches: Literal["gradients", "inputs"] = "gradients"


class Tile(NamedTuple):
    """`together`: the shape of the weights that live or die together. `among`: (axis, m) if tiles are chosen among m
    consecutive ones along an axis rather than by a threshold, and then at least `least` of them stay. `bound`: a name;
    the k-th tiles of all leaves of that name are one, counted once, such as a neuron's columns, bias and rows."""

    together: tuple[int, ...]
    among: tuple[int, int] | None = None
    least: int = 0
    bound: str = ""


Structure = Callable[[str, tuple[int, ...]], tuple[int, ...] | Tile | None]
"""(path, shape) -> the tile of a leaf; a plain tuple t stands for Tile(t), None leaves the leaf alone."""


Scope = Callable[[str, tuple[int, ...]], tuple[str, int | None, int] | None]
"""(path, shape) -> (name of the leaf's group, axis along which the leaf is split into `parts` groups of that name or
None, parts, 0 for one per tile along the axis); None where a leaf is a group of its own."""


class Slot(NamedTuple):
    """Where the tiles of a leaf are counted: in group `first`, or split along `axis` into `parts` groups from `first`.

    `offset` numbers the leaf's tiles on from those of the group's earlier leaves; `salt` is a hash of its name, a
    scalar uint32 where it is data.
    """

    tile: Tile
    first: int
    axis: int | None
    parts: int
    offset: int
    salt: int | jax.Array


class Group(NamedTuple):
    """`regex`: whose amount holds. `size`: tiles among which is chosen. `least`: how many stay whatever the amount.

    With `each`, the group is a leaf whose tiles are chosen among every `size` consecutive ones.
    """

    name: str
    regex: str
    size: int
    least: int
    each: bool


class Groups(NamedTuple):
    """One slot per leaf (None: left alone), the groups, and the largest tile number of any of them plus one."""

    slots: tuple[Slot | None, ...]
    groups: tuple[Group, ...]
    span: int

    @property
    def sizes(self) -> list[int]:
        return [group.size for group in self.groups]


@partial(jax.tree_util.register_dataclass, data_fields=["kept", "sparsity"], meta_fields=["regexes", "sizes"])
@dataclass(frozen=True)
class Amounts:
    """What is kept of each of G groups: data to a compiled prune.

    `kept` (G, 2) uint32: number of kept tiles as limbs (high, low). `sparsity` (G,) float32. `regexes`: (regex, whether
    its paths are pruned); "" stands for the paths that no other matches. `sizes`: tiles of each group.
    """

    kept: jax.Array
    sparsity: jax.Array
    regexes: tuple[tuple[str, bool], ...]
    sizes: tuple[int, ...]


Sparsity = float | jax.Array | Mapping[str, float | jax.Array | None] | Amounts
"""A fraction in [0, 1] for all paths; or one, or None = leave alone, per regex; or amounts made of these."""


class PruneReport(NamedTuple):
    """What one prune did, as trees of masks: uint32 counts per leaf, and thresholds of scores.

    `kept`: weights that are left; `regrown`: those that came back (with hard masks by `regrow` alone); `removed`: newly
    pruned; `size`: all. `threshold`: float32, a scalar or (parts,) where a scope splits the leaf; nan where there is
    none.
    """

    kept: Any
    regrown: Any
    removed: Any
    size: Any
    threshold: Any


class Pruner(NamedTuple):
    """`init(params, masks)` gives the criterion's state; `observe(state, params, masks, grads)` the next one.

    By a criterion of gradients a state that has observed nothing prunes by chance, as all scores are 0; by `obert` as
    magnitude does.

    `update(state, params, masks, sparsity, key=None, step=0)` gives (params, masks, state, PruneReport). `sparsity` is
    a fraction in [0, 1]; a {regex: fraction or None = leave alone} over paths, "" for the rest, of which each is
    counted apart; or what `amounts(masks, sparsity)` makes of these on the host: counts, as data to a compiled update.
    `mode`: "hard" or "soft". `straight_through`, with soft masks: None, or gradients reach weights under masks too,
    plus this times their value.
    """

    init: Callable[[Any, Masks], Any]
    observe: Callable[[Any, Any, Masks, Any], Any]
    update: Callable[..., tuple[Any, Masks, Any, PruneReport]]
    amounts: Callable[[Masks, Sparsity], Amounts]
    mode: str
    straight_through: float | None = None
