"""Schedules and plans; the contract tests cover every entry of SCHEDULES."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune.pruning import SCHEDULES, cubic, linear, one_shot, plan

schedules = pytest.mark.parametrize("name", sorted(SCHEDULES))


@schedules
@pytest.mark.parametrize(("begin", "end", "initial"), [(0, 100, 0.0), (7, 61, 0.3), (5, 5, 0.1), (0, 0, 0.0)])
def test_contract(name, begin, end, initial):
    schedule = SCHEDULES[name](0.9, begin=begin, end=end, initial=initial)
    values = [schedule(step) for step in range(end + 5)]
    assert all(isinstance(v, float) for v in values)
    assert all(initial <= v <= 0.9 for v in values) and values == sorted(values)
    assert all(v == initial for v in values[:begin])
    assert all(v == 0.9 for v in values[end:])
    traced = jax.jit(schedule)(jnp.arange(end + 5))
    assert traced.dtype == jnp.float32
    assert jnp.allclose(traced, jnp.array(values), atol=1e-6)


@schedules
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"final": 1.1, "begin": 0, "end": 1}, "final"),
        ({"final": float("nan"), "begin": 0, "end": 1}, "final"),
        ({"final": 0.5, "begin": 0, "end": 1, "initial": -0.1}, "initial"),
        ({"final": 0.5, "begin": 3, "end": 2}, "begin = 3 lies after end = 2"),
    ],
)
def test_refuses(name, arguments, word):
    with pytest.raises(ValueError, match=word):
        SCHEDULES[name](**arguments)


def test_shapes():
    assert cubic(0.8, begin=0, end=100)(50) == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic(0.8, begin=100, end=300, initial=0.4)(150) == pytest.approx(0.8 - 0.4 * 0.75**3)
    assert linear(0.8, begin=0, end=100, initial=0.4)(25) == pytest.approx(0.5)
    assert [one_shot(0.8, begin=3)(step) for step in (2, 3, 4)] == [0.0, 0.8, 0.8]
    assert cubic(0.3, begin=0, end=10, initial=0.9)(5) == pytest.approx(0.3 + 0.6 * 0.125)  # may also fall


@schedules
def test_plan_always_ends_at_the_final_sparsity(name):
    for begin in (0, 1, 3, 250):
        for length in (0, 1, 7, 10, 97):
            for every in (1, 3, 10, 1000):
                end = begin + length
                schedule = SCHEDULES[name](0.9, begin=begin, end=end, initial=0.1)
                steps = plan(schedule, begin=begin, end=end, every=every)
                assert list(steps) == sorted(steps)
                assert next(iter(steps)) == begin
                assert list(steps.items())[-1] == (end, 0.9)
                assert all((step - begin) % every == 0 for step in list(steps)[:-1])
                assert all(isinstance(v, float) for v in steps.values())
                assert len(steps) == -(-length // every) + 1


def test_plan_refuses():
    with pytest.raises(ValueError, match="every = 0"):
        plan(cubic(0.5, begin=0, end=1), begin=0, end=1, every=0)
    with pytest.raises(ValueError, match="begin = 2"):
        plan(cubic(0.5, begin=0, end=1), begin=2, end=1, every=1)
