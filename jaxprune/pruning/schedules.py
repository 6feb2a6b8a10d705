"""Schedules: sparsity as a function of the step, and the finite plan of prunes made from one."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import jax
import jax.numpy as jnp

from jaxprune.errors import UserError

Step = int | jax.Array
Schedule = Callable[[Step], float | jax.Array]


def _check(final: float, begin: int, end: int, initial: float) -> None:
    for name, value in (("final", final), ("initial", initial)):
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} = {value} is no sparsity; use a fraction in [0, 1]")
    if begin > end:
        raise UserError(f"begin = {begin} lies after end = {end}; set begin <= end")


def _polynomial(final: float, begin: int, end: int, initial: float, power: int) -> Schedule:
    _check(final, begin, end, initial)

    def schedule(step):
        if isinstance(step, int):
            if step >= end:
                return float(final)
            if step <= begin:
                return float(initial)
            left = (end - step) / (end - begin)
            return float(final + (initial - final) * left**power)
        left = jnp.clip((end - step) / max(end - begin, 1), 0.0, 1.0).astype(jnp.float32)
        between = final + jnp.float32(initial - final) * left**power
        return jnp.where(step >= end, jnp.float32(final), jnp.where(step <= begin, jnp.float32(initial), between))

    return schedule


def one_shot(final: float, *, begin: int, end: int | None = None, initial: float = 0.0) -> Schedule:
    """A schedule that jumps from `initial` to `final` at step `begin`; `end` is accepted and must not lie before it.

    Raises:
      UserError: a sparsity outside [0, 1], or begin > end.
    """
    _check(final, begin, begin if end is None else end, initial)
    return _polynomial(final, begin, begin, initial, 1)


def linear(final: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """A schedule that rises linearly from `initial` at step `begin` to `final` at step `end`, constant outside.

    Raises:
      UserError: a sparsity outside [0, 1], or begin > end.
    """
    return _polynomial(final, begin, end, initial, 1)


def cubic(final: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """A schedule final + (initial - final) * (1 - (step - begin) / (end - begin))^3, constant outside [begin, end].

    The polynomial decay of Zhu & Gupta 2017 (equation 1), the paper's choice. Python steps give Python floats, arrays
    (also traced) float32. begin == end is a step function: `final` from `end` on.

    Raises:
      UserError: a sparsity outside [0, 1], or begin > end.
    """
    return _polynomial(final, begin, end, initial, 3)


def plan(schedule: Schedule, *, begin: int, end: int, every: int) -> dict[int, float]:
    """The prunes of a schedule, {step: sparsity}: at begin, begin + every, ... and at end, on this grid or off it.

    The last entry is always step `end`, with the schedule's sparsity there.

    Raises:
      UserError: begin > end, or every < 1.
    """
    if begin > end:
        raise UserError(f"begin = {begin} lies after end = {end}; set begin <= end")
    if every < 1:
        raise UserError(f"every = {every} is no number of steps; set every >= 1")
    return {step: float(schedule(step)) for step in [*range(begin, end, every), end]}


def lifted(plan: Mapping[int, float], steps: int) -> dict[int, float]:
    """`plan` with sparsity 0 that many steps before each prune but the first, where that is behind the one before.

    The dense phases of AC/DC (Peste et al. 2021); 0 steps give the plan as it is.
    """
    prunes = sorted(plan)
    lifts = {after - steps: 0.0 for before, after in pairwise(prunes) if steps and after - steps > before}
    return dict(sorted((lifts | dict(plan)).items()))


def regrowth(fraction: float, *, begin: int, end: int) -> Callable[[jax.Array], jax.Array]:
    """Step, an array -> fraction / 2 (1 + cos(pi (step - begin) / (end - begin))), 0 at `begin` and from `end` on.

    RigL's (Evci et al. 2020, equation 1), but that the first prune, of what is dense, is a prune alone.
    """

    def at(step):
        way = jnp.clip((step - begin) / max(end - begin, 1), 0.0, 1.0)
        wave = jnp.float32(fraction / 2) * (1 + jnp.cos(jnp.float32(jnp.pi) * way))
        return jnp.where((step <= begin) | (step >= end), jnp.float32(0), wave)

    return at


SCHEDULES: dict[str, Callable[..., Schedule]] = {"one_shot": one_shot, "linear": linear, "cubic": cubic}
