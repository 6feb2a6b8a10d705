"""Masks that regrow: exact counts, numpy's choice, values kept or 0, the same on a mesh, resumed to the bit."""

import math
import random
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_pruner import count, masks_of, params
from test_resume import assert_same_run, stop
from test_thresholds import FAST

from jaxprune.config.sections import PruneConfig
from jaxprune.errors import UserError
from jaxprune.experiments.pruning_plan import check_regrowth, plan_of
from jaxprune.pruning import init_masks, pruner
from jaxprune.pruning.integers import wide, wide_part
from jaxprune.pruning.schedules import lifted, regrowth
from jaxprune.training.workdir import read_records


def begun(using, seed=0, share=0.5):
    """(state that has seen gradients, params, masks) of a tree of which a share is pruned; no two scores are alike."""
    rng = np.random.default_rng(seed)
    tree = {"a": rng.normal(size=(24, 16)), "b": rng.normal(size=(8, 32)), "bias": rng.normal(size=5)}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    masks = init_masks(tree, "[ab]")
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)
    _, tree, masks = (None, *pruner().update((), tree, masks, share)[:2])
    state = using.observe(using.init(tree, masks), tree, masks, jax.tree.map(lambda g: 9 * g, grads))
    return using.observe(state, tree, masks, grads), tree, masks, grads


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_it_is_numpys_choice(seed, scope):
    share, fraction = random.Random(seed).choice([(0.5, 0.3), (0.7, 0.5), (0.9, 0.1), (0.6, 1.0)])
    using = pruner(scope=scope, regrow="gradient", regrow_fraction=fraction)
    state, tree, masks, grads = begun(using, seed)
    values, after, _, report = using.update(state, tree, masks, share)
    sets = [["a"], ["b"]] if scope == "matrix" else [["a", "b"]]
    for names in sets:
        w, g, live, got = (np.concatenate([np.ravel(x[name]) for name in names]) for x in (tree, grads, masks, after))
        kept = round((1 - share) * w.size)
        stay = np.argsort(np.where(live, np.abs(w), -1))[::-1][: kept - math.floor(fraction * kept)]
        rest = np.setdiff1d(np.arange(w.size), stay)
        back = rest[np.argsort(np.abs(g[rest]))[::-1][: kept - len(stay)]]
        want = np.zeros(w.size, bool)
        want[stay] = want[back] = True
        np.testing.assert_array_equal(got, want)
    for name in ("a", "b"):
        new = np.asarray(values[name])
        np.testing.assert_array_equal(new, np.where(after[name] & masks[name], tree[name], 0))
        assert not np.signbit(new[new == 0]).any()
        assert int(report.regrown[name]) == count(after[name] & ~masks[name])
        assert int(report.kept[name]) == count(after[name])


def test_by_chance_and_not_at_all():
    tree, keys = params(), [jax.random.key(n) for n in (1, 2)]
    _, half, masks = (None, *pruner().update((), tree, masks_of(tree), 0.5)[:2])
    chance = pruner(regrow="random", regrow_fraction=0.4)
    state = chance.init(half, masks)
    a, again, b = (chance.update(state, half, masks, 0.5, key) for key in (keys[0], keys[0], keys[1]))
    jax.tree.map(np.testing.assert_array_equal, a[:2], again[:2])
    assert any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1])))
    for mask in jax.tree.leaves(a[1]):
        assert count(mask) == mask.size // 2
    never = pruner(regrow="gradient", regrow_fraction=0.0)
    want = pruner().update((), half, masks, 0.8)
    got = never.update(never.init(half, masks), half, masks, 0.8)
    jax.tree.map(np.testing.assert_array_equal, (got[0], got[1], got[3]), (want[0], want[1], want[3]))


def test_ones_own_function_says_what_comes_back():
    using = pruner(regrow=lambda params, masks, key: {"w": jnp.arange(16.0).reshape(4, 4)}, regrow_fraction=0.5)
    tree = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)[::-1]}  # the lowest rows are the first to come back
    _, tree, masks = (None, *pruner().update((), tree, init_masks(tree, "w"), 0.5)[:2])
    state = using.observe(using.init(tree, masks), tree, masks, tree)
    np.testing.assert_array_equal(using.update(state, tree, masks, 0.5)[1]["w"].all(1), [True, False, False, True])


@pytest.mark.parametrize("argument", ["criterion", "regrow"])
def test_a_missing_key_is_missed_by_name(argument):
    using, tree = pruner(**{argument: "random"}), {"w": jnp.ones((4, 4))}
    with pytest.raises(UserError, match=f"{argument} = 'random' needs key"):
        using.update(using.init(tree, init_masks(tree, "w")), tree, init_masks(tree, "w"), 0.5)


