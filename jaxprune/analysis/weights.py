"""The weights themselves: mean and std per matrix (Table 3), heatmaps (Figs 7, 8), rows of tokens, memory by part."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.analysis.paths import Leaves


def moments(params: Leaves, masks: Leaves | None = None) -> list[dict[str, Any]]:
    """A row per matrix: size, mean, std, abs_mean over all weights, and with masks kept_std over the kept ones."""
    rows = []
    for path, weights in params.items():
        values = weights.astype(np.float64)
        row = {"path": path, "size": values.size, "mean": float(values.mean()), "std": float(values.std())}
        row["abs_mean"] = float(np.abs(values).mean())
        if masks is not None and path in masks:
            kept = values[masks[path]]
            row["kept_std"] = float(kept.std()) if kept.size else float("nan")
        rows.append(row)
    return rows


def heatmap(weights: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean |w| of a matrix in (rows, columns) blocks of nearly equal size; never more blocks than entries."""
    values = np.abs(weights.astype(np.float64))
    for axis, count in enumerate((rows, columns)):
        length = values.shape[axis]
        edges = np.arange(min(count, length)) * length // min(count, length)
        sizes = np.diff([*edges, length])
        values = np.add.reduceat(values, edges, axis) / (sizes[:, None] if axis == 0 else sizes)
    return values


def token_group(token: str, special: Collection[str] = ()) -> str:
    """What kind of row a word piece has: `[unused]`, `special`, `1 character`, `2-3`, `4-6`, `7 or more` letters.

    Rows of unused pieces are never trained, so they must be told apart before "short pieces are pruned first" can be
    said (T17).
    """
    if re.fullmatch(r"\[unused\d+\]", token):
        return "[unused]"
    if token in special:
        return "special"
    length = len(token.removeprefix("##"))
    return "1 character" if length <= 1 else "2-3" if length <= 3 else "4-6" if length <= 6 else "7 or more"


def token_rows(
    words_VD: np.ndarray,
    vocabulary: Sequence[str],
    mask_VD: np.ndarray | None = None,
    *,
    special: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A row per token group of the word embeddings: how many rows, their mean |w|, and with a mask their sparsity.

    special: the tokens with a meaning of their own. Rows behind the vocabulary's end are `padding`.
    """
    groups: dict[str, list[int]] = {}
    for i in range(len(words_VD)):
        groups.setdefault(token_group(vocabulary[i], special) if i < len(vocabulary) else "padding", []).append(i)
    rows = []
    for group, members in groups.items():
        row = {"group": group, "rows": len(members), "abs_mean": float(np.abs(words_VD[members]).mean())}
        rows.append(row | ({} if mask_VD is None else {"sparsity": 1 - float(mask_VD[members].mean())}))
    return rows


def memory(
    params: Mapping[str, Any], parts: Sequence[tuple[str, str]], masks: Leaves | None = None
) -> list[dict[str, Any]]:
    """A row per part: its weights, their share of all, and how many are kept; leaves need a `shape` only.

    parts: (name, regex over whole paths); the first that matches counts a leaf, `other` the leaves that none matches.
    """
    weights, pruned = (dict.fromkeys([*dict(parts), "other"], 0) for _ in range(2))
    for path, leaf in params.items():
        part = next((name for name, regex in parts if re.fullmatch(regex, path)), "other")
        weights[part] += int(np.prod(leaf.shape))
        pruned[part] += int(np.count_nonzero(~masks[path])) if masks and path in masks else 0
    total = max(sum(weights.values()), 1)
    return [
        {"part": part, "weights": count, "share": count / total, "kept": count - pruned[part]}
        for part, count in weights.items()
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two matrices as vectors; NaN when one is all zero."""
    x, y = (side.reshape(-1).astype(np.float64) for side in (a, b))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float("nan")
