"""Prune a Hugging Face BERT in one shot, without training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxprune.config import PruneConfig
from jaxprune.experiments.start import zeros_as_masks
from jaxprune.models.hf import load_hf, save_masked
from jaxprune.pruning import CRITERIA, leaf_counts, prune


def prune_directory(
    src: str,
    dst: Path,
    *,
    sparsity: float,
    scope: str = "matrix",
    method: str = "exact",
    criterion: str = "magnitude",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
    revision: str | None = None,
) -> dict[str, tuple[int, int]]:
    """Write `src` to `dst` with `sparsity` (a fraction in [0, 1]) of its prunable weights 0; (kept, size) per path.

    Every other value, tensor and file is carried over bit-equal; weights that were 0 count as pruned. Prints a row per
    matrix. ValueError, before anything is written, when `dst` holds something or an argument does not fit.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"--sparsity {sparsity}: give a fraction in [0, 1]")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"{dst}: exists and is not empty; name a new directory")
    cfg, params = load_hf(src, head="pretraining", revision=revision)
    found = zeros_as_masks(params, src, include or PruneConfig().include, exclude)

    masks = jax.device_get(
        _new_masks(
            params,
            found,
            jnp.float32(sparsity),
            jax.random.key(seed),
            criterion=criterion,
            scope=scope,
            method=method,
            num_heads=cfg.num_attention_heads,
        )
    )
    save_masked(src, dst, masks, revision=revision)
    counts = leaf_counts(masks)
    _print(dst, counts)
    return counts


@partial(jax.jit, static_argnames=("criterion", "scope", "method", "num_heads"))
def _new_masks(params, masks, sparsity, key, *, criterion, scope, method, num_heads):
    return prune(
        params,
        masks,
        sparsity,
        criterion=CRITERIA[criterion],
        scope=scope,
        method=method,
        num_heads=num_heads,
        key=key,
    )


def _print(dst: Path, counts: dict[str, tuple[int, int]]) -> None:
    table = Table("matrix", "weights", "kept", "sparsity")
    for path, (kept, size) in counts.items():
        table.add_row(path, f"{size:,}", f"{kept:,}", f"{1 - kept / size:.4f}")
    kept, size = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    table.add_section()
    table.add_row(f"{len(counts)} matrices", f"{size:,}", f"{kept:,}", f"{1 - kept / size:.6f}")
    Console().print(table)
    print(f"wrote {dst}")
