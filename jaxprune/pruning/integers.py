"""Exact counts beyond 32 bits: integers below 2^64 as a trailing axis of two uint32 limbs (high, low)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_MILLION = 1_000_000
_BITS = 24


def wide(values: Sequence[int]) -> jax.Array:
    """Python integers in [0, 2^64) as limbs of shape (len(values), 2)."""
    return jnp.array([[v >> 32, v & 0xFFFFFFFF] for v in values], jnp.uint32).reshape(len(values), 2)


def wide_add(a: jax.Array, b: jax.Array) -> jax.Array:
    """a + b."""
    low = a[..., 1] + b[..., 1]
    return jnp.stack([a[..., 0] + b[..., 0] + (low < a[..., 1]), low], -1)


def wide_sub(a: jax.Array, b: jax.Array) -> jax.Array:
    """a - b for a >= b."""
    return jnp.stack([a[..., 0] - b[..., 0] - (a[..., 1] < b[..., 1]), a[..., 1] - b[..., 1]], -1)


def wide_ge(a: jax.Array, b: jax.Array) -> jax.Array:
    """a >= b."""
    return (a[..., 0] > b[..., 0]) | ((a[..., 0] == b[..., 0]) & (a[..., 1] >= b[..., 1]))


def wide_eq(a: jax.Array, b: jax.Array) -> jax.Array:
    """a == b."""
    return (a[..., 0] == b[..., 0]) & (a[..., 1] == b[..., 1])


def wide_float(a: jax.Array) -> jax.Array:
    """a as float32, rounded to nearest when it is below 2^32."""
    return a[..., 0].astype(jnp.float32) * jnp.float32(2.0**32) + a[..., 1].astype(jnp.float32)


def wide_mul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of two uint32 arrays, as limbs."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a0 * b1 + ((a0 * b0) >> 16)
    lower = a1 * b0 + (middle & 0xFFFF)
    return jnp.stack([a1 * b1 + (middle >> 16) + (lower >> 16), a * b], -1)


def wide_part(a: jax.Array, fraction: jax.Array) -> jax.Array:
    """floor(fraction x a) for a < 2^39, of a fraction in [0, 1] that is rounded to a multiple of 2^-24."""
    fixed = jnp.round(jnp.clip(fraction, 0.0, 1.0) * jnp.float32(1 << _BITS)).astype(jnp.uint32)
    low, high = wide_mul(a[..., 1], fixed), a[..., 0] * fixed  # high < 2^7 x 2^24
    shifted = jnp.stack([low[..., 0] >> _BITS, (low[..., 0] << (32 - _BITS)) | (low[..., 1] >> _BITS)], -1)
    return wide_add(shifted, jnp.stack([high >> _BITS, high << (32 - _BITS)], -1))


def wide_sum(counts: jax.Array, groups: Sequence[int], num_groups: int) -> jax.Array:
    """Sums of uint32 counts (S, ...) over the rows of each group, as limbs (num_groups, ..., 2); S < 2^16."""
    ids = jnp.array(groups, jnp.int32)
    low = jax.ops.segment_sum(counts & 0xFFFF, ids, num_groups)
    high = jax.ops.segment_sum(counts >> 16, ids, num_groups) + (low >> 16)
    return jnp.stack([high >> 16, (high << 16) | (low & 0xFFFF)], -1)


def _round_half_even(whole: jax.Array, rest: jax.Array, divisor: int) -> jax.Array:
    """whole + rest / divisor to the nearest integer, halves to the even one."""
    odd = (whole[..., 1] & 1).astype(bool)
    up = (2 * rest > divisor) | ((2 * rest == divisor) & odd)
    return wide_add(whole, jnp.stack([jnp.zeros_like(rest), up.astype(jnp.uint32)], -1))


def kept_counts(sizes: Sequence[int], sparsity: jax.typing.ArrayLike) -> jax.Array:
    """round((1 - sparsity) * size) of every size, as limbs (len(sizes), 2): nearest integer, halves to the even one.

    `sparsity`, a scalar read as float32 and clipped to [0, 1], is rounded to a multiple of 2^-24 and stands for the
    decimal of at most six places within 3/4 of 2^-24 of that, if there is one (0.7 is seven tenths: float32 and the
    rounding move a decimal by no more), else for the multiple itself. The product is exact in integers. sizes < 2^39.
    """
    s = jnp.clip(jnp.asarray(sparsity).astype(jnp.float32), 0.0, 1.0)
    fixed = jnp.round(s * jnp.float32(1 << _BITS)).astype(jnp.uint32)
    # decimal = round(fixed * 10^6 / 2^24), in millionths
    product = wide_mul(fixed, jnp.uint32(_MILLION))
    half = jnp.array([0, 1 << (_BITS - 1)], jnp.uint32)
    up = wide_add(product, half)
    decimal = (up[0] << (32 - _BITS)) | (up[1] >> _BITS)
    back = wide_mul(decimal, jnp.uint32(1 << _BITS))
    error = jnp.where(wide_ge(back, product), wide_sub(back, product)[1], wide_sub(product, back)[1])
    is_decimal = 4 * error <= 3 * _MILLION

    def by_million(keep):
        a = jnp.array([n // _MILLION for n in sizes], jnp.uint32)
        b = jnp.array([n % _MILLION for n in sizes], jnp.uint32)
        k1, k0, b1, b0 = keep // 1000, keep % 1000, b // 1000, b % 1000
        rest = (k1 * b0 + k0 * b1) * 1000 + k0 * b0  # < 2.1e9
        whole = wide_add(wide_mul(keep, a), jnp.stack([jnp.zeros_like(b), k1 * b1 + rest // _MILLION], -1))
        return _round_half_even(whole, rest % _MILLION, _MILLION)

    def by_power(keep):
        a = jnp.array([n >> _BITS for n in sizes], jnp.uint32)
        b = jnp.array([n & ((1 << _BITS) - 1) for n in sizes], jnp.uint32)
        low = wide_mul(keep, b)
        quotient = (low[..., 0] << (32 - _BITS)) | (low[..., 1] >> _BITS)
        whole = wide_add(wide_mul(keep, a), jnp.stack([jnp.zeros_like(b), quotient], -1))
        return _round_half_even(whole, low[..., 1] & ((1 << _BITS) - 1), 1 << _BITS)

    if not sizes:
        return jnp.zeros((0, 2), jnp.uint32)
    keep_million = jnp.uint32(_MILLION) - decimal
    keep_power = jnp.uint32(1 << _BITS) - fixed
    return jnp.where(is_decimal, by_million(keep_million), by_power(keep_power))