def test_tiles_come_back_whole_and_counts_hold():
    using = pruner(structure="block(4, 4)", regrow="gradient", regrow_fraction=0.5)
    tree = {"w": jax.random.normal(jax.random.key(0), (16, 16))}
    _, tree, masks = (None, *pruner(structure="block(4, 4)").update((), tree, init_masks(tree, "w"), 0.5)[:2])
    grads = {"w": jax.random.normal(jax.random.key(1), (16, 16))}
    state = using.observe(using.init(tree, masks), tree, masks, grads)
    after, report = using.update(state, tree, masks, 0.5)[1::2]
    assert count(after["w"]) == 128 and int(report.regrown["w"]) > 0
    assert {int(n) for n in after["w"].reshape(4, 4, 4, 4).sum((1, 3)).ravel()} == {0, 16}


def test_two_of_four_are_no_share_to_exchange_but_may_be_lifted():
    tree = {"w": jax.random.normal(jax.random.key(0), (16, 16))}
    masks = init_masks(tree, "w")
    using = pruner(structure="2:4", regrow="gradient", regrow_fraction=lambda step: 0.3)
    with pytest.raises(UserError, match="regrow: exchanges a share of many weights, not of n of m"):
        using.amounts(masks, 0.5)
    with pytest.raises(UserError, match="regrow: exchanges a share of many weights, not of n of m"):
        using.update(using.init(tree, masks), tree, masks, 0.5)
    lifts = pruner(structure="2:4", regrow="random", regrow_fraction=0.0)
    _, pruned, state, _ = lifts.update(lifts.init(tree, masks), tree, masks, 0.5, jax.random.key(0))
    assert (pruned["w"].reshape(4, 4, 16).sum(1) == 2).all()
    assert lifts.update(state, tree, pruned, 0.0, jax.random.key(1))[1]["w"].all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("regrow", ["random", "gradient"])
def test_the_same_on_a_mesh_without_gathers(kind, regrow):
    using = pruner(regrow=regrow, regrow_fraction=0.3)
    state, tree, masks, _ = begun(using)
    step = jax.jit(lambda *now: using.update(*now, 0.6, jax.random.key(1)), compiler_options=FAST)
    want = step(state, tree, masks)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):

        def put(x):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec("x", "y") if x.ndim == 2 else PartitionSpec()))

        arguments = jax.tree.map(put, (state, tree, masks))
        compiled = step.lower(*arguments).compile()
        got = compiled(*arguments)
    assert "all-gather" not in compiled.as_text() and "sort" not in compiled.as_text()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


def test_the_fraction_falls_by_a_cosine():
    at = regrowth(0.3, begin=10, end=110)
    got = [float(at(jnp.int32(step))) for step in (0, 10, 11, 35, 60, 85, 110, 200)]
    want = [0, 0, *(0.15 * (1 + math.cos(math.pi * way)) for way in (0.01, 0.25, 0.5, 0.75)), 0, 0]
    np.testing.assert_allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0, 1e-7])
def test_a_part_of_a_count_is_exact(fraction):
    rng = random.Random(0)
    counts = [0, 1, 2**32 - 1, 2**32, 2**39 - 1, *(rng.randrange(2 ** rng.randrange(1, 39)) for _ in range(300))]
    got = np.asarray(wide_part(wide(counts), jnp.float32(fraction))).astype(object)
    fixed = int(np.round(np.float32(fraction) * np.float32(1 << 24)))
    assert [int(high) * 2**32 + int(low) for high, low in got] == [n * fixed >> 24 for n in counts]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"regrow": "gradients"}, "regrow = 'gradients' is unknown; use one of random, gradient"),
        ({"regrow": "wanda"}, "regrow = 'wanda' is unknown; use one of random, gradient"),
        ({"regrow": "gradient", "mode": "soft"}, "regrow: needs mode = hard"),
        ({"regrow": "gradient", "method": "quantile"}, "regrow: needs mode = hard, method = exact"),
        ({"criterion": "obert", "mode": "soft"}, "mode = soft: weights keep their values"),
        ({"criterion": "movement", "method": "hist256"}, "method = hist256: its bins begin at 0"),
        ({"regrow": "gradient", "criterion": "obert"}, "a criterion that leaves kept weights alone"),
    ],
)
def test_what_does_not_go_together(parts, words):
    with pytest.raises(UserError, match=words):
        pruner(**parts)


def test_lifted_masks_give_all_weights_back_as_0_and_come_again():
    """AC/DC: pruned by what is there then, with exact counts; a weight that never moved from 0 goes again."""
    using = pruner(regrow="random", regrow_fraction=0.0)
    state, tree, masks, _ = begun(using)
    once, pruned, state, _ = using.update(state, tree, masks, 0.6, jax.random.key(1))
    freed, lifted_masks, state, report = using.update(state, once, pruned, 0.0, jax.random.key(2))
    for name, mask in masks.items():
        if mask is None:
            continue
        assert lifted_masks[name].all() and int(report.regrown[name]) == count(~pruned[name])
        np.testing.assert_array_equal(freed[name], once[name])  # kept values, and 0
    moved = jax.tree.map(lambda w: w + 1e-3, freed)  # what was 0 is below what was kept, still
    again, masks_again, _, report = using.update(state, moved, lifted_masks, 0.6, jax.random.key(3))
    for name, mask in masks_again.items():
        if mask is None:
            continue
        order = np.argsort(-np.abs(np.asarray(moved[name])).reshape(-1), kind="stable")
        assert count(mask) == count(pruned[name])
        assert set(order[: count(mask)]) == set(np.flatnonzero(np.asarray(mask).reshape(-1)))
        assert not np.asarray(again[name])[~np.asarray(mask)].any()


