"""The loss as a quadratic form of blocks of weights: what a weight costs, and what the kept ones should become."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.pruning.interface import Criterion
from jaxprune.pruning.inverses import among, inverse, product, unit_like
from jaxprune.pruning.masks import on_prunable
from jaxprune.pruning.structures import merge, split

BLOCK = 50
"""Weights of a block at most, as in the paper."""
DAMPING = 0.1
"""What is added to the diagonal, as a share of its mean over the leaf."""
_LEAST = 1e-12  # added where no gradient was seen: scores are those of magnitude then


def block_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(axis, size): blocks are of consecutive weights along the one of the last two axes that larger blocks divide."""
    axes = range(max(len(shape) - 2, 0), len(shape))
    sizes = {axis: max(b for b in range(1, BLOCK + 1) if shape[axis] % b == 0) for axis in axes}
    axis = max(sizes, key=lambda axis: (sizes[axis], -axis))
    return axis, sizes[axis]


def _blocks(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x, of a leaf's shape and more axes, with its blocks behind all other axes of the leaf: (..., B, more)."""
    axis, tile = block_of(shape)[0], _tile(x, shape)
    pieces = split(x, tile)
    pieces = jnp.squeeze(pieces, [2 * i + 1 for i in range(x.ndim) if i != axis])
    return jnp.moveaxis(pieces, axis + 1, len(shape))


def _tile(x: jax.Array, shape: tuple[int, ...]) -> list[int]:
    axis, size = block_of(shape)
    return [size if i == axis else 1 for i in range(x.ndim)]


def _whole(x: jax.Array, like: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_blocks`, sharded as `like`."""
    axis = block_of(shape)[0]
    pieces = jnp.moveaxis(x, len(shape), axis + 1)
    for i in range(like.ndim):
        pieces = pieces if i == axis else jnp.expand_dims(pieces, 2 * i + 1)
    return merge(pieces, like)


def _nothing(w: jax.Array) -> jax.Array:
    """Zeros (leaf, B), sharded as w."""
    return jnp.repeat(jnp.zeros_like(w, dtype=jnp.float32)[..., None], block_of(w.shape)[1], axis=-1)


def _add(total: jax.Array, g: jax.Array) -> jax.Array:
    """`total` (leaf, B) plus the outer product of each block of gradients with itself."""
    blocks = _blocks(g.astype(jnp.float32), g.shape)
    return total + _whole(blocks[..., :, None] * blocks[..., None, :], total, g.shape)


def _damped(total: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The blocks' Fisher matrices (..., B, B), up to a factor, with a diagonal that makes them definite."""
    matrices = _blocks(total, shape)
    mean = jnp.mean(jnp.diagonal(matrices, axis1=-2, axis2=-1))
    # Of a sum over shards the last bits depend on the mesh; 8 bits say enough of a damping.
    mean = lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=7)
    return matrices + (DAMPING * mean + _LEAST) * unit_like(matrices)


def _worth(total: jax.Array, w: jax.Array, live: jax.Array) -> jax.Array:
    """w^2 / (2 [F^-1]_ii): how much the loss rises when a weight becomes 0 and the other live ones make up for it."""
    matrices = among(_damped(total, w.shape), _blocks(live, w.shape))
    diagonal = jnp.diagonal(inverse(matrices), axis1=-2, axis2=-1)
    return jnp.square(w.astype(jnp.float32)) / (2 * _whole(diagonal, w, w.shape))


def made_up(matrices: jax.Array, w: jax.Array, kept: jax.Array, lost: jax.Array) -> jax.Array:
    """Values (..., B) of the kept weights for which the quadratic form of `matrices` (..., B, B) is least, the lost 0.

    `kept` and `lost` bool (..., B); weights that are neither count as 0 already. Others than the kept come back as 0.
    """
    pull = jnp.where(kept, product(matrices, jnp.where(lost, w, 0)[..., None])[..., 0], 0)
    solved = product(inverse(among(matrices, kept)), pull[..., None])[..., 0]
    return jnp.where(kept, w + solved, 0)


def _compensate(total: jax.Array, w: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    kept, lost = _blocks(after, w.shape), _blocks(before & ~after, w.shape)
    values = made_up(_damped(total, w.shape), _blocks(w.astype(jnp.float32), w.shape), kept, lost)
    return _whole(values, w, w.shape).astype(w.dtype)


obert = Criterion(
    init=lambda params, masks: on_prunable(_nothing, masks, params),
    observe=lambda state, params, masks, grads: on_prunable(_add, masks, state, grads),
    score=lambda state, params, masks, key: on_prunable(_worth, masks, state, params, masks),
    compensate=lambda state, params, before, after: on_prunable(_compensate, after, state, params, before, after),
)
"""w^2 / (2 [F^-1]_ii) by a Fisher matrix of the gradients since the last prune, in blocks of at most BLOCK weights, and
the update of what is kept that goes with it (oBERT, Kurtic et al. 2022). There the update is the sum of those of each
pruned weight alone, the damping 1e-7, and a thousand or so gradients are taken anew before a prune."""
