"""Prune a Hugging Face encoder in one shot, without training."""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.table import Table

from jaxprune.config.load import of_percent, validate
from jaxprune.config.sections import PruneConfig
from jaxprune.errors import UserError
from jaxprune.experiments.calibration import observed, read_texts, unread
from jaxprune.experiments.mask_origin import origin_of_command
from jaxprune.experiments.own_folder import check_new
from jaxprune.experiments.pruning_plan import check_untrained, included, named, scopes_of, structure_of
from jaxprune.experiments.weights import Weights, model_folder, read_weights, say_pruned, start_masks, there
from jaxprune.models import architecture_named
from jaxprune.models.architecture import encoder_matrices
from jaxprune.models.folder import write_masked
from jaxprune.pruning.criteria import BY_INPUTS, CRITERIA, criterion_of
from jaxprune.pruning.interface import Structure
from jaxprune.pruning.pruner import compensated
from jaxprune.pruning.single_prune import prune_once
from jaxprune.pruning.structures import tile_of

log = logging.getLogger("jaxprune")

Counts = dict[str, tuple[int, int]]
"""Path of a matrix -> (weights kept, weights)."""


def prune_folder(
    src: str,
    dst: Path,
    *,
    sparsity: float,
    scope: str = "matrix",
    distribution: str = "uniform",
    structure: str = "weights",
    method: str = "exact",
    criterion: str = "magnitude",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    amounts: Mapping[str, float | None] | None = None,
    masks: str = "fixed",
    calibration: str = "",
    texts: int = 256,
    rounds: int = 1,
    seed: int = 0,
    revision: str = "",
    variant: str = "",
    verbose: bool = False,
) -> Counts:
    """Write `src` to `dst` with `sparsity` (a fraction in [0, 1]) of its prunable weights 0; (kept, size) per path.

    `src`: a Hugging Face directory or hub name, or the workdir of a run that left a model. Every other value, tensor
    and file is carried over bit-equal; `variant` names the weights to read (`fp16`). What `src` has pruned stays pruned
    unless `masks` is "none". Without `include`, matrices that `structure` does not fit are left alone, which is said.
    A criterion that observes something reads the first `texts` lines of the file `calibration`, and does so before each
    of `rounds` prunes that rise evenly to the sparsity; one that compensates changes the kept weights.
    Prints a row per kind of matrix, `verbose` one per matrix. UserError, before anything is written, when `dst` holds
    something or an argument does not fit.
    """
    if not 0 <= sparsity <= 1:
        raise UserError(f"--sparsity {sparsity:g}: give a fraction in [0, 1]{of_percent(sparsity)}")
    scoring = criterion_of(criterion, "--criterion", CRITERIA | BY_INPUTS)
    if criterion == "movement":
        raise UserError("--criterion movement: nothing moves in one shot; use taylor or fisher")
    if not calibration and rounds > 1:
        raise UserError(f"--rounds {rounds}: without --calibration FILE they are one; leave it out")
    if not calibration:
        check_untrained("--criterion", criterion, "one shot makes none without --calibration FILE;")
    elif scoring.observe is None:
        raise UserError(f"--calibration {calibration}: --criterion {criterion} looks at weights alone; leave it out")
    if rounds < 1 or texts < 1:
        raise UserError(f"--rounds {rounds} --texts {texts}: give 1 or more of each")
    if rounds > 1 and amounts:
        raise UserError(f"--rounds {rounds}: goes with one sparsity for all; leave out --amount, or --rounds")
    check_new(dst)
    src = model_folder(src)
    weights = read_weights(src, revision, variant)
    settings: dict[str, Any] = {"sparsity": sparsity, "scope": scope, "structure": structure, "schedule": "one_shot"}
    settings |= {"distribution": distribution, "method": method, "criterion": criterion, "amounts": dict(amounts or {})}
    settings |= {"include": tuple(include), "exclude": tuple(exclude)}
    prune = validate(PruneConfig, settings, "command line")
    chosen = prune if include else there(included(prune, weights.model), weights)
    parts: dict[str, Any] = {"criterion": criterion, "scope": scope, "method": method, "distribution": distribution}
    if masks == "fixed":
        say_pruned(weights, prune)
    with named("--"):
        parts["structure"] = structure_of(structure, weights.model)
        before = start_masks(weights.params, weights, chosen, lift=masks == "none")
        if not include:
            before = _fitting(before, structure, parts["structure"], src)
        if scoring.watches == "inputs":
            before = _read(before, weights, criterion, include)
        after, params, thresholds = before, weights.params, {}
        read = read_texts(calibration, texts, weights, src) if calibration else None
        for number in range(1, rounds + 1):
            held = weights._replace(params=params)
            state = observed(scoring, held, after, read, seed) if read else None
            share = sparsity if number == rounds else sparsity * number / rounds
            wanted = prune.finals if prune.amounts else share
            options = {**parts, "scopes": scopes_of(weights.model), "state": state}
            pruned, thresholds = prune_once(params, after, wanted, jax.random.key(seed), **options)
            params = jax.device_get(jax.jit(partial(compensated, scoring))(state, params, after, pruned)[0])
            after = pruned
    values = params if scoring.compensate else None
    origin = origin_of_command(prune, src, thresholds)
    write_masked(src, dst, after, values, origin=origin, revision=revision or None, variant=variant)
    flat: dict[str, Any] = flatten_dict(after, sep="/")
    made = {path: mask for path, mask in flat.items() if mask is not None}
    counts = {path: (int(np.count_nonzero(mask)), mask.size) for path, mask in made.items()}
    _print(counts, weights, verbose)
    print(f"wrote {dst}")
    return counts


