"""The product with the word embeddings that decodes, tied to the table that embeds. Shape suffixes: see `layers.py`."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def tied_logits(x_BPD: Array, words_VD: Array) -> Array:
    """Return float32 logits (B, P, V) of `x` times the float32 table, with operands in `x`'s type.

    The table's gradient is float32, as that of the look-up is: where the batch is split over devices the compiler can
    then add the two before it sums over devices. In `x`'s type the table would cross twice.
    """
    return _product(x_BPD, words_VD.astype(x_BPD.dtype))


def _product(x_BPD: Array, words_VD: Array) -> Array:
    return jnp.einsum("bpd,vd->bpv", x_BPD, words_VD, preferred_element_type=jnp.float32)


def _forward(x_BPD: Array, words_VD: Array) -> tuple[Array, tuple[Array, Array]]:
    return tied_logits(x_BPD, words_VD), (x_BPD, words_VD)


def _backward(saved: tuple[Array, Array], slope_BPV: Array) -> tuple[Array, Array]:
    x_BPD, words_VD = saved
    (d_x_BPD,) = jax.vjp(lambda x: _product(x, words_VD.astype(x.dtype)), x_BPD)[1](slope_BPV)
    (d_words_VD,) = jax.vjp(lambda words: _product(x_BPD.astype(words.dtype), words), words_VD)[1](slope_BPV)
    return d_x_BPD, d_words_VD


tied_logits.defvjp(_forward, _backward)
