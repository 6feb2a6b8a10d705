"""What a config prunes and how: its paths, its pruner, its plan."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxprune.config.sections import ModelConfig, PruneConfig
from jaxprune.errors import UserError
from jaxprune.models import architecture_named
from jaxprune.models.model import Head
from jaxprune.models.tensors import leaf_shapes
from jaxprune.models.units import prunable_units, structures
from jaxprune.pruning.criteria import CRITERIA, criterion_of
from jaxprune.pruning.groups import SCOPES
from jaxprune.pruning.interface import Pruner, Scope, Structure
from jaxprune.pruning.masks import init_masks, pruned_share
from jaxprune.pruning.names import chosen, matched, path_of
from jaxprune.pruning.pruner import pruner
from jaxprune.pruning.schedules import SCHEDULES, lifted, plan, regrowth
from jaxprune.pruning.structures import structure_named

_LAYER = re.compile(r"(?<!\\)layer\.(\d+)")  # as in Hugging Face's names of tensors; paths here hold layer_00


def included(prune: PruneConfig, model: ModelConfig, also: Sequence[str] = ()) -> PruneConfig:
    """`prune` with the regexes of the architecture's prunable paths, and `also` these, where it names none."""
    if prune.include:
        return prune
    include = dict.fromkeys((*prunable_by(prune.structure, model), *also))
    return prune.model_copy(update={"include": tuple(include)})


def prunable_by(structure: str, model: ModelConfig) -> Sequence[str]:
    """The regexes of the paths that a structure prunes where a config names none: of heads and neurons their own."""
    record = architecture_named(model.architecture)
    return prunable_units(record.units, structure) or record.prunable


def structure_of(name: str, model: ModelConfig) -> Structure:
    """The structure of a name: one of the architecture's own, or everyone's. UserError where it is none."""
    own = structures(architecture_named(model.architecture).units, model)
    return own[name] if name in own else structure_named(name, own)


def unpruned(prune: PruneConfig, params: Any) -> Any:
    """All-True masks of params (or of their shapes) where `prune` may prune.

    UserError where that is nowhere, for regexes that match nothing, and for one that takes biases and LayerNorms along
    with matrices; it begins with the setting, as `named` needs it.
    """
    for key, regexes in (("include", prune.include), ("exclude", prune.exclude), ("amounts", prune.amounts)):
        check_layers(key, regexes)
    masks = init_masks(params, prune.include, prune.exclude)
    sizes = {path_of(path): mask.ndim for path, mask in jax.tree_util.tree_leaves_with_path(masks)}
    if not sizes:
        raise UserError(f"exclude = {list(prune.exclude)} leaves nothing to prune; exclude less")
    for regex in prune.include:
        taken = matched(regex, sizes, "include")
        vectors = sorted(path for path in taken if sizes[path] < 2)
        if 0 < len(vectors) < len(taken):
            which = f"{len(vectors)} biases and LayerNorms along with matrices, such as {vectors[0]}"
            raise UserError(f"include: {regex!r} takes {which}; end it in /kernel, or give them a regex of their own")
    return masks


def check_layers(key: str, regexes: Iterable[str]) -> None:
    """UserError for a regex with a layer as in Hugging Face's names of tensors, which here would take every layer."""
    for regex in regexes:
        if layer := _LAYER.search(regex):
            path = f"layer_{int(layer[1]):02d}/"
            raise UserError(f"{key}: {regex!r}: a dot stands for any character; this layer's paths hold {path}")


def scopes_of(model: ModelConfig) -> Mapping[str, Scope]:
    """The scopes that have names: everyone's and the architecture's."""
    return SCOPES | architecture_named(model.architecture).scopes(model)


def pruner_of(prune: PruneConfig, model: ModelConfig) -> Pruner:
    """The pruner of a config; UserError for a name that is none, with the key that holds it."""
    names = {"scope": prune.scope, "method": prune.method, "mode": prune.mode, "distribution": prune.distribution}
    with named("prune."):
        if criterion_of(prune.criterion).watches == "inputs":
            remedy = "fisher or obert here, or jaxprune prune --calibration"
            raise UserError(
                f"criterion = {prune.criterion} looks at inputs, which training does not show; use {remedy}"
            )
        structure = structure_of(prune.structure, model)
        grows: dict[str, Any] = {}
        if prune.regrow:
            fraction = regrowth(prune.regrow_fraction, begin=prune.begin, end=prune.end)
            grows = {"regrow": prune.regrow, "regrow_fraction": fraction}
        elif prune.lift_steps and prune.mode == "hard":
            if criterion_of(prune.criterion).compensate:
                raise UserError(f"lift_steps = {prune.lift_steps}: {prune.criterion} changes kept weights; use another")
            grows = {"regrow": "random", "regrow_fraction": 0.0}  # all or none come back
        grows["straight_through"] = prune.straight_through
        return pruner(prune.criterion, structure=structure, **names, **grows, scopes=scopes_of(model))


