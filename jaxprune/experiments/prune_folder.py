"""Prune a Hugging Face BERT in one shot, without training."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from jaxprune.config.load import validate
from jaxprune.config.sections import PruneConfig
from jaxprune.errors import UserError
from jaxprune.experiments.program import named, pruner_of
from jaxprune.experiments.pruning_plan import check_untrained, included
from jaxprune.experiments.weights import read_weights, start_masks, there
from jaxprune.models.folder import write_masked
from jaxprune.pruning.masks import leaf_counts


def prune_folder(
    src: str,
    dst: Path,
    *,
    sparsity: float,
    scope: str = "matrix",
    structure: str = "weights",
    method: str = "exact",
    criterion: str = "magnitude",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    amounts: Mapping[str, float | None] | None = None,
    masks: str = "fixed",
    seed: int = 0,
    revision: str = "",
    variant: str = "",
) -> dict[str, tuple[int, int]]:
    """Write `src` to `dst` with `sparsity` (a fraction in [0, 1]) of its prunable weights 0; (kept, size) per path.

    Every other value, tensor and file is carried over bit-equal; `variant` names the weights to read (`fp16`). What
    `src` has pruned stays pruned unless `masks` is "none". Prints a row per matrix. UserError, before
    anything is written, when `dst` holds something or an argument does not fit.
    """
    if not 0 <= sparsity <= 1:
        raise UserError(f"--sparsity {sparsity}: give a fraction in [0, 1]")
    check_untrained("--criterion", criterion, "one shot makes none;")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise UserError(f"{dst}: exists and is not empty; name a new directory")
    weights = read_weights(src, revision, variant)
    settings = {"sparsity": sparsity, "scope": scope, "structure": structure, "method": method, "criterion": criterion}
    settings |= {"include": tuple(include), "exclude": tuple(exclude), "amounts": dict(amounts or {})}
    prune = validate(PruneConfig, settings, "command line")
    chosen = there(included(prune, weights.model), weights, default=not include)
    before = start_masks(weights.params, weights, chosen, lift=masks == "none")
    pruner = pruner_of(chosen, weights.model, prefix="--")
    update = jax.jit(partial(pruner.update, pruner.init(weights.params, before)))
    with named("--"):
        wanted = pruner.amounts(before, prune.finals if prune.amounts else sparsity)
    after = jax.device_get(update(weights.params, before, wanted, jax.random.key(seed))[1])
    write_masked(src, dst, after, revision=revision or None, variant=variant)
    counts = leaf_counts(after)
    _print(dst, counts)
    return counts


def _print(dst: Path, counts: dict[str, tuple[int, int]]) -> None:
    table = Table("matrix", "weights", "kept", "sparsity")
    for path, (kept, size) in counts.items():
        table.add_row(path, f"{size:,}", f"{kept:,}", f"{1 - kept / size:.4f}")
    kept, size = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    table.add_section()
    table.add_row(f"{len(counts)} matrices", f"{size:,}", f"{kept:,}", f"{1 - kept / size:.6f}")
    Console().print(table)
    print(f"wrote {dst}")