def _fitting(masks: Any, name: str, structure: Structure, src: str) -> Any:
    """Masks without the leaves that the structure's tiles do not divide, unless that is all of them."""
    flat: dict[str, Any] = flatten_dict(masks, sep="/")
    unfit = {}
    for path, mask in flat.items():
        try:
            if mask is not None:
                tile_of(structure, path, mask.shape)
        except UserError as error:
            unfit[path] = error
    if not unfit or len(unfit) == sum(mask is not None for mask in flat.values()):
        return masks
    shapes = ", ".join(f"{path} ({' x '.join(map(str, flat[path].shape))})" for path in unfit)
    log.info("%s: --structure %s does not divide %s: left out", src, name, shapes)
    return unflatten_dict(flat | dict.fromkeys(unfit), sep="/")


def _read(masks: Any, weights: Weights, criterion: str, include: Sequence[str]) -> Any:
    """Masks without the leaves that no text's inputs go into; UserError where units take biases along."""
    apart = unread(weights, masks)
    if biases := [path for path in apart if path.endswith("/bias")]:
        raise UserError(f"--criterion {criterion}: sees no inputs of {biases[0]}; prune units by magnitude or fisher")
    flat: dict[str, Any] = flatten_dict(masks, sep="/")
    if apart and (include or len(apart) == sum(mask is not None for mask in flat.values())):
        why = "looks at what goes into a matrix of the encoder"
        raise UserError(f"--include: {apart[0]}: --criterion {criterion} {why}; leave it out, or use magnitude")
    if apart:
        log.info("--criterion %s sees no inputs of %s: left out", criterion, ", ".join(apart))
    return unflatten_dict(flat | dict.fromkeys(apart), sep="/")


def _print(counts: Counts, weights: Weights, verbose: bool) -> None:
    """A table of what was kept: by matrix, or by kind of matrix over all layers, and over three bases."""
    table = Table("matrix", "weights", "kept", "sparsity")
    rows: dict[str, list[tuple[int, int]]] = {}
    for path, count in counts.items():
        rows.setdefault(path if verbose else _kind(path), []).append(count)
    for name, held in rows.items():
        _add(table, name if len(held) == 1 else f"{name} x {len(held)}", held)
    table.add_section()
    biases = sum(path.endswith("/bias") for path in counts)
    also = f" and {biases} biases" if biases else ""
    _add(table, f"{len(counts) - biases} matrices{also}", [*counts.values()])
    params: dict[str, Any] = flatten_dict(weights.params, sep="/")
    sizes = {path: leaf.size for path, leaf in params.items()}
    matrices = encoder_matrices(architecture_named(weights.model.architecture), sizes)
    for name, paths in (("the encoder's matrices", matrices), ("all weights", sizes)):
        _add(table, name, [counts.get(path, (sizes[path], sizes[path])) for path in paths])
    Console(markup=False).print(table)


def _kind(path: str) -> str:
    """What a matrix is in every layer: `attention/query` of `encoder/layer_00/attention/query/kernel`."""
    return re.sub(r"^.*_\d+/", "", path).rpartition("/")[0].rpartition("embeddings/")[2].replace("_", " ")


def _add(table: Table, name: str, counts: Sequence[tuple[int, int]]) -> None:
    kept, size = (sum(count[i] for count in counts) for i in (0, 1))
    table.add_row(name, f"{size:,}", f"{kept:,}", f"{1 - kept / size:.6f}" if size else "")
