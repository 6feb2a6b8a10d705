"""Structures: which weights live or die together, and among which they are chosen."""

import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.errors import UserError
from jaxprune.pruning.axes import even_parts, explicit_sharding
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


def structure_named(name: str | Structure) -> Structure:
    """The structure of a name like `2:4`; a callable comes back as it is. An unknown name is a UserError."""
    if not isinstance(name, str):
        return name
    for regex, make in STRUCTURES.values():
        if match := re.fullmatch(regex, name):
            return make(*map(int, match.groups()))
    raise UserError(f"structure = {name!r} is unknown; use one of {', '.join(STRUCTURES)}")


def tile_of(structure: Structure, path: str, shape: tuple[int, ...]) -> Tile:
    """The tile of a leaf; a UserError that names the path if tiles do not fit its shape."""
    remedy = f"exclude it, or leave it alone by amounts: {{{path}: null}}"
    tile = structure(path, shape)
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

    def read(x):
        return (x if transform is None else transform(x)).astype(jnp.float32)

    total = split(values, together)
    for axis in [2 * i + 1 for i, t in enumerate(together) if t > 1]:
        total, read = _sum_in_order(total, axis, read), lambda x: x
    return jnp.squeeze(read(total), tuple(range(1, total.ndim, 2))) * jnp.float32(1 / math.prod(together))


def _sum_in_order(x: jax.Array, axis: int, read: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The sum of `read(x)` along an axis, from the first to the last; the axis stays, of length 1."""

    def add(i, total):
        return total + read(lax.dynamic_slice_in_dim(x, i, 1, axis))

    return lax.fori_loop(1, x.shape[axis], add, read(lax.slice_in_dim(x, 0, 1, axis=axis)), unroll=8)


def pool_any(live: jax.Array, together: Sequence[int]) -> jax.Array:
    """True where any weight of a tile is."""
    return jnp.any(split(live, together), axis=tuple(range(1, 2 * live.ndim, 2)))


def expand(kept: jax.Array, together: Sequence[int], like: jax.Array) -> jax.Array:
    """The mask of tiles as one of weights, shaped and sharded as `like`."""
    if set(together) <= {1}:
        return kept
    tiles = jnp.expand_dims(kept, tuple(range(1, 2 * kept.ndim, 2)))
    return merge(jnp.broadcast_to(tiles, [n for pair in zip(kept.shape, together) for n in pair]), like)
