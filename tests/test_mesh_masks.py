"""The prune step of a run gives the same bits on any mesh: a property over the product of the ways to prune.

A criterion that gives kept weights new values sums products for them, whose last bits are another shard's: of that
test_criteria knows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pairwise import drawn

from jaxprune.config import MeshConfig, ModelConfig
from jaxprune.models import ARCHITECTURES
from jaxprune.pruning import CRITERIA, DISTRIBUTIONS, SCOPES, Tile, init_masks, pruner, sparsity
from jaxprune.training.compile import compile_steps
from jaxprune.training.sharding import make_mesh, put_whole, within
from jaxprune.training.state import create

NAMED = SCOPES | ARCHITECTURES["bert"].scopes(ModelConfig(hidden_size=16, num_attention_heads=2))
MESHES = {"data 8": {"data": 8}, "data 2 x fsdp 4": {"data": 2, "fsdp": 4}}
PRODUCT = {
    "scope": [*NAMED],
    "distribution": [*DISTRIBUTIONS],
    "structure": ["weights", "2:4", "block(4, 4)", "bound"],
    "criterion": [name for name, one in CRITERIA.items() if not one.compensate],
    "mode": ["hard", "soft"],
    "mesh": [*MESHES],
    "axes": ["auto", "explicit"],
}
ROWS = drawn(PRODUCT, apart=[{"head", "bound"}, {"erk", "2:4"}])
TX = optax.trace(0.9)


def bound(path, shape):
    """A column of the query and the row of the output that follows it are one, as are two rows of the embeddings."""
    if "attention" not in path:
        return (2, 16)
    return Tile((1, 16) if "output" in path else (16, 1), bound="encoder/layer_00/columns")


def params(seed: int):
    """Weights with ties and zeros of both signs, under BERT's paths."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape).round(1) * rng.choice([1.0, 1.0, -0.0], shape), jnp.float32)

    return {
        "embeddings": {"word_embeddings": {"embedding": draw(40, 16)}},
        "encoder": {"layer_00": {"attention": {name: {"kernel": draw(16, 16)} for name in ("query", "output")}}},
        "pooler": {"bias": draw(16)},
    }


def begun(using, start):
    """A state after three steps' gradients: a criterion that remembers, and moments, hold something."""
    state = create(start, init_masks(start, [".*/(kernel|embedding)"]), TX, using)
    for seed in range(1, 4):
        grads = params(seed)
        remembered = using.observe(state.pruner, state.params, state.masks, grads)
        state = state._replace(pruner=remembered, opt_state=TX.update(grads, state.opt_state)[1])
    return jax.device_get(state)


def pruned(using, state, mesh):
    """The states and reports of two prunes on a mesh, on the host, and the specs of the masks there."""
    program = compile_steps(
        state.params, state.masks, mesh, loss_fn=lambda params, frozen, batch, key: ({}, {}), tx=TX, pruner=using
    )
    state, results = put_whole(state, jax.tree.map(lambda x: x.sharding, program.abstract)), []
    with within(mesh):
        for amount in (0.3, 0.5):
            state, report = program.prune(state, program.amounts(amount), jax.random.key(5))
            results.append(jax.device_get((state, report)))
    return results, {x.sharding.spec for x in jax.tree.leaves(program.abstract.masks)}


def same_bits(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(b).view(np.uint8))


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_a_prune_step_gives_the_same_bits_on_any_mesh(row):
    """Weights, masks, moments, memory and report on a mesh are those of one device; of the product a part, drawn by
    SEED, in which every two values of two axes meet."""
    scope, distribution, structure, criterion, mode, mesh, axes = row
    parts = {"structure": bound if structure == "bound" else structure, "scope": scope, "distribution": distribution}
    using = pruner(criterion, mode=mode, scopes=NAMED, **parts)
    state = begun(using, params(0))
    alone, _ = pruned(using, state, make_mesh(MeshConfig(), jax.devices()[:1]))
    shares = [sparsity(after.masks) for after, _ in alone]
    most = 0.05 if scope == "output" else 0.02  # of an output's 4 blocks, 30 % is one
    assert shares == pytest.approx([0.25, 0.5] if structure == "2:4" else [0.3, 0.5], abs=most)
    got, specs = pruned(using, state, make_mesh(MeshConfig(**MESHES[mesh], axes=axes)))
    assert any(any(spec) for spec in specs) == (mesh != "data 8")
    jax.tree.map(same_bits, got, alone)


def test_the_product_is_whole_and_every_value_is_drawn():
    assert PRODUCT["scope"] == ["global", "matrix", "output", "layer", "head"] and len(PRODUCT["criterion"]) >= 4
    for axis, values in enumerate(PRODUCT.values()):
        assert {row[axis] for row in ROWS} == {*values}
    assert len(ROWS) < 30
