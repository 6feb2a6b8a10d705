"""Amounts: how much of each group is kept, counted on the host from the decimals that a user writes."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.errors import UserError
from jaxprune.pruning.distributions import Distribution, shared, uniform
from jaxprune.pruning.groups import group
from jaxprune.pruning.integers import kept_counts, wide, wide_ge
from jaxprune.pruning.interface import Amounts, Group, Groups, Scope, Sparsity, Structure
from jaxprune.pruning.names import matching, path_of


def share_out(
    tree: Any, sparsity: Sparsity, scope: Scope, structure: Structure, distribution: Distribution = uniform
) -> tuple[Groups, Amounts]:
    """The groups of a tree of arrays or `jax.ShapeDtypeStruct`s, and what is kept of each; a host function.

    Of Python numbers, the counts are round((1 - s) N), halves to even, of the decimal that prints as s; of arrays, also
    traced ones, see `integers.kept_counts`. With another `distribution` than `uniform`, groups of one amount keep
    together what they would as one group, shared out by it; leaves chosen n of m keep their own share.

    Raises:
      UserError: a sparsity outside [0, 1] or beyond a structure's n of m; a `distribution` of an array, or of n of m
        alone; regexes that match nothing or the same path, or leave a path without an amount; amounts of other groups.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths, shapes = [path_of(path) for path, _ in leaves], [leaf.shape for _, leaf in leaves]
    if isinstance(sparsity, Amounts):
        groups = group(paths, shapes, _regexes(paths, sparsity.regexes), scope, structure)
        if tuple(groups.sizes) != sparsity.sizes:
            raise UserError("sparsity: these amounts are of other masks, or of another scope or structure")
        return groups, sparsity
    fractions = dict(sparsity) if isinstance(sparsity, Mapping) else {"": sparsity}
    regexes = tuple((regex, fraction is not None) for regex, fraction in fractions.items())
    groups = group(paths, shapes, _regexes(paths, regexes), scope, structure)
    written = {regex: float(s) for regex, s in fractions.items() if isinstance(s, int | float)}
    of_groups = [written.get(one.regex, 0.0) for one in groups.groups]
    counts = [_kept(one, s) for one, s in zip(groups.groups, of_groups)]
    if distribution is not uniform:
        if {*fractions} - {*written} - {regex for regex, s in fractions.items() if s is None}:
            raise UserError("distribution: shares out what is counted on the host; give a sparsity that is a number")
        counts = _distributed(groups, shapes, counts, of_groups, distribution)
        of_groups = [1 - kept / max(one.size, 1) for kept, one in zip(counts, groups.groups)]
    kept = wide(counts)
    fraction = jnp.array(of_groups, jnp.float32)
    least = wide([one.least for one in groups.groups])
    for regex, s in fractions.items():
        if s is None or regex in written:
            continue
        here = jnp.array([one.regex == regex for one in groups.groups], bool)
        counts = kept_counts(groups.sizes, s)
        counts = jnp.where(wide_ge(counts, least)[:, None], counts, least)
        kept = jnp.where(here[:, None], counts, kept)
        fraction = jnp.where(here, jnp.clip(jnp.asarray(s, jnp.float32), 0.0, 1.0), fraction)
    return groups, Amounts(kept, fraction, regexes, tuple(groups.sizes))


def _distributed(
    groups: Groups, shapes: Sequence[tuple[int, ...]], counts: list[int], sparsities: list[float], by: Distribution
) -> list[int]:
    """The number of tiles that stay of each group, shared out among the groups of each amount."""
    weights, counted = [Fraction(0)] * len(counts), set()
    for slot, shape in zip(groups.slots, shapes, strict=True):
        if slot is None or slot.tile.bound in counted or not prod(shape):
            continue
        counted |= {slot.tile.bound} - {""}
        tiles = prod(n // t for n, t in zip(shape, slot.tile.together))
        for i in range(slot.first, slot.first + slot.parts):
            weights[i] += by(shape) * tiles / slot.parts
    members: dict[str, list[int]] = {}
    for i, one in enumerate(groups.groups):
        if not one.each:
            members.setdefault(one.regex, []).append(i)
    if counts and not members:
        raise UserError("distribution: n of m consecutive weights are as many everywhere; use uniform")
    for own in members.values():
        sizes = [groups.groups[i].size for i in own]
        total = _kept(groups.groups[own[0]]._replace(size=sum(sizes)), sparsities[own[0]])
        for i, count in zip(own, shared(total, [weights[i] for i in own], sizes), strict=True):
            counts[i] = count
    return counts


def _regexes(paths: Sequence[str], regexes: Sequence[tuple[str, bool]]) -> list[str | None]:
    """The regex of each path, None where it is left alone."""
    owner: dict[str, str] = {}
    for regex, _ in regexes:
        for path in matching(regex, paths, "amounts") if regex else ():
            if path in owner:
                raise UserError(f"amounts: both {owner[path]!r} and {regex!r} match {path}; give it one amount")
            owner[path] = regex
    pruned = dict(regexes)
    for path in paths:
        if path not in owner and "" not in pruned:
            raise UserError(f"amounts: no regex matches {path}; give the rest an amount under the key ''")
    return [regex if pruned[regex := owner.get(path, "")] else None for path in paths]


def _kept(one: Group, sparsity: float) -> int:
    """The number of tiles of a group that stay."""
    amount = f"amounts: {one.regex!r} = {sparsity}" if one.regex else f"sparsity = {sparsity}"
    if not 0 <= sparsity <= 1:
        raise UserError(f"{amount} is no sparsity; use a fraction in [0, 1]")
    kept = (1 - Fraction(Decimal(repr(sparsity)))) * one.size
    if kept < one.least:
        most = f"{one.least} of {one.size} stay, so use at most {1 - one.least / one.size}"
        raise UserError(f"{amount} of {one.name.removeprefix('/')}: {most}")
    return round(kept)
