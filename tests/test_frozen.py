"""Frozen paths: no update, no moments, no part in clipping; the others train as if the frozen ones were not there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxprune.config import OptimizerConfig
from jaxprune.errors import UserError
from jaxprune.optax import masked
from jaxprune.training.optimizer import adamw, with_peak_rate

SHAPES = {"encoder/a/kernel": (4, 3), "encoder/a/bias": (3,), "head/kernel": (3, 2), "head/scale": (2,)}
FROZEN = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, clip_norm=0.5, frozen=("encoder/.*",))


def tree(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return unflatten_dict({p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()}, sep="/")


def trained(cfg: OptimizerConfig, params, only=lambda tree: tree, **extra):
    """Params after three steps of gradients that are large where they are frozen, and the state."""
    tx = adamw(cfg, 10)
    update = masked(tx).update if extra else tx.update
    state = with_peak_rate(tx.init(params), 0.1)
    for seed in range(3):
        grads = tree(seed + 1)
        grads["encoder"] = jax.tree.map(lambda g: 100 * g, grads["encoder"])
        updates, state = update(only(grads), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_others_train_as_if_the_frozen_ones_were_not_there():
    start = tree(0)
    params, state = trained(FROZEN, start)
    alone, alone_state = trained(
        FROZEN.model_copy(update={"frozen": ()}), {"head": start["head"]}, lambda grads: {"head": grads["head"]}
    )
    for path, leaf in flatten_dict(params["head"], sep="/").items():
        np.testing.assert_array_equal(leaf, flatten_dict(alone["head"], sep="/")[path])
    for path, leaf in flatten_dict(params["encoder"], sep="/").items():
        np.testing.assert_array_equal(leaf, flatten_dict(start["encoder"], sep="/")[path])
    shapes = [sorted(leaf.shape for leaf in jax.tree.leaves(s)) for s in (state, alone_state)]
    assert shapes[0] == shapes[1] and (4, 3) not in shapes[0]


def test_pruned_weights_are_zero_also_where_they_are_frozen():
    start = tree(0)
    masks = jax.tree.map(lambda _: None, start)
    for part, name in (("encoder", "a"), ("head", None)):
        place = masks[part][name] if name else masks[part]
        weights = start[part][name] if name else start[part]
        place["kernel"] = jnp.abs(weights["kernel"]) > 0.5
    params, _ = trained(FROZEN, start, masks=masks)
    for path, mask in flatten_dict(masks, sep="/").items():
        leaf = np.asarray(flatten_dict(params, sep="/")[path])
        if mask is not None:
            assert 0 < mask.sum() < mask.size and (leaf[~np.asarray(mask)] == 0).all()
            kept = np.asarray(flatten_dict(start, sep="/")[path])[np.asarray(mask)]
            assert (leaf[np.asarray(mask)] == kept).all() == path.startswith("encoder")


def test_a_regex_that_matches_nothing_is_refused():
    with pytest.raises(
        UserError, match=r"optimizer.frozen: 'encoder/b' matches no parameter path.*nearest is 'encoder/a"
    ):
        adamw(FROZEN.model_copy(update={"frozen": ("encoder/b",)}), 10).init(tree(0))


@pytest.mark.slow
def test_a_run_trains_its_heads_alone_and_resumes(tiny, pretrained, tmp_path):
    config = tiny.pretrain_yaml(
        tmp_path / "c.yaml",
        steps=6,
        init_from=str(pretrained),
        prune={"sparsity": 0, "begin": 0, "end": 0},
        optimizer={"frozen": ["encoder/.*", "embeddings/.*"]},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = tiny.run("pretrain", config, "--workdir", whole)
    assert done.code == 0, done.err
    assert tiny.stop(3, 15, "pretrain", config, "--workdir", parts).code == 75
    assert tiny.run("pretrain", config, "--workdir", parts).code == 0
    before, after, resumed = (load_file(place / "hf" / "model.safetensors") for place in (pretrained, whole, parts))
    assert {*before} == {*after}
    for name, weight in after.items():
        same = (weight == before[name]).all()
        assert same == ("encoder" in name or "embeddings" in name or "decoder" in name), name
        np.testing.assert_array_equal(weight, resumed[name], err_msg=name)
    wrong = tiny.run("pretrain", config, "--workdir", tmp_path / "wrong", "--optimizer.frozen", "encode/.*")
    assert wrong.code == 2 and "optimizer.frozen: 'encode/.*'" in wrong.err and wrong.err.count("\n") == 1
