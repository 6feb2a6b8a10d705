"""Criteria: what weights are worth, higher = keep."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.errors import UserError
from jaxprune.pruning.axes import explicit_sharding
from jaxprune.pruning.fisher_blocks import obert
from jaxprune.pruning.interface import Criterion, Scores
from jaxprune.pruning.layer_inputs import obs, wanda
from jaxprune.pruning.masks import on_prunable
from jaxprune.pruning.names import chosen, path_of


@functools.cache
def stateless(score: Callable[[Any, Any, jax.Array | None], Scores]) -> Criterion:
    """The criterion without state whose scores are `score(params, masks, key)`."""
    return Criterion(lambda params, masks: (), None, lambda _, *arguments: score(*arguments))


def elementwise(f: Callable[[jax.Array], jax.Array]) -> Criterion:
    """The criterion that scores each weight w by f(w), which must not round."""
    return stateless(lambda params, masks, key: on_prunable(f, masks, params))._replace(elementwise=f)


def _zeros(params: Any, masks: Any) -> Any:
    """A float32 zero per prunable weight."""
    return on_prunable(functools.partial(jnp.zeros_like, dtype=jnp.float32), masks, params)


def summed(
    term: Callable[[jax.Array, jax.Array], jax.Array],
    worth: Callable[[jax.Array, jax.Array], jax.Array] = lambda total, w: total,
) -> Criterion:
    """The criterion that sums term(weight, gradient) over the steps observed, and scores by worth(sum, weight).

    All are float32; a score is the sum itself unless `worth` says otherwise.
    """

    def add(total: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return total + term(w.astype(jnp.float32), g.astype(jnp.float32))

    return Criterion(
        init=_zeros,
        observe=lambda state, params, masks, grads: on_prunable(add, masks, state, params, grads),
        score=lambda state, params, masks, key: on_prunable(
            lambda total, w: worth(total, w.astype(jnp.float32)), masks, state, params
        ),
    )


def _random(params: Any, masks: Any, key: jax.Array | None, *, argument: str = "criterion") -> Scores:
    """Uniform float32 scores in [0, 1), a function of `key` and the leaf's path alone, the same on any mesh."""
    if key is None:
        raise UserError(f"{argument} = 'random' needs key, a jax.random key")

    def draw(path, m):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_of(path).encode()) & 0x7FFFFFFF)
        return jax.random.uniform(leaf_key, m.shape, jnp.float32, out_sharding=explicit_sharding(m))

    return jax.tree_util.tree_map_with_path(draw, masks)


magnitude = elementwise(jnp.abs)
"""|w| (Han et al. 2015; the paper's criterion)."""
random = stateless(_random)
"""Uniform scores from `key`, anew at each prune."""
movement = summed(lambda w, g: -w * g)
"""Sum of -w g: high where training moves a weight away from 0 (Sanh et al. 2020)."""
taylor = summed(lambda w, g: jnp.abs(w * g))
"""Sum of |w g|, to first order the change of the loss when w becomes 0 (Molchanov et al. 2019)."""
fisher = summed(lambda w, g: g * g, lambda total, w: total * w * w)
"""w^2 times the sum of g^2 of batch gradients: the rise of the loss when w becomes 0 by a diagonal empirical Fisher
matrix for the Hessian (LeCun et al. 1990; Theis et al. 2018)."""

gradient = Criterion(
    init=_zeros,
    observe=lambda state, params, masks, grads: on_prunable(lambda g: jnp.abs(g.astype(jnp.float32)), masks, grads),
    score=lambda state, params, masks, key: state,
)
"""|g| of the last step's batch, dense: which pruned weights would move most (RigL: Evci et al. 2020)."""

CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "movement": movement,
    "taylor": taylor,
    "fisher": fisher,
    "obert": obert,
}
"""Those that a train step shows what they observe."""
BY_INPUTS: dict[str, Criterion] = {"wanda": wanda, "obs": obs}
"""Those of one shot alone: they see what goes into matrices as a model reads texts."""


REGROWTHS: dict[str, Criterion] = {
    "random": stateless(functools.partial(_random, argument="regrow")),
    "gradient": gradient,
}
"""Those by which pruned weights may come back; by chance is SET (Mocanu et al. 2018)."""


def criterion_of(
    choice: str | Criterion | Callable[..., Scores],
    argument: str = "criterion",
    offered: Mapping[str, Criterion | Callable[..., Scores]] = CRITERIA,
) -> Criterion:
    """The criterion of a name in `offered`, beside CRITERIA also in BY_INPUTS, a `Criterion` as it is, or a function of
    (params, masks, key) without state. An unknown name is a UserError that names the `argument` and what is `offered`.
    """
    if offered is CRITERIA and isinstance(choice, str) and choice in BY_INPUTS:
        return BY_INPUTS[choice]
    criterion = chosen(argument, choice, offered)
    return criterion if isinstance(criterion, Criterion) else stateless(criterion)
