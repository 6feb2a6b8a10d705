"""Masks: what is prunable, how masks apply, how they are counted."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.models.bert import BERT
from jaxprune.pruning import apply_masks, init_masks, leaf_counts, sparsity

PARAMS = {
    "encoder": {"layer_00": {"query": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}}},
    "pooler": {"kernel": jnp.ones((6, 6))},
}


def _bert_base_shapes():
    c = ModelConfig()
    d, f = c.hidden_size, c.intermediate_size

    def s(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def dense(i, o):
        return {"kernel": s(i, o), "bias": s(o)}

    def norm():
        return {"scale": s(d), "bias": s(d)}

    layer = {
        "attention": {n: dense(d, d) for n in ("query", "key", "value", "output")} | {"norm": norm()},
        "intermediate": dense(d, f),
        "output": dense(f, d) | {"norm": norm()},
    }
    return {
        "embeddings": {
            "word_embeddings": {"embedding": s(c.vocab_size, d)},
            "position_embeddings": {"embedding": s(c.max_position_embeddings, d)},
            "token_type_embeddings": {"embedding": s(2, d)},
            "norm": norm(),
        },
        "encoder": {f"layer_{i:02}": layer for i in range(c.num_hidden_layers)},
        "pooler": dense(d, d),
        "mlm": {"transform": dense(d, d), "bias": s(c.vocab_size)},
    }


def test_default_prunable_set_of_bert_base():
    masks = init_masks(_bert_base_shapes(), BERT.prunable)
    leaves = jax.tree.leaves(masks)
    assert len(leaves) == 74
    assert sum(m.size for m in leaves) == 108_965_376
    assert all(m.dtype == jnp.bool_ for m in leaves)
    assert masks["mlm"]["transform"]["kernel"] is None


def test_init_masks_include_exclude():
    masks = init_masks(PARAMS, [r".*kernel"], [r"pooler/.*"])
    assert masks["pooler"]["kernel"] is None
    assert masks["encoder"]["layer_00"]["query"]["bias"] is None
    kernel = masks["encoder"]["layer_00"]["query"]["kernel"]
    assert kernel.dtype == jnp.bool_ and kernel.shape == (4, 6) and bool(kernel.all())
    assert init_masks(PARAMS, "pooler/kernel")["pooler"]["kernel"] is not None


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        (["pooler/kernal"], [], ["include", "pooler/kernal", "'pooler/kernel'"]),
        (["kernel"], [], ["include", "'kernel'"]),  # whole paths only
        ([".*kernel"], ["encoder/layer_00/query/biased"], ["exclude", "'encoder/layer_00/query/bias'"]),
        (["(kernel"], [], ["include", "regular expression"]),
    ],
)
def test_init_masks_refuses(include, exclude, words):
    with pytest.raises(UserError) as error:
        init_masks(PARAMS, include, exclude)
    assert all(word in str(error.value) for word in words)


def test_init_masks_refuses_integers():
    with pytest.raises(UserError, match="ids has dtype int32"):
        init_masks({"ids": jnp.zeros(3, jnp.int32)}, ["ids"])


def test_init_masks_other_trees():
    @jax.tree_util.register_dataclass
    @dataclass
    class Layer:
        kernel: jax.Array
        bias: jax.Array

    tree = (Layer(jnp.ones((2, 3)), jnp.ones(3)), [jnp.ones(4)])
    masks = init_masks(tree, [r"0/kernel", r"1/0"])
    assert masks[0].bias is None and masks[0].kernel.shape == (2, 3) and masks[1][0].shape == (4,)
    assert leaf_counts(masks) == {"0/kernel": (6, 6), "1/0": (4, 4)}


def test_init_masks_abstract_and_traced():
    traced = jax.eval_shape(lambda p: init_masks(p, [".*kernel"]), PARAMS)
    assert traced["pooler"]["kernel"].dtype == jnp.bool_ and traced["encoder"]["layer_00"]["query"]["bias"] is None


def test_init_masks_follow_the_sharding():
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    params = {"w": jax.device_put(jnp.ones((4, 16)), sharding)}
    assert init_masks(params, ["w"])["w"].sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_apply_masks_leaves_plain_zeros(dtype):
    w = jnp.array([-1.0, jnp.nan, jnp.inf, -0.0, 2.0, -3.0], dtype)
    masks = {"w": jnp.array([False, False, False, False, True, True]), "b": None}
    out = jax.jit(apply_masks)({"w": w, "b": w}, masks)
    assert out["w"].dtype == dtype
    np.testing.assert_array_equal(np.asarray(out["w"], np.float32), [0, 0, 0, 0, 2, -3])
    assert not np.signbit(np.asarray(out["w"], np.float32)[:4]).any()
    np.testing.assert_array_equal(np.asarray(out["b"], np.float32), np.asarray(w, np.float32))


def test_counts_and_sparsity():
    masks = {"a": jnp.arange(12).reshape(3, 4) % 3 == 0, "b": None, "c": jnp.zeros(8, bool), "d": jnp.array(True)}
    assert leaf_counts(masks) == {"a": (4, 12), "c": (0, 8), "d": (1, 1)}
    assert sparsity(masks) == 16 / 21
    assert sparsity({"a": None}) == 0.0


def test_paths_of_nnx_params_are_those_of_plain_dicts():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    masks = init_masks({"dense": state}, "dense/kernel")
    assert leaf_counts(masks) == {"dense/kernel": (12, 12)}
