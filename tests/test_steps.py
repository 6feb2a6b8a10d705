"""The masking contract and the arithmetic of the three steps, on a small network with every optax transform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_checkpoint import assert_bit_equal, on_mesh

from jaxprune.config import MeshConfig, OptimizerConfig
from jaxprune.errors import UserError
from jaxprune.pruning import CRITERIA, apply_masks, init_masks, leaf_counts, pruner
from jaxprune.training.checkpoint import Checkpoints
from jaxprune.training.compile import compile_steps
from jaxprune.training.optimizer import adamw
from jaxprune.training.sharding import DATA_AXES, batch_sharding, check_batch, make_mesh, within
from jaxprune.training.state import create
from jaxprune.training.steps import eval_step, means, prune_step, train_step

TX = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
    "bert": lambda: adamw(OptimizerConfig(learning_rate=1e-2, bias_correction=False), 50),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lion": lambda: optax.lion(1e-3),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "adagrad": lambda: optax.adagrad(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9),
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2, key=0),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(1e-2)),
    "adabelief": lambda: optax.adabelief(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "inject": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
    "multi_steps": lambda: optax.MultiSteps(optax.adamw(1e-2), 2).gradient_transformation(),
}


def _params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 16)), "bias": jnp.zeros((16,))},
        "b": {"kernel": jax.random.normal(keys[1], (16, 4)), "bias": jnp.zeros((4,))},
    }


def _batch(n=16, seed=1):
    keys = jax.random.split(jax.random.key(seed), 3)
    weights = (jax.random.uniform(keys[2], (n,)) > 0.3).astype(jnp.float32)
    half = (jnp.arange(n) % 2 == 0).astype(jnp.float32)
    x, y = jax.random.normal(keys[0], (n, 8)), jax.random.normal(keys[1], (n, 4))
    return {"x": x, "y": y, "w": weights, "half": half}


HARD, SOFT = pruner(), pruner(mode="soft")


def _loss(params, frozen, batch, key):
    h = jnp.tanh(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"][None])
    out = h @ params["b"]["kernel"] + params["b"]["bias"][None]
    errors = jnp.sum((out - batch["y"]) ** 2, -1)
    half = batch["half"]  # a count that is not the batch's size
    size = jnp.sum(jnp.abs(out) * half[:, None])
    terms = {"fit": (jnp.sum(errors * batch["w"]), jnp.sum(batch["w"])), "size": (size, jnp.sum(half))}
    return terms, {"error": (jnp.sum(errors), jnp.float32(len(errors)))}


def _state(tx, seed=0, using=HARD):
    params = _params(seed)
    return create(params, init_masks(params, [".*/kernel"]), tx, using)


def _kernels(tree):
    return [tree["a"]["kernel"], tree["b"]["kernel"]]


@pytest.mark.parametrize(
    ("name", "criterion"),
    [(name, "magnitude") for name in TX] + [("bert", other) for other in CRITERIA if other != "magnitude"],
)
def test_hard_masks_hold_after_every_step_for_every_transform(name, criterion, tmp_path):
    """Also over a stop between two prunes: what a criterion remembers comes back as it was, to the bit."""
    tx, using = TX[name](), pruner(criterion, scope="global")
    state, key = _state(tx, using=using), jax.random.key(0)
    train = jax.jit(partial(train_step, loss_fn=_loss, tx=tx, pruner=using))
    prune = jax.jit(partial(prune_step, pruner=using))
    previous = _kernels(state.masks)
    for i in range(12):
        if i % 3 == 0:
            target = round(0.2 + 0.05 * i, 6)
            state, report = prune(state, using.amounts(state.masks, target), key)
            kept = sum(k for k, _ in leaf_counts(state.masks).values())
            assert kept == round((1 - target) * 192) == sum(int(k) for k in jax.tree.leaves(report.kept))
        if i == 8:
            with Checkpoints(tmp_path, keep=1) as checkpoints:
                checkpoints.save(i, state, {})
            with Checkpoints(tmp_path, keep=1) as checkpoints:
                _, restored, _ = checkpoints.restore(on_mesh(state))
            assert_bit_equal(state, restored)
            state = restored
        state, metrics = train(state, (), _batch(seed=i), key)
        for w, m, old in zip(_kernels(state.params), _kernels(state.masks), previous):
            pruned = np.asarray(w)[~np.asarray(m)]
            assert (pruned.view(np.uint32) == 0).all()  # +0.0, not -0.0
            assert np.isfinite(np.asarray(w)).all()
            assert not (np.asarray(m) & ~np.asarray(old)).any()  # nothing returns
        previous = _kernels(state.masks)
        assert np.isfinite(metrics["grad_norm"])
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(_kernels(_params()), _kernels(state.params)))


@pytest.mark.parametrize("name", ["adamw", "bert", "lamb", "lion", "momentum"])
def test_moments_of_pruned_weights_are_zero(name):
    tx = TX[name]()
    state, key = _state(tx), jax.random.key(0)
    train = jax.jit(partial(train_step, loss_fn=_loss, tx=tx, pruner=HARD))
    for i in range(4):
        state, _ = train(state, (), _batch(seed=i), key)
    state, _ = jax.jit(partial(prune_step, pruner=HARD))(state, jnp.float32(0.5), key)
    state, _ = train(state, (), _batch(seed=9), key)
    mask = np.asarray(state.masks["a"]["kernel"])
    moments = [x for x in jax.tree.leaves(state.opt_state) if getattr(x, "shape", ()) == mask.shape]
    assert moments
    for moment in moments:
        assert (np.asarray(moment)[~mask] == 0).all() and (np.asarray(moment)[mask] != 0).any()


def test_clip_sees_live_gradients_only():
    """Training the pruned network equals training the small network that holds its live weights alone."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    train = jax.jit(partial(train_step, loss_fn=_loss, tx=tx, pruner=HARD))
    state = _state(tx)
    rows = np.arange(8) < 3  # keep three input rows of `a`
    state = state._replace(
        masks={**state.masks, "a": {"kernel": jnp.asarray(np.broadcast_to(rows[:, None], (8, 16))), "bias": None}}
    )
    state = state._replace(params=apply_masks(state.params, state.masks))
    small = jax.tree.map(lambda x: x, state.params)
    small["a"]["kernel"] = state.params["a"]["kernel"][:3]
    small_state = create(small, init_masks(small, [".*/kernel"]), tx, HARD)
    for i in range(5):
        batch = _batch(seed=i)
        state, big_metrics = train(state, (), batch, jax.random.key(0))
        small_state, metrics = train(small_state, (), {**batch, "x": batch["x"][:, :3]}, jax.random.key(0))
        np.testing.assert_allclose(big_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(state.params["a"]["kernel"][:3], small_state.params["a"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(state.params["b"]["kernel"], small_state.params["b"]["kernel"], rtol=1e-5)


def test_soft_masks_keep_the_dense_value_and_let_it_return():
    tx = optax.sgd(0.05)
    state, key = _state(tx, using=SOFT), jax.random.key(0)
    state, _ = prune_step(state, jnp.float32(0.5), key, pruner=SOFT)
    hidden = ~np.asarray(state.masks["a"]["kernel"])
    before = np.asarray(state.params["a"]["kernel"])
    assert (before[hidden] != 0).all()
    state, _ = train_step(state, (), _batch(), key, loss_fn=_loss, tx=tx, pruner=SOFT)
    after = np.asarray(state.params["a"]["kernel"])
    np.testing.assert_array_equal(after[hidden], before[hidden])  # no gradient under the mask
    assert (after[~hidden] != before[~hidden]).any()
    w, m = state.params["a"]["kernel"], state.masks["a"]["kernel"]
    shrunk = {**state.params["a"], "kernel": jnp.where(m, w * 1e-3, w)}
    state = state._replace(params={**state.params, "a": shrunk})
    state, _ = prune_step(state, jnp.float32(0.5), key, pruner=SOFT)
    assert (np.asarray(state.masks["a"]["kernel"]) == hidden).all()  # they swapped places


def test_moments_and_decay_move_what_lies_under_soft_masks():
    """Without a gradient: Adam goes on by what it remembers, and AdamW takes a share of the value."""
    key = jax.random.key(0)
    for tx, still, moved in ((optax.sgd(0.1), 1.0, False), (optax.adamw(0.1, weight_decay=0.5), 0.95, True)):
        train = jax.jit(partial(train_step, loss_fn=_loss, tx=tx, pruner=SOFT))
        fresh, _ = prune_step(_state(tx, using=SOFT), 0.5, key, pruner=SOFT)
        trained, _ = train(_state(tx, using=SOFT), (), _batch(), key)
        trained, _ = prune_step(trained, 0.5, key, pruner=SOFT)
        for state, moments in ((fresh, False), (trained, moved)):
            hidden = ~np.asarray(state.masks["a"]["kernel"])
            before, after = (x.params["a"]["kernel"][hidden] for x in (state, train(state, (), _batch(), key)[0]))
            assert (np.abs(after - still * before).min() > 0.01) == moments
            if not moments:
                np.testing.assert_allclose(after, still * before, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_straight_through_trains_what_lies_under_masks(decay):
    """SR-STE (Zhou et al. 2021, equation 9): w - rate (g + decay (1 - mask) w), g at the masked weights."""
    using, tx = pruner(mode="soft", straight_through=decay), optax.sgd(0.1)
    state, _ = prune_step(_state(tx, using=using), 0.5, jax.random.key(0), pruner=using)
    seen = apply_masks(state.params, state.masks)

    def total(params):
        terms, _ = _loss(params, (), _batch(), None)
        return sum(value / count for value, count in terms.values())

    grads = jax.grad(total)(seen)
    new, _ = train_step(state, (), _batch(), jax.random.key(0), loss_fn=_loss, tx=tx, pruner=using)
    for mask, w, g, after in zip(
        _kernels(state.masks), _kernels(state.params), _kernels(grads), _kernels(new.params), strict=True
    ):
        mask, w, g = (np.asarray(x, np.float64) for x in (mask, w, g))
        assert np.abs(g[mask == 0]).max() > 1e-3
        np.testing.assert_allclose(after, w - 0.1 * (g + decay * (1 - mask) * w), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new.params["a"]["bias"], state.params["a"]["bias"] - 0.1 * grads["a"]["bias"], atol=1e-6)
    with pytest.raises(UserError, match="straight_through: needs mode = soft"):
        pruner(straight_through=decay)


def test_soft_loss_is_the_loss_of_the_masked_weights():
    tx = optax.sgd(0.05)
    state, _ = prune_step(_state(tx, using=SOFT), jnp.float32(0.5), jax.random.key(0), pruner=SOFT)
    hard = state._replace(params=apply_masks(state.params, state.masks))
    _, soft_metrics = train_step(state, (), _batch(), jax.random.key(0), loss_fn=_loss, tx=tx, pruner=SOFT)
    _, hard_metrics = train_step(hard, (), _batch(), jax.random.key(0), loss_fn=_loss, tx=tx, pruner=HARD)
    jax.tree.map(np.testing.assert_array_equal, soft_metrics, hard_metrics)
    sums = eval_step(state, (), _batch(), loss_fn=_loss)
    assert float(sums["fit"][0]) == float(soft_metrics["fit"][0])


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_accumulated_gradient_is_that_of_the_whole_batch(pieces):
    tx = optax.sgd(0.1)
    step = partial(train_step, loss_fn=_loss, tx=tx, pruner=HARD, weights={"fit": 0.25})
    whole, metrics = step(_state(tx), (), _batch(), jax.random.key(0))
    parts, part_metrics = step(_state(tx), (), _batch(), jax.random.key(0), accumulate=pieces)
    compare = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(compare, whole.params, parts.params)
    jax.tree.map(compare, metrics, part_metrics)


def test_terms_count_by_their_weights():
    """1 where none is given, and then to the bit; 0 leaves a term out of the gradient, but not of the metrics."""

    def change(**weights):
        step = partial(train_step, loss_fn=_loss, tx=optax.sgd(1.0), pruner=HARD, weights=weights)
        state, metrics = step(_state(optax.sgd(1.0)), (), _batch(), jax.random.key(0))
        assert {"fit", "size"} <= {*metrics}
        return jax.tree.map(jnp.subtract, state.params, _params())

    jax.tree.map(np.testing.assert_array_equal, change(fit=1.0, size=1.0), change())
    summed = jax.tree.map(lambda fit, size: 0.25 * fit + size, change(size=0.0), change(fit=0.0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), change(fit=0.25), summed)


ADAMW, GLOBAL = adamw(OptimizerConfig(learning_rate=1e-2), 50), pruner(scope="global")
ONE, CUT = partial(train_step, loss_fn=_loss, tx=ADAMW, pruner=GLOBAL), partial(prune_step, pruner=GLOBAL)


def _run(step, prune, state, put=lambda b: b):
    """Losses of 20 steps with two prunes, and the last state."""
    losses, key = [], jax.random.key(0)
    for i in range(20):
        state, metrics = step(state, (), put(_batch(seed=i)), key)
        first = jax.tree.map(lambda x: x.reshape(-1)[0], jax.device_get(metrics))
        losses.append(means(first, {"fit": 1.0, "size": 1.0})["loss"])
        if i in (5, 10):
            state, _ = prune(state, np.float32(0.3 + 0.03 * i), key)
            jax.block_until_ready(state)
    return losses, state


@pytest.fixture(scope="module")
def alone():
    """The run on one device."""
    return _run(jax.jit(ONE), jax.jit(CUT), _state(ADAMW))


@pytest.mark.parametrize(
    ("how", "axes"),
    [(how, "auto") for how in ("jit 8", "fsdp 8", "fsdp 4", "pmap 8", "shard_map 8")]
    + [(how, "explicit") for how in ("jit 8", "fsdp 4", "shard_map 8")],
)
def test_many_devices_train_and_prune_as_one(alone, how, axes):
    expected, reference = alone
    kind, count = how.split()
    if kind == "pmap":
        split = lambda b: jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), b)  # noqa: E731
        step = jax.pmap(partial(ONE, axis_name="batch"), axis_name="batch", in_axes=(0, None, 0, None))
        prune = jax.pmap(CUT, in_axes=(0, None, None))
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (8, *x.shape)), _state(ADAMW))
        losses, state = _run(step, prune, copies, split)
        state = jax.tree.map(lambda x: x[0], state)
    elif kind == "shard_map":
        mesh = make_mesh(MeshConfig(axes=axes))
        rows = P(DATA_AXES)
        mapped = partial(jax.shard_map, mesh=mesh, out_specs=P())
        step = jax.jit(mapped(partial(ONE, axis_name=DATA_AXES), in_specs=(P(), P(), rows, P())))
        prune = jax.jit(mapped(CUT, in_specs=(P(), P(), P())))
        state = jax.device_put(_state(ADAMW), NamedSharding(mesh, P()))
        losses, state = _run(step, prune, state, lambda b: jax.device_put(b, batch_sharding(mesh)))
    else:
        mesh = make_mesh(MeshConfig(fsdp=int(count) if kind == "fsdp" else 1, axes=axes))
        params = _params()
        program = compile_steps(params, init_masks(params, [".*/kernel"]), mesh, loss_fn=_loss, tx=ADAMW, pruner=GLOBAL)
        state = program.init(params, init_masks(params, [".*/kernel"]))
        if kind == "fsdp":
            kernel = state.params["a"]["kernel"]
            assert kernel.addressable_shards[0].data.size == kernel.size // int(count)
            assert state.masks["a"]["kernel"].sharding == kernel.sharding
        prune = lambda state, target, key: program.prune(state, program.amounts(round(float(target), 6)), key)  # noqa: E731
        losses, state = _run(program.train, prune, state, program.put)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for m, r in zip(_kernels(state.masks), _kernels(reference.masks)):
        np.testing.assert_array_equal(m, r)


