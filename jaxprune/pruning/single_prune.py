"""One prune, at once: programs that know no names, shared by all groups of the same shapes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.pruning.amounts import share_out
from jaxprune.pruning.criteria import Criterion, Scores, criterion_of
from jaxprune.pruning.distributions import DISTRIBUTIONS, Distribution
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.interface import Amounts, Groups, Masks, Scope, Sparsity, Structure
from jaxprune.pruning.names import chosen
from jaxprune.pruning.pruner import keep_leaves, method_for, scores_of
from jaxprune.pruning.structures import structure_named
from jaxprune.pruning.thresholds import Method


def prune_once(
    params: Any,
    masks: Masks,
    sparsity: Sparsity,
    key: jax.Array | None = None,
    *,
    criterion: str | Criterion | Callable[[Any, Masks, jax.Array | None], Scores] = "magnitude",
    structure: str | Structure = "weights",
    scope: str | Scope = "matrix",
    method: str | Method = "exact",
    scopes: Mapping[str, Scope] = SCOPES,
    distribution: str | Distribution = "uniform",
    state: Any = None,
) -> tuple[Masks, Any]:
    """The masks and thresholds that `pruner(...).update(...)` with hard masks gives, bit by bit, on the host.

    There one program makes all masks, and compiling it takes longer the more layers there are. Here leaves that share
    a threshold are pruned alone, and groups of the same shapes by the same program. `state` is what the criterion has
    observed, if anything; weights are not compensated.

    Raises:
      UserError: as `pruner` and its functions.
    """
    scoring = criterion_of(criterion)
    threshold = method_for(scoring, method)
    parts = chosen("scope", scope, scopes), structure_named(structure)
    groups, amounts = share_out(masks, sparsity, *parts, chosen("distribution", distribution, DISTRIBUTIONS))
    amounts = jax.device_get(amounts)
    # Scores of weights alone are taken as these are read, never stored.
    transform = scoring.elementwise
    state = scoring.init(params, masks) if state is None else state
    scores = params if transform else scoring.score(state, params, masks, key)
    scores, (old, tree) = scores_of(scores, masks), jax.tree.flatten(masks)
    together: dict[int, list[int]] = {}
    for i, slot in enumerate(groups.slots):
        if slot:
            together.setdefault(slot.first, []).append(i)
    new, cuts = jax.device_get(old), [jnp.float32(jnp.nan)] * len(old)
    for members in together.values():
        own, kept, salts = _alone(groups, amounts, members)
        shapes = [old[i].shape if slot and len(slot.tile.together) > 1 else -1 for i, slot in zip(members, own.slots)]
        arrays = ([x[i].reshape(shape) for i, shape in zip(members, shapes)] for x in (scores, old))
        made = _prune(*arrays, kept, salts, groups=own, method=threshold, transform=transform)
        for i, mask, cut in zip(members, *jax.device_get(made), strict=True):
            new[i], cuts[i] = mask.reshape(old[i].shape), cut
    return tree.unflatten(new), tree.unflatten(cuts)


def _alone(groups: Groups, amounts: Amounts, members: list[int]) -> tuple[Groups, Amounts, list[Any]]:
    """Groups and amounts of some leaves, numbered from 0 and without names, and the salts that stood for the names.

    Leaves whose weights are counted one by one have one axis: where a weight lies matters by its number alone.
    """
    slots = [slot for i in members if (slot := groups.slots[i])]
    held = slice(slots[0].first, slots[0].first + slots[0].parts)
    salts = [jax.numpy.uint32(slot.salt) for slot in slots]
    nameless = tuple(one._replace(name="", regex="") for one in groups.groups[held])
    plain = [slot.axis is None and not slot.tile.among and {*slot.tile.together} <= {1} for slot in slots]
    names = {name: f"{i}" for i, name in enumerate(dict.fromkeys(slot.tile.bound for slot in slots if slot.tile.bound))}
    tiles = [slot.tile._replace(together=(1,)) if flat else slot.tile for slot, flat in zip(slots, plain)]
    tiles = [tile._replace(bound=names.get(tile.bound, "")) for tile in tiles]
    slots = tuple(slot._replace(tile=tile, first=0, salt=0) for slot, tile in zip(slots, tiles))
    own = Groups(slots, nameless, groups.span)
    return own, Amounts(amounts.kept[held], amounts.sparsity[held], (), ()), salts


@partial(jax.jit, static_argnames=("groups", "method", "transform"))
def _prune(scores, live, amounts, salts, *, groups, method, transform):
    """The masks and thresholds of leaves whose slots lack their salts."""
    slots = tuple(slot._replace(salt=salt) for slot, salt in zip(groups.slots, salts, strict=True))
    masks, thresholds = keep_leaves(scores, live, amounts, groups._replace(slots=slots), method, transform)
    return [before & after for before, after in zip(live, masks, strict=True)], thresholds
