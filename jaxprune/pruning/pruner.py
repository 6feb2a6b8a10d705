"""The pruner: score -> pool (structure) -> share out (scope, amounts) -> threshold (method) -> expand."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.errors import UserError
from jaxprune.pruning.amounts import share_out
from jaxprune.pruning.criteria import CRITERIA, REGROWTHS, Criterion, Scores, criterion_of
from jaxprune.pruning.distributions import DISTRIBUTIONS, Distribution
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.interface import (
    Amounts,
    Groups,
    Masks,
    Pruner,
    PruneReport,
    Scope,
    Slot,
    Sparsity,
    Structure,
    Tile,
)
from jaxprune.pruning.masks import apply_masks
from jaxprune.pruning.names import chosen, path_of
from jaxprune.pruning.order_statistics import Leaf
from jaxprune.pruning.regrowth import Fraction, Regrowth, ahead, fewer
from jaxprune.pruning.structures import (
    expand,
    expand_bound,
    pool,
    pool_any,
    pool_any_bound,
    pool_bound,
    structure_named,
)
from jaxprune.pruning.tallies import count
from jaxprune.pruning.thresholds import METHODS, Method, check_scores, exact


def pruner(
    criterion: str | Criterion | Callable[[Any, Masks, jax.Array | None], Scores] = "magnitude",
    *,
    structure: str | Structure = "weights",
    scope: str | Scope = "matrix",
    method: str | Method = "exact",
    mode: str = "hard",
    scopes: Mapping[str, Scope] = SCOPES,
    distribution: str | Distribution = "uniform",
    regrow: str | Criterion | Callable[[Any, Masks, jax.Array | None], Scores] | None = None,
    regrow_fraction: Fraction = 0.3,
    straight_through: float | None = None,
) -> Pruner:
    """A pruner of the given parts, each a name or the caller's own callable; `scopes` are the scopes that have names.

    With "hard" masks a pruned weight becomes exactly +0.0 and never returns: it ranks below every live one, even one of
    score 0, and a group already beyond the sparsity stays as it is. With "soft" masks, masks are made from scores alone
    and params come back as they are. N counts pruned and live weights alike. For counts and order see `keep_top`.

    With `regrow` ("random", "gradient", or what `criterion` takes) hard masks are no longer for good: a prune keeps a
    share of `regrow_fraction`, a number or a function of the step, less than it should, and fills up with those weights
    that `regrow` scores highest. One that it just took keeps its value then, others come back as 0. Counts stay exact,
    also where fewer are left than the sparsity keeps: begin a schedule at the start's sparsity.

    With `straight_through`, soft masks let gradients pass to the values under them too, as if no mask were there, plus
    this times the value, a decay (SR-STE, Zhou et al. 2021; 0 is the plain estimator).

    Raises:
      UserError: an unknown name; `straight_through` with hard masks; a criterion that gives kept weights new values
        with soft masks; "movement", whose scores are negative too, with "hist256"; `regrow` with soft masks, another
        method than "exact", a criterion that gives kept weights new values or, from the functions, a structure like
        2:4, of whose few weights a share is none; from the functions also what does not fit the tree they are called
        with.
    """
    scoring = criterion_of(criterion)
    shared = {"scope": chosen("scope", scope, scopes), "structure": structure_named(structure)}
    shared["distribution"] = chosen("distribution", distribution, DISTRIBUTIONS)
    threshold = method_for(scoring, method)
    if mode not in ("hard", "soft"):
        raise UserError(f"mode = {mode!r} is unknown; use hard or soft")
    if mode == "hard" and straight_through is not None:
        raise UserError("straight_through: needs mode = soft; with hard masks pruned weights have no value to train")
    if mode == "soft" and scoring.compensate:
        raise UserError("mode = soft: weights keep their values, and this criterion gives new ones; use hard")
    growth = None if regrow is None else Regrowth(criterion_of(regrow, "regrow", REGROWTHS), regrow_fraction)
    if growth and (mode == "soft" or threshold is not exact or scoring.compensate):
        raise UserError("regrow: needs mode = hard, method = exact and a criterion that leaves kept weights alone")
    parts = (scoring, growth.criterion) if growth else (scoring,)

    def init(params: Any, masks: Masks) -> Any:
        states = [part.init(params, masks) for part in parts]
        return tuple(states) if growth else states[0]

    def observe(state: Any, params: Any, masks: Masks, grads: Any) -> Any:
        seen = [part.observe or (lambda state, *_: state) for part in parts]
        states = [see(each, params, masks, grads) for see, each in zip(seen, state if growth else (state,))]
        return tuple(states) if growth else states[0]

    def shares_of(masks: Masks, sparsity: Sparsity) -> tuple[Groups, Amounts]:
        groups, shares = share_out(masks, sparsity, **shared)
        if growth and growth.fraction != 0.0 and any(group.each for group in groups.groups):
            raise UserError("regrow: exchanges a share of many weights, not of n of m; use straight_through instead")
        return groups, shares

    def amounts(masks: Masks, sparsity: Sparsity) -> Amounts:
        return jax.device_get(shares_of(masks, sparsity)[1])

    def update(
        state: Any,
        params: Any,
        masks: Masks,
        sparsity: Sparsity,
        key: jax.Array | None = None,
        step: jax.Array | int = 0,
    ):
        groups, shares = shares_of(masks, sparsity)
        options = {"criterion": scoring, "groups": groups, "method": threshold, "hard": mode == "hard"}
        return _update(state, params, masks, shares, key, step, growth=growth, **options)

    return Pruner(init, observe, update, amounts, mode, straight_through)


def method_for(criterion: Criterion, method: str | Method) -> Method:
    """The method of a name, or as it is; a UserError where the scores of `criterion` are none for it."""
    threshold = chosen("method", method, METHODS)
    if threshold is METHODS["hist256"] and criterion is CRITERIA["movement"]:
        raise UserError("method = hist256: its bins begin at 0, and half of movement's scores lie below; use exact")
    return threshold


@partial(jax.jit, static_argnames=("criterion", "groups", "method", "hard", "growth"))
def _update(state, params, masks, amounts, key, step, *, criterion, groups, method, hard, growth):
    """(params, masks, state, report) after one prune."""
    whole, amounts, final = state, fewer(amounts, growth, step) if growth else amounts, amounts
    state = state[0] if growth else state
    old, tree = jax.tree.flatten(masks)
    if criterion.elementwise:  # the scores are taken as weights are read, never stored
        scores = scores_of(params, masks)
    else:  # the scores are stored once, so that all passes over them see the same bits
        scores = lax.optimization_barrier(scores_of(criterion.score(state, params, masks, key), masks))
    new, thresholds = keep_leaves(scores, old if hard else None, amounts, groups, method, criterion.elementwise)
    new = [before if after is None else before & after if hard else after for before, after in zip(old, new)]
    if growth:
        key = None if key is None else jax.random.fold_in(key, 1)  # a random criterion has drawn from it
        fresh = scores_of(growth.criterion.score(whole[1], params, masks, key), masks)
        fresh = lax.optimization_barrier([ahead(kept, score) for kept, score in zip(new, fresh, strict=True)])
        grown, _ = keep_leaves(fresh, None, final, groups, method)
        new = [kept if after is None else after for kept, after in zip(new, grown, strict=True)]
    counts = [count([after, after & ~before, before & ~after])[0] for before, after in zip(old, new)]
    kept, regrown, removed = (tree.unflatten([n[i] for n in counts]) for i in range(3))
    sizes = [jnp.uint32(mask.size) for mask in old]
    report = PruneReport(kept, regrown, removed, tree.unflatten(sizes), tree.unflatten(thresholds))
    after = tree.unflatten(new)
    if not hard:
        return params, after, state, report
    if growth:
        return apply_masks(params, after), after, whole, report
    params, state = compensated(criterion, state, params, masks, after)
    return apply_masks(params, after), after, state, report


def compensated(criterion: Criterion, state: Any, params: Any, before: Masks, after: Masks) -> tuple[Any, Any]:
    """(params, state) behind a prune with hard masks: as they were, or what the criterion makes of the kept weights."""
    if not criterion.compensate:
        return params, state
    values = criterion.compensate(state, params, before, after)
    params = jax.tree.map(lambda new, old: old if new is None else new, values, params, is_leaf=lambda x: x is None)
    return params, criterion.init(params, after)


def scores_of(tree: Any, masks: Masks) -> list[jax.Array]:
    """The leaves of a tree of scores (or more) where masks are; a UserError if one does not fit its mask."""
    paths, definition = jax.tree_util.tree_flatten_with_path(masks, is_leaf=lambda x: x is None)
    pairs = zip(paths, definition.flatten_up_to(tree), strict=True)
    leaves = [(path_of(path), mask, x) for (path, mask), x in pairs if mask is not None]
    for path, mask, x in leaves:
        if getattr(x, "shape", None) != mask.shape:
            raise UserError(f"scores of {path} are no array of shape {mask.shape}; a score per weight is needed")
        check_scores(path, x)
    return [x for _, _, x in leaves]


def keep_leaves(scores, live, amounts: Amounts, groups: Groups, method, transform=None):
    """The masks and thresholds of leaves by scores, taken through `transform` if any; None and nan where left alone."""
    slots = groups.slots
    members: dict[Any, dict[int, Slot]] = {}
    for i, slot in enumerate(slots):
        if slot:
            members.setdefault(slot.tile.bound or i, {})[i] = slot
    pooled = [
        _pooled([scores[i] for i in own], live and [live[i] for i in own], [*own.values()], transform)
        for own in members.values()
    ]
    if method is not exact and any(leaf.slot.tile.among for leaf in pooled):
        raise UserError("structure: tiles are chosen among m with method = 'exact' alone; use it")
    tiles, cuts = method(pooled, groups, amounts) if pooled else ([], jnp.zeros(0))
    masks: list[Any] = [None] * len(slots)
    thresholds: list[Any] = [jnp.float32(jnp.nan)] * len(slots)
    for own, kept in zip(members.values(), tiles, strict=True):
        for i, slot in own.items():
            tile = slot.tile
            masks[i] = expand_bound(kept, tile, scores[i]) if tile.bound else expand(kept, tile.together, scores[i])
            thresholds[i] = cuts[slot.first] if slot.axis is None else cuts[slot.first : slot.first + slot.parts]
    return masks, thresholds


def _pooled(values: Sequence[jax.Array], lives: Sequence[jax.Array] | None, slots: Sequence[Slot], transform) -> Leaf:
    """The scores of a leaf's tiles, or of several leaves' whose tiles are bound."""
    if slots[0].tile.bound:
        tiles = [slot.tile for slot in slots]
        scores = lax.optimization_barrier(pool_bound(values, tiles, transform))
        whole = Tile((sum(math.prod(tile.together) for tile in tiles),))
        return Leaf(scores, None if lives is None else pool_any_bound(lives, tiles), slots[0]._replace(tile=whole))
    x, live, slot = values[0], lives[0] if lives else None, slots[0]
    together = slot.tile.together
    if set(together) <= {1}:
        return Leaf(x, live, slot, transform)
    scores = lax.optimization_barrier(pool(x, together, transform))
    return Leaf(scores, None if live is None else pool_any(live, together), slot)


def select(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: str | Scope = "global",
    structure: str | Structure = "weights",
    method: str | Method = "exact",
    scopes: Mapping[str, Scope] = SCOPES,
) -> tuple[Masks, Any]:
    """`keep_top`'s masks and the tree of thresholds: float32, a scalar per leaf, (parts,) where a scope splits it.

    With method "exact" every kept score is >= its threshold, every pruned one <= it; inf where nothing is kept, nan
    where there is none. With the other methods kept scores are > the threshold. Of blocks, scores are means.
    """
    scores = jax.tree.map(jnp.asarray, scores)
    leaves = scores_of(scores, scores)
    groups, amounts = share_out(scores, sparsity, chosen("scope", scope, scopes), structure_named(structure))
    masks, thresholds = _select(leaves, amounts, groups, chosen("method", method, METHODS))
    tree = jax.tree.structure(scores)
    return tree.unflatten(masks), tree.unflatten(thresholds)


@partial(jax.jit, static_argnums=(2, 3))
def _select(scores, amounts, groups, method):
    masks, thresholds = keep_leaves(scores, None, amounts, groups, method)
    return [jnp.ones_like(x, bool) if m is None else m for x, m in zip(scores, masks)], thresholds


def keep_top(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: str | Scope = "global",
    structure: str | Structure = "weights",
    method: str | Method = "exact",
    scopes: Mapping[str, Scope] = SCOPES,
) -> Masks:
    """Bool masks that are True at the highest scores of each group of `scope`.

    Args:
      scores: tree of float32, bfloat16 or float16 arrays, None where not prunable; higher = keep. Leaves may be sharded
        in any way under `jit`; each holds fewer than 2^32 elements, a group at most 2^39.
      sparsity: fraction in [0, 1] to prune, a float or a (traced) scalar, which is clipped; or amounts per path.
      scope: "global" (one group), "matrix" (each leaf), a name in `scopes`, or a `groups.Scope`.
      structure: "weights", "n:m" (like 2:4), "block(rows, columns)" (like block(32, 32)), or a `structures.Structure`.
      method: "exact", "quantile" (`jnp.quantile`, keep above it), "hist256" (TensorFlow <= 1.13), or a
        `thresholds.Method`.

    Method "exact" keeps exactly round((1 - sparsity) N) of a group of N tiles: the nearest integer, halves to the even
    one, computed in integers from the decimal that a Python number prints as. An array, also a traced one, is read as
    float32 and stands for the decimal of at most six places that it represents, if any (`integers.kept_counts`). Scores
    rank NaN < -inf < ... < -0.0 = +0.0 < ... < +inf. Ties at the threshold are broken by a hash of the tile's number in
    its group, so masks favour no position and are the same on any mesh.

    Raises:
      UserError: an unknown name, a Python sparsity outside [0, 1], a wrong dtype, tiles or parts that do not divide a
        leaf, regexes that do not give each path one amount.
    """
    return select(scores, sparsity, scope=scope, structure=structure, method=method, scopes=scopes)[0]
