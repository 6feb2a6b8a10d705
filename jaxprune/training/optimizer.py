"""AdamW as BERT's code has it, as an optax transformation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.config import OptimizerConfig


class PeakRateState(NamedTuple):
    """count () int32: updates made. peak () float32: learning rate after warm-up; data, so one program serves any."""

    count: jax.Array
    peak: jax.Array


def adamw(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled decay (not on biases and LayerNorm), warm-up and decay over `steps`.

    With `bias_correction=False` this is the optimizer of Devlin et al. 2019's code.
    """
    rate = relative_rate(cfg, steps)
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
        if cfg.bias_correction
        else scale_by_uncorrected_adam(cfg.b1, cfg.b2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=decays),
        _scale_by_peak_rate(rate, cfg.learning_rate),
    )


def relative_rate(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate over its peak, in [0, 1]: linear warm-up, then decay to 0 at `steps`, none, or a sawtooth.

    A sawtooth is 1 - step / end, where `end` is the next multiple of the period, and is not shifted by the warm-up:
    google-research/bert's polynomial decay in jobs of `period` steps, each resumed with num_train_steps = its end.
    """
    if cfg.decay == "sawtooth":
        return functools.partial(_sawtooth, cfg)
    warmup = optax.linear_schedule(0.0, 1.0, cfg.warmup_steps)
    rest = max(steps - cfg.warmup_steps, 1)
    after = optax.linear_schedule(1.0, 0.0, rest) if cfg.decay == "linear" else optax.constant_schedule(1.0)
    return optax.join_schedules([warmup, after], [cfg.warmup_steps]) if cfg.warmup_steps else after


def _sawtooth(cfg: OptimizerConfig, step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.int32) + cfg.offset
    end = cfg.period * (step // cfg.period + 1)
    return jnp.where(step < cfg.warmup_steps, step / max(cfg.warmup_steps, 1), 1 - step / end)


def learning_rate_at(cfg: OptimizerConfig, steps: int, peak: float) -> Callable[[int], float]:
    """Step -> the learning rate of the update that step makes, for logs."""
    rate = relative_rate(cfg, steps)
    return lambda step: peak * float(np.asarray(rate(step)))


def decays(params: Any) -> Any:
    """True where weight decay applies: everywhere but biases and LayerNorm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without bias correction (google-research/bert, optimization.py); its state is optax's."""

    def init(params):
        zeros = optax.tree_utils.tree_zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params=None):
        del params
        mu = optax.tree_utils.tree_update_moment(updates, state.mu, b1, 1)
        nu = optax.tree_utils.tree_update_moment(updates, state.nu, b2, 2)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, optax.ScaleByAdamState(count=jnp.asarray(optax.safe_increment(state.count)), mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _scale_by_peak_rate(rate: optax.Schedule, peak: float) -> optax.GradientTransformation:
    def init(params):
        del params
        return PeakRateState(jnp.zeros((), jnp.int32), jnp.float32(peak))

    def update(updates, state, params=None):
        del params
        scale = -state.peak * rate(state.count)
        after = PeakRateState(jnp.asarray(optax.safe_increment(state.count)), state.peak)
        return jax.tree.map(lambda u: scale * u, updates), after

    return optax.GradientTransformation(init, update)


def with_peak_rate(opt_state: Any, peak: Any) -> Any:
    """`opt_state` with another peak learning rate (an array (M,) for a population): runs that differ in it share one
    compiled step."""
    return jax.tree.map(
        lambda s: s._replace(peak=jnp.full_like(s.peak, peak)) if isinstance(s, PeakRateState) else s,
        opt_state,
        is_leaf=lambda s: isinstance(s, PeakRateState),
    )