def test_the_plan_of_lifted_masks():
    plan = {2: 0.5, 12: 0.6, 22: 0.7, 24: 0.8}
    assert lifted(plan, 0) == plan
    assert lifted(plan, 4) == {2: 0.5, 8: 0.0, 12: 0.6, 18: 0.0, 22: 0.7, 24: 0.8}
    assert list(lifted(plan, 9)) == [2, 3, 12, 13, 22, 24]


def test_a_sparse_start_is_not_made_denser():
    """Counts are exact in both directions: a schedule that begins below the start would give its weights back."""
    masks = {"a": np.arange(400).reshape(20, 20) >= 280, "b": np.arange(100).reshape(10, 10) >= 70, "c": None}
    rise = {"sparsity": 0.9, "begin": 1, "end": 9, "every": 4, "regrow": "random"}

    def check(**prune):
        cfg = PruneConfig(**rise | prune)
        check_regrowth(cfg, pruner(regrow="random"), masks, plan_of(cfg, 10, "steps")[1])

    for fine in (
        {"initial": 0.7},
        {"initial": 0.6999},
        {"schedule": "one_shot"},
        {"amounts": {"b": None}, "initial": 0.7},
    ):
        check(**fine)
    with pytest.raises(UserError, match=r"prune.initial = 0: 70.0 % of the start is .* make it 0.0 %; set 0.7 or more"):
        check()
    for sparsity in ({"schedule": "one_shot"}, {"initial": 0.6}):
        with pytest.raises(UserError, match=r"prune.sparsity = 0.6: 70.0 % .* gradient would make it 60.0 %"):
            check(sparsity=0.6, regrow="gradient", **sparsity)
    with pytest.raises(UserError, match="prune.amounts: 'b' = 0.1: 70.0 %"):
        check(amounts={"b": 0.1}, initial=0.7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prune", "kept"),
    [
        ({"schedule": "one_shot", "begin": 2, "end": 10, "every": 4, "lift_steps": 2}, [0.5, 1, 0.5, 1, 0.5]),
        (
            {
                **{"schedule": "one_shot", "begin": 2, "end": 2, "every": 1, "refresh": True, "mode": "soft"},
                **{"structure": "2:4", "straight_through": 2e-4, "sparsity": 0.5},
            },
            [0.5] * 11,
        ),
    ],
    ids=["AC/DC", "SR-STE"],
)
def test_a_run_whose_masks_move_resumes_to_the_bit(tiny, tmp_path, prune, kept):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", steps=12, prune={"sparsity": 0.5} | prune, train={"save_every": 2})
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "whole")
    assert done.code == 0, done.err
    records = read_records(tmp_path / "whole" / "prunes.jsonl")
    assert [record["kept"] / record["size"] for record in records] == pytest.approx(kept, abs=1e-3)
    assert sum(record["regrown"] for record in records) > 0
    code, err = stop(tiny, [config], tmp_path / "run", 7, signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    assert tiny.run("pretrain", config, "--workdir", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_regrows_and_resumes_to_the_bit(tiny, tmp_path):
    prune = {"schedule": "one_shot", "begin": 2, "end": 10, "every": 2, "regrow": "gradient", "regrow_fraction": 0.5}
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", prune=prune, train={"save_every": 2})
    done = tiny.run("pretrain", config, "--workdir", tmp_path / "whole")
    assert done.code == 0, done.err
    records = read_records(tmp_path / "whole" / "prunes.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10]
    assert len({record["kept"] for record in records}) == 1
    regrown = [record["regrown"] for record in records]
    assert regrown[0] == regrown[-1] == 0 and regrown[1] > regrown[3] > 0
    assert all(record["newly_pruned"] == record["regrown"] for record in records[1:])
    for step in (3, 7):
        code, err = stop(tiny, [config], tmp_path / "run", step, signal.SIGKILL)
        assert code == -signal.SIGKILL, err
    assert tiny.run("pretrain", config, "--workdir", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    bad = tiny.pretrain_yaml(tmp_path / "bad.yaml", prune=prune | {"mode": "soft"})
    done = tiny.run("pretrain", bad, "--workdir", tmp_path / "bad")
    assert done.code == 2 and "regrow = gradient needs mode = hard" in done.err
    rising = prune | {"schedule": "cubic"}
    bad = tiny.pretrain_yaml(tmp_path / "bad.yaml", init_from=str(tmp_path / "whole"), prune=rising)
    done = tiny.run("pretrain", bad, "--workdir", tmp_path / "bad")
    assert done.code == 2 and "prune.initial = 0" in done.err and not (tmp_path / "bad").exists()
