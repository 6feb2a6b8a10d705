"""`prune_once` gives the bits that a pruner's update gives, from fewer programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_thresholds import ALL_SCOPES, bert_tree

from jaxprune.errors import UserError
from jaxprune.pruning import init_masks, pruner
from jaxprune.pruning.single_prune import _prune, prune_once


def start(seed, *also):
    """Weights of two layers with ties, and masks where some are pruned already."""
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda x: jnp.round(jnp.nan_to_num(x, posinf=2.0, neginf=-2.0) * 8) / 8, bert_tree(seed))
    everything = init_masks(tree, [".*/kernel", *also])
    return tree, jax.tree.map(lambda m: rng.random(m.shape) < 0.8, everything)


AMOUNTS = {r".*query/kernel": 0.3, r".*output/kernel": None, "": 0.4}


@pytest.mark.parametrize(
    ("scope", "sparsity", "parts"),
    [
        ("matrix", AMOUNTS, {}),
        ("layer", AMOUNTS, {"criterion": "random"}),
        ("head", 0.5, {}),
        ("head", 0.4, {"structure": "block(2, 4)"}),
        ("global", 0.5, {"structure": "2:4"}),
        ("global", 0.7, {"method": "quantile"}),
    ],
)
def test_the_same_bits_as_a_pruners(scope, sparsity, parts):
    tree, masks = start(0, *["word"][: "2:4" not in parts.values()])
    key, shared = jax.random.key(3), {"scope": scope, "scopes": ALL_SCOPES} | parts
    _, expected, _, report = pruner(**shared).update((), tree, masks, sparsity, key)
    got, thresholds = prune_once(tree, masks, sparsity, key, **shared)
    jax.tree.map(np.testing.assert_array_equal, thresholds, report.threshold)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert any((np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(masks)))


def test_layers_share_programs():
    shapes = [(12, 20), (20, 12), (240,), (12, 20), (4, 3, 20)]
    tree = {f"layer_{i}": {"kernel": jax.random.normal(jax.random.key(i), shape)} for i, shape in enumerate(shapes)}
    masks = jax.tree.map(lambda x: np.ones(x.shape, bool), tree)
    before = _prune._cache_size()
    new, _ = prune_once(tree, masks, 0.5)
    assert _prune._cache_size() == before + 1
    assert [int(m.sum()) for m in jax.tree.leaves(new)] == [120] * 5
    jax.tree.map(np.testing.assert_array_equal, new, pruner().update((), tree, masks, 0.5)[1])


def test_refuses_what_a_pruner_refuses():
    tree, masks = start(0)
    bad: dict[str, Any]
    signed = {"criterion": "movement", "method": "hist256"}
    for bad, words in (
        ({"scope": "mtarix"}, "scope = 'mtarix'"),
        ({"method": "hist"}, "method = 'hist'"),
        (signed, "method = hist256: its bins begin at 0"),
    ):
        with pytest.raises(UserError, match=words):
            prune_once(tree, masks, 0.5, **bad)
    with pytest.raises(UserError, match="sparsity = 1.5"):
        prune_once(tree, masks, 1.5)
    with pytest.raises(UserError, match="2 of 4 stay"):
        prune_once(tree, masks, 0.6, structure="2:4")