@pytest.fixture(scope="module")
def one_step():
    """A step of SGD, which unlike Adam sees how large gradients are, on one device."""
    tx = optax.sgd(0.1)
    return jax.jit(partial(train_step, loss_fn=_loss, tx=tx, pruner=HARD))(_state(tx), (), _batch(), jax.random.key(0))


def assert_same_step(got, expected):
    (state, metrics), (reference, expected_metrics) = got, expected
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), state.params, reference.params)
    np.testing.assert_allclose(metrics["grad_norm"], expected_metrics["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "pieces"), [("pmap", 1), ("vmap", 1), ("shard_map", 1), ("shard_map", 2), ("shard_map unchecked", 1)]
)
def test_gradients_of_mapped_devices_add_up_to_those_of_one(one_step, how, pieces):
    tx = optax.sgd(0.1)
    step = partial(train_step, loss_fn=_loss, tx=tx, pruner=HARD, axis_name=DATA_AXES, accumulate=pieces)
    if how in ("pmap", "vmap"):
        mapped = jax.pmap if how == "pmap" else lambda *a, **k: jax.jit(jax.vmap(*a, **k))
        step = mapped(partial(step, axis_name="rows"), axis_name="rows", in_axes=(None, None, 0, None))
        batch = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), _batch())
        got = jax.tree.map(lambda x: x[0], step(_state(tx), (), batch, jax.random.key(0)))
    else:
        specs = {"in_specs": (P(), P(), P(DATA_AXES), P()), "out_specs": P(), "check_vma": how == "shard_map"}
        step = jax.jit(jax.shard_map(step, mesh=make_mesh(MeshConfig()), **specs))
        got = step(_state(tx), (), _batch(), jax.random.key(0))
    assert_same_step(got, one_step)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_gradients_accumulate_on_explicit_axes(one_step, fsdp):
    """With as many micro-batches as a device has rows, and where params are split."""
    params, mesh = _params(), make_mesh(MeshConfig(fsdp=fsdp, axes="explicit"))
    masks, tx = init_masks(params, [".*/kernel"]), optax.sgd(0.1)
    with within(mesh):
        program = compile_steps(params, masks, mesh, loss_fn=_loss, tx=tx, pruner=HARD, accumulate=2)
        got = program.train(program.init(params, masks), (), program.put(_batch()), jax.random.key(0))
    assert_same_step(got, one_step)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match=r"batch_size = 12 .* 8 devices"):
        check_batch(12, 1, make_mesh(MeshConfig()))
    with pytest.raises(ValueError, match=r"mesh.data = 3"):
        make_mesh(MeshConfig(data=3))
