"""Inverses of many small matrices and of one large one, against float64."""

import jax
import numpy as np
import pytest

from jaxprune.pruning.inverses import inverse


def definite(seed, *shape, damping):
    """Random matrices of rank n / 2, made definite by a share of the mean of their diagonals."""
    half = np.random.default_rng(seed).normal(size=(*shape, max(shape[-1] // 2, 1)))
    matrices = half @ np.swapaxes(half, -1, -2)
    return (matrices + damping * np.mean(np.diagonal(matrices, axis1=-2, axis2=-1)) * np.eye(shape[-1])).astype("f")


@pytest.mark.parametrize("n", [1, 2, 7, 12, 13, 24, 37, 48, 50, 61, 200, 331])
@pytest.mark.parametrize("before", [(), (3,), (2, 3)])
def test_inverses_are_those_of_float64(n, before):
    for seed, damping in enumerate((1.0, 0.1, 0.01)):
        matrices = definite(seed, *before, n, damping=damping)
        want = np.linalg.inv(matrices.astype("d"))
        got = np.asarray(jax.jit(inverse)(matrices))
        assert got.dtype == np.float32 and got.shape == matrices.shape
        # The classical bound of an elimination in float32: a few roundings times the condition number.
        bound = 4 * np.finfo("f").eps * np.linalg.cond(matrices.astype("d"))[..., None, None]
        assert np.all(np.abs(got - want) <= bound * np.max(np.abs(want), axis=(-2, -1), keepdims=True))


def test_matrices_of_any_scale_beside_each_other():
    matrices = definite(0, 5, 50, damping=0.1) * np.float32([1e-12, 1e-6, 1, 1e6, 1e12])[:, None, None]
    got = np.asarray(inverse(matrices))
    product = got.astype("d") @ matrices.astype("d")
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(50), product.shape), atol=1e-4)
