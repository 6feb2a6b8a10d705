"""Dropout whose random bits are a cheap hash of (seed, index): the same on any mesh, a fraction of a threefry draw."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def dropout_seeds(key: Array, sites: int) -> Array:
    """Return one pair of words per dropout site, uint32 (sites, 2), from one `jax.random` draw."""
    return jax.random.bits(key, (sites, 2), jnp.uint32)


def dropout(x: Array, rate: float, seed_2: Array | None) -> Array:
    """Return `x` with entries zeroed with probability `rate` and the others divided by `1 - rate` (no-op without seed).

    The bits are `mix(mix(i ^ seed[0]) ^ mix(b ^ seed[1]))` with `b` the index on the leading axis and `i` the
    row-major index within it. `mix` is the 32-bit finaliser with the lowest known avalanche bias of its form
    (C. Wellons, "hash-prospector", `lowbias32`). Being a function of the logical index alone, the mask does not depend
    on how `x` is sharded under `jit`; under `pmap` and `shard_map` fold the axis index into the key first.
    """
    if seed_2 is None or rate == 0.0:
        return x
    inner = lax.reshape(lax.iota(jnp.uint32, x.size // x.shape[0]), (1, *x.shape[1:]))
    outer = lax.reshape(lax.iota(jnp.uint32, x.shape[0]), (x.shape[0],) + (1,) * (x.ndim - 1))
    bits = _mix(_mix(inner ^ seed_2[0]) ^ _mix(outer ^ seed_2[1]))
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _mix(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
