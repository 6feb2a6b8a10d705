"""Sparsity of every attention head (Fig 4 left), over all matrices that an architecture splits into heads."""

from collections.abc import Callable

import numpy as np

from jaxprune.analysis.paths import Leaves
from jaxprune.errors import UserError

Split = Callable[[str, tuple[int, ...]], tuple[str, int | None, int] | None]
"""(path, shape) -> (group name, axis along which the matrix is cut into `parts` heads, parts), or None: has no heads.
An architecture's scope `head`."""


def head_sparsity(masks: Leaves, split: Split) -> dict[str, np.ndarray]:
    """{group name: (parts,) fraction pruned of each head's weights in those matrices that have a mask}.

    UserError when the heads do not divide a matrix.
    """
    kept: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for path, mask in masks.items():
        name, axis, parts = split(path, mask.shape) or ("", None, 1)
        if axis is None:
            continue
        if mask.shape[axis] % parts:
            raise UserError(f"{path}: {parts} heads do not divide {mask.shape[axis]}, the length of its axis {axis}")
        counts = np.count_nonzero(np.moveaxis(mask, axis, 0).reshape(parts, -1), axis=1)
        kept[name] = kept.get(name, 0) + counts
        sizes[name] = sizes.get(name, 0) + mask.size // parts
    return {name: 1 - counts / sizes[name] for name, counts in kept.items()}
