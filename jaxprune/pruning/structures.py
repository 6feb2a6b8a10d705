"""Structures: which weights live or die together, and among which they are chosen."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.errors import UserError
from jaxprune.pruning.axes import even_parts, explicit_sharding, gathered
from jaxprune.pruning.interface import Structure, Tile


def weights(path: str, shape: tuple[int, ...]) -> Tile:
    """Every weight alone."""
    return Tile((1,) * len(shape))


def n_of_m(n: int, m: int) -> Structure:
    """At least n of every m consecutive weights along the contraction axis: axis -2 of kernels (in, out)."""
    if not 1 <= n <= m:
        raise UserError(f"structure = '{n}:{m}' keeps no {n} of {m}; use n:m with 1 <= n <= m")

    def structure(path: str, shape: tuple[int, ...]) -> Tile:
        if len(shape) < 2:
            raise UserError(f"structure = {n}:{m}: {path} has shape {shape}, no contraction axis; exclude it")
        return Tile((1,) * len(shape), (len(shape) - 2, m), n)

    return structure


def block(rows: int, columns: int) -> Structure:
    """Blocks of `rows` x `columns` weights in the last two axes."""

    def structure(path: str, shape: tuple[int, ...]) -> Tile:
        if len(shape) < 2:
            raise UserError(f"structure = block({rows}, {columns}): {path} has shape {shape}, no rows; exclude it")
        return Tile((*(1,) * (len(shape) - 2), rows, columns))

    return structure


STRUCTURES: dict[str, tuple[str, Callable[..., Structure]]] = {
    "weights": (r"weights", lambda: weights),
    "n:m": (r"(\d+):(\d+)", n_of_m),
    "block(rows, columns)": (r"block\((\d+), *(\d+)\)", block),
}
"""Form of a name -> (its regex, the structure made from the regex's integers)."""


def structure_named(name: str | Structure, others: Iterable[str] = ()) -> Structure:
    """The structure of a name like `2:4`; a callable comes back as it is. An unknown name is a UserError, which lists
    `others` too.
    """
    if not isinstance(name, str):
        return name
    for regex, make in STRUCTURES.values():
        if match := re.fullmatch(regex, name):
            return make(*map(int, match.groups()))
    raise UserError(f"structure = {name!r} is unknown; use one of {', '.join((*STRUCTURES, *others))}")


def tile_of(structure: Structure, path: str, shape: tuple[int, ...]) -> Tile | None:
    """The tile of a leaf, None if it is left alone; a UserError that names the path if tiles do not fit its shape."""
    remedy = f"exclude it, or leave it alone by amounts: {{{path}: null}}"
    tile = structure(path, shape)
    if tile is None:
        return None
    tile = tile if isinstance(tile, Tile) else Tile(tuple(tile))
    fits = len(tile.together) == len(shape) and all(t > 0 and n % t == 0 for n, t in zip(shape, tile.together))
    if not fits:
        raise UserError(f"structure: tiles of {tile.together} do not divide {path}, a leaf of shape {shape}; {remedy}")
    if tile.among:
        axis, m = tile.among
        if not 0 <= axis < len(shape) or m < 1 or shape[axis] // tile.together[axis] % m:
            fault = f"groups of {m} do not divide axis {axis} of {path}, a leaf of shape {shape}"
            raise UserError(f"structure: {fault}; {remedy}")
    return tile


def split(x: jax.Array, together: Sequence[int]) -> jax.Array:
    """x (n0 t0, n1 t1, ...) as (n0, t0, n1, t1, ...), on the devices where it is if the tiles divide the shards."""
    shape = [n for size, t in zip(x.shape, together) for n in (size // t, t)]
    sharding = explicit_sharding(x)
    if sharding is None:
        return x.reshape(shape)
    parts = even_parts(sharding, shape[::2])
    x = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*parts)))
    spec = PartitionSpec(*(part for axis in parts for part in (axis, None)))
    return jnp.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, spec))


def merge(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `split`, sharded as `like`, an array of the shape that was split."""
    sharding = explicit_sharding(like)
    if sharding is None:
        return x.reshape(like.shape)
    parts = PartitionSpec(*even_parts(sharding, x.shape[::2]))
    return jax.sharding.reshard(jnp.reshape(x, like.shape, out_sharding=NamedSharding(sharding.mesh, parts)), sharding)


def pool(
    values: jax.Array, together: Sequence[int], transform: Callable[[jax.Array], jax.Array] | None = None
) -> jax.Array:
    """Float32 means of each tile of the scores `transform(values)`, added in an order that no mesh changes."""
    return _sums(values, together, transform) * jnp.float32(1 / math.prod(together))


def pool_bound(
    leaves: Sequence[jax.Array], tiles: Sequence[Tile], transform: Callable[[jax.Array], jax.Array] | None = None
) -> jax.Array:
    """`pool` over leaves whose k-th tiles are one: float32 means (n,) over all weights of the k-th of n."""
    sums = [gathered(_sums(x, tile.together, transform)).reshape(-1) for x, tile in zip(leaves, tiles, strict=True)]
    weights = sum(math.prod(tile.together) for tile in tiles)
    return reduce(operator.add, sums) * jnp.float32(1 / weights)


def _sums(values: jax.Array, together: Sequence[int], transform: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    def read(x):
        return (x if transform is None else transform(x)).astype(jnp.float32)

    total = split(values, together)
    for axis in [2 * i + 1 for i, t in enumerate(together) if t > 1]:
        total, read = _sum_in_order(total, axis, read), lambda x: x
    return jnp.squeeze(read(total), tuple(range(1, total.ndim, 2)))


def _sum_in_order(x: jax.Array, axis: int, read: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The sum of `read(x)` along an axis, from the first to the last; the axis stays, of length 1."""

    def add(i, total):
        return total + read(lax.dynamic_slice_in_dim(x, i, 1, axis))

    return lax.fori_loop(1, x.shape[axis], add, read(lax.slice_in_dim(x, 0, 1, axis=axis)), unroll=8)


def pool_any(live: jax.Array, together: Sequence[int]) -> jax.Array:
    """True where any weight of a tile is."""
    return jnp.any(split(live, together), axis=tuple(range(1, 2 * live.ndim, 2)))


def pool_any_bound(live: Sequence[jax.Array], tiles: Sequence[Tile]) -> jax.Array:
    """True (n,) where any weight of the k-th tile of any of these leaves is."""
    each = [gathered(pool_any(x, tile.together)).reshape(-1) for x, tile in zip(live, tiles, strict=True)]
    return reduce(operator.or_, each)


def expand_bound(kept: jax.Array, tile: Tile, like: jax.Array) -> jax.Array:
    """The mask (n,) of bound tiles as one of a leaf's weights, shaped and sharded as `like`."""
    kept = kept.reshape([n // t for n, t in zip(like.shape, tile.together)])
    if sharding := explicit_sharding(like):
        parts = PartitionSpec(*even_parts(sharding, kept.shape))
        kept = jax.sharding.reshard(kept, NamedSharding(sharding.mesh, parts))
    return expand(kept, tile.together, like)


def expand(kept: jax.Array, together: Sequence[int], like: jax.Array) -> jax.Array:
    """The mask of tiles as one of weights, shaped and sharded as `like`."""
    if set(together) <= {1}:
        return kept
    tiles = jnp.expand_dims(kept, tuple(range(1, 2 * kept.ndim, 2)))
    return merge(jnp.broadcast_to(tiles, [n for pair in zip(kept.shape, together) for n in pair]), like)
