"""Heads and neurons: what of a layer lives or dies together lies in several leaves, and is scored, counted and pruned
as one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config import ModelConfig
from jaxprune.config.sections import PruneConfig
from jaxprune.errors import UserError
from jaxprune.experiments.pruning_plan import included, structure_of, unpruned
from jaxprune.models import architecture_named
from jaxprune.models.tensors import leaf_shapes
from jaxprune.pruning import CRITERIA, METHODS, init_masks, keep_top, pruner
from jaxprune.pruning.single_prune import prune_once

FAST = {"xla_backend_optimization_level": 0}
H, K, F, D = 4, 4, 24, 16
SHAPE = ModelConfig(
    vocab_size=40, hidden_size=D, num_hidden_layers=2, num_attention_heads=H, intermediate_size=F,
    max_position_embeddings=16,
)  # fmt: skip


def drawn(seed=0, model=SHAPE):
    """Params of a BERT with biases that are not 0, and many ties."""
    rng = np.random.default_rng(seed)
    shapes = leaf_shapes(architecture_named(model.architecture), model, head="similarity")
    flat = {path: jnp.asarray(rng.normal(size=x.shape).round(1), jnp.float32) for path, x in shapes.items()}
    return unflatten_dict(flat, sep="/")


def masks_of(params, name, model=SHAPE):
    return unpruned(included(PruneConfig(structure=name), model), params)


def units_in(tree, layer, name):
    """All values of each unit (units, values): written out here, slice by slice."""
    at = {path.removeprefix(f"encoder/{layer}/"): np.asarray(x) for path, x in flatten_dict(tree, sep="/").items()}
    if name == "neurons":
        rows = [at["intermediate/kernel"].T, at["intermediate/bias"][:, None], at["output/kernel"]]
        return np.concatenate(rows, 1)
    projections = ("query", "key", "value")
    kernels = [at[f"attention/{p}/kernel"].reshape(D, H, K).transpose(1, 0, 2).reshape(H, -1) for p in projections]
    biases = [at[f"attention/{p}/bias"].reshape(H, K) for p in projections]
    return np.concatenate([*kernels, *biases, at["attention/output/kernel"].reshape(H, K * D)], 1)


def kept_units(masks, layer, name):
    """Which units live, after a check that all weights of a unit agree."""
    units = units_in(masks, layer, name)
    assert (units.all(1) == units.any(1)).all()
    return units.all(1)


@pytest.mark.parametrize("name", ["heads", "neurons"])
def test_a_unit_is_worth_the_sum_over_all_its_leaves(name):
    params = jax.tree.map(lambda x: x + jnp.float32(0.01) * jnp.cos(jnp.arange(x.size).reshape(x.shape)), drawn(3))
    masks = masks_of(params, name)
    using = pruner(structure=structure_of(name, SHAPE))
    after = using.update((), params, masks, 0.5)[1]
    for layer in ("layer_00", "layer_01"):
        sums = np.abs(units_in(params, layer, name)).astype(np.float64).sum(1)
        np.testing.assert_array_equal(kept_units(after, layer, name), sums >= np.sort(sums)[len(sums) // 2])
    assert {path for path, mask in flatten_dict(after, sep="/").items() if mask is not None} == {
        path for path in flatten_dict(params, sep="/") if path in flatten_dict(masks, sep="/")
        and flatten_dict(masks, sep="/")[path] is not None
    }  # fmt: skip


@pytest.mark.parametrize("name", ["heads", "neurons"])
def test_first_order_is_the_sum_of_w_times_g(name):
    params, grads = drawn(4), drawn(5)
    masks = masks_of(params, name)
    using = pruner("taylor", structure=structure_of(name, SHAPE))
    state = using.observe(using.init(params, masks), params, masks, grads)
    after = using.update(state, params, masks, 0.5)[1]
    worth = np.abs(units_in(params, "layer_01", name) * units_in(grads, "layer_01", name)).astype(np.float64).sum(1)
    np.testing.assert_array_equal(kept_units(after, "layer_01", name), worth >= np.sort(worth)[len(worth) // 2])


CASES = [
    *((criterion, "exact", "matrix") for criterion in CRITERIA),
    ("magnitude", "exact", "global"),
]
CASES += [("magnitude", method, "matrix") for method in METHODS if method != "exact"]
CASES += [("taylor", "exact", "layer")]


@pytest.mark.parametrize(("criterion", "method", "scope"), CASES)
def test_exact_counts_and_no_return(criterion, method, scope):
    """The contract of hard masks holds for units: exact, whole, monotone."""
    params, name = drawn(1), "heads+neurons"
    masks = masks_of(params, name)
    scopes = architecture_named("bert").scopes(SHAPE)
    structure = structure_of(name, SHAPE)
    using = pruner(criterion, structure=structure, method=method, scope=scopes.get(scope, scope))

    @partial(jax.jit, compiler_options=FAST)
    def step(state, params, masks, amounts, key):
        state = using.observe(state, params, masks, jax.tree.map(lambda w: jnp.sin(3 * w), params))
        return using.update(state, params, masks, amounts, key)

    state, reached, kinds = using.init(params, masks), 0.0, name.split("+")
    for i, s in enumerate((0.2, 0.5, 0.3, 0.75, 1.0)):
        before = masks
        params, masks, state, report = step(state, params, masks, using.amounts(masks, s), jax.random.key(i))
        for m, old, w in zip(*map(jax.tree.leaves, (masks, before, [None])), strict=False):
            assert not (m & ~old).any() and w is None
        reached = max(reached, s)
        live = {(layer, kind): kept_units(masks, layer, kind) for layer in ("layer_00", "layer_01") for kind in kinds}
        if method == "exact":
            by = {"matrix": lambda layer, kind: (layer, kind), "layer": lambda layer, kind: layer}
            groups: dict = {}
            for key, units in live.items():
                groups.setdefault(by.get(scope, lambda layer, kind: "")(*key), []).extend(units)
            for units in groups.values():
                assert sum(units) == round((1 - reached) * len(units))
        counted = [int(n) for n in jax.tree.leaves(report.kept)]
        assert counted == [int(m.sum()) for m in jax.tree.leaves(masks)]
        for m, w in zip(jax.tree.leaves(masks), (x for x in map(np.asarray, _prunable(params, masks))), strict=True):
            assert (w[~np.asarray(m)].view(np.uint32) == 0).all()


def _prunable(params, masks):
    flat = flatten_dict(masks, sep="/")
    return [x for path, x in flatten_dict(params, sep="/").items() if flat[path] is not None]


def test_one_prune_at_once_gives_the_same_bits():
    params = drawn(2)
    masks, structure = masks_of(params, "heads+neurons"), structure_of("heads+neurons", SHAPE)
    for scope in ("matrix", "global"):
        once, _ = prune_once(params, masks, 0.5, structure=structure, scope=scope)
        using = pruner(structure=structure, scope=scope)
        jax.tree.map(np.testing.assert_array_equal, once, jax.device_get(using.update((), params, masks, 0.5)[1]))


def test_a_unit_lives_while_one_of_its_weights_does():
    params = drawn(6)
    masks = jax.tree.map(jnp.zeros_like, masks_of(params, "neurons"))
    kernel = masks["encoder"]["layer_00"]["output"]["kernel"]
    masks["encoder"]["layer_00"]["output"]["kernel"] = kernel.at[5, 3].set(True)
    after = pruner(structure=structure_of("neurons", SHAPE)).update((), params, masks, 0.9)[1]
    assert np.argwhere(np.asarray(after["encoder"]["layer_00"]["output"]["kernel"])).tolist() == [[5, 3]]
    assert not np.asarray(after["encoder"]["layer_00"]["intermediate"]["bias"]).any()


def test_amounts_are_of_whole_units():
    params = drawn(7)
    masks, using = masks_of(params, "neurons"), pruner(structure=structure_of("neurons", SHAPE))
    after = using.update((), params, masks, {"encoder/layer_00/.+": None, "": 0.5})[1]
    assert kept_units(after, "layer_00", "neurons").all() and kept_units(after, "layer_01", "neurons").sum() == F // 2
    with pytest.raises(UserError, match=r"output/kernel has the amount of '', .*intermediate/bias that of .*neurons"):
        using.update((), params, masks, {".*/intermediate/.+": 0.2, "": 0.5})


def test_what_is_no_unit_is_left_alone_and_nothing_but_it_refused():
    params = drawn(8)
    masks = init_masks(params, [".*/(kernel|embedding)"])
    after = pruner(structure=structure_of("heads", SHAPE)).update((), params, masks, 0.5)[1]
    assert np.asarray(after["embeddings"]["word_embeddings"]["embedding"]).all()
    assert np.asarray(after["encoder"]["layer_00"]["attention"]["query"]["kernel"]).mean() == 0.5
    with pytest.raises(UserError, match="structure: is one of none of 1 prunable leaves"):
        using = pruner(structure=structure_of("heads", SHAPE))
        using.update((), params, init_masks(params, ".*/word_embeddings/.*"), 0.5)
    with pytest.raises(UserError, match="num_attention_heads = 3 does not divide axis 0 of encoder/layer_00/.*bias"):
        keep_top(params, 0.5, structure=structure_of("heads", SHAPE.model_copy(update={"num_attention_heads": 3})))
    with pytest.raises(UserError, match=r"structure = 'neuron' is unknown; use one of .*heads\+neurons"):
        structure_of("neuron", SHAPE)