@contextmanager
def named(prefix: str) -> Iterator[None]:
    """A block whose UserErrors begin with a setting of pruning: told as the key or flag that holds it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}".replace("--amounts", "--amount")) from None


def plan_of(prune: PruneConfig, steps: int, whose: str) -> dict[int, Any]:
    """Step -> sparsity, or {regex: sparsity} with "" for the rest, of every prune; empty without any.

    UserError when the final sparsity would come after the last of `steps`, whose number the key `whose` sets, and when
    something would be pruned before the first step by scores that come from steps.
    """
    scheduled = chosen("prune.schedule", prune.schedule, SCHEDULES)
    finals = prune.finals
    if not prune.prunes:
        return {}
    if prune.end > steps:
        raise UserError(f"prune.end = {prune.end} lies after {whose} = {steps}, so the final sparsity is never reached")
    plans: dict[str, dict[int, float]] = {}
    for regex, final in finals.items():
        if final is not None:
            initial = min(prune.initial, final)
            schedule = scheduled(final, begin=prune.begin, end=prune.end, initial=initial)
            plans[regex] = plan(schedule, begin=prune.begin, end=prune.end, every=prune.every)
            if prune.refresh:
                plans[regex] |= plan(schedule, begin=prune.begin, end=steps, every=prune.every)
            plans[regex] = lifted(plans[regex], prune.lift_steps)
    if any(plan.get(0) for plan in plans.values()):
        why = "prune.begin = 0 is before the first; set it to 1 or more, or"
        check_untrained("prune.criterion", prune.criterion, why)
    if not prune.amounts:
        return plans[""]
    return {step: {regex: plans[regex][step] if regex in plans else None for regex in finals} for step in plans[""]}


def check_regrowth(prune: PruneConfig, pruner: Pruner, masks: Any, first: Any) -> None:
    """UserError where `regrow` would give weights back at a plan's `first` target, as more is pruned in `masks`."""
    targets = first if isinstance(first, Mapping) else {"": first}
    leaves = {path_of(path): np.asarray(mask) for path, mask in jax.tree_util.tree_leaves_with_path(masks)}
    owner = {path: regex for regex in targets if regex for path in matched(regex, leaves, "amounts")}
    rounding = 0.5 / min(filter(None, pruner.amounts(masks, first).sizes), default=1)
    for regex, target in targets.items():
        own = [mask for path, mask in leaves.items() if owner.get(path, "") == regex]
        pruned = pruned_share(sum(map(np.count_nonzero, own)), sum(mask.size for mask in own))
        final = prune.finals[regex]
        if target is None or final is None or pruned <= target + rounding:
            continue
        key = f"amounts: {regex!r} = {final:g}" if regex else f"sparsity = {final:g}"
        if target < final and pruned <= final + rounding:
            key = f"initial = {prune.initial:g}"
        less = f"regrow = {prune.regrow} would make it {100 * target:.1f} %"
        remedy = f"set {math.ceil(1e4 * (pruned - min(rounding, 1e-6))) / 1e4:g} or more"
        raise UserError(f"prune.{key}: {100 * pruned:.1f} % of the start is pruned, and {less}; {remedy}")


def restarts_of(decay: str, plan: Mapping[int, Any]) -> tuple[int, ...]:
    """Steps at which the learning rate begins anew: prunes that take more, with `rewound` the last of them alone."""
    rises, before = [], {}
    for step, target in plan.items() if decay in ("cycles", "rewound") else ():
        amounts = target if isinstance(target, Mapping) else {"": target}
        if any((amount or 0) > before.get(regex, 0) for regex, amount in amounts.items()):
            rises.append(step)
        before = {regex: amount or 0 for regex, amount in amounts.items()}
    return tuple(rises[-1:] if decay == "rewound" else rises)


def check_untrained(key: str, criterion: str, why: str) -> None:
    """UserError unless scores of the criterion at `key` mean something before a train step; `why` there is none."""
    if criterion_of(criterion, key).observe is not None:
        others = ", ".join(name for name in CRITERIA if criterion_of(name).observe is None)
        raise UserError(f"{key} = {criterion}: its scores come from training steps, and {why} use one of {others}")


def with_paths_of(prune: PruneConfig, model: ModelConfig, head: Head, num_labels: int) -> PruneConfig:
    """`prune` without the architecture's own regexes that match no path of a model with this head (a pooler's)."""
    record = architecture_named(model.architecture)
    paths = leaf_shapes(record, model, head=head, num_labels=num_labels)
    own = (*record.prunable, *prunable_units(record.units, prune.structure))
    include = [regex for regex in prune.include if regex not in own or matched(regex, paths, "include")]
    return prune.model_copy(update={"include": tuple(include)})
