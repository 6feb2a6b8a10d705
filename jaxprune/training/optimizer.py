"""AdamW with BERT's exceptions, as an optax transformation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.config.sections import OptimizerConfig
from jaxprune.pruning.names import matching, path_of


def adamw(cfg: OptimizerConfig, steps: int, restarts: Sequence[int] = ()) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled decay (not on biases and LayerNorm), warm-up and decay over `steps`, which
    begins anew at `restarts`.

    With `bias_correction=False` and `decay="published"` this is the optimizer of google-research/bert. The peak rate is
    data (`with_peak_rate`), so that one program serves any. UserError when a regex of `frozen` matches no path.
    """
    rate = relative_rate(cfg, steps, restarts)

    def at_peak(peak: Any) -> optax.GradientTransformation:
        return optax.scale_by_schedule(lambda step: -peak * rate(step))

    chain = optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
        if cfg.bias_correction
        else scale_by_uncorrected_adam(cfg.b1, cfg.b2, cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=decays),
        optax.inject_hyperparams(at_peak)(peak=cfg.learning_rate),
    )
    return but_frozen(chain, cfg.frozen) if cfg.frozen else chain


def but_frozen(tx: optax.GradientTransformation, regexes: Sequence[str]) -> optax.GradientTransformation:
    """`tx` for all but the leaves whose whole path a regex matches: these get no update and hold no moments."""

    def label(params):
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        frozen = set().union(*(matching(regex, paths, "optimizer.frozen") for regex in regexes))
        return jax.tree_util.tree_map_with_path(lambda p, _: "frozen" if path_of(p) in frozen else "trained", params)

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, label)


def relative_rate(cfg: OptimizerConfig, steps: int, restarts: Sequence[int] = ()) -> optax.Schedule:
    """Step -> learning rate over its peak, in [0, 1]: linear warm-up from 0, then as `cfg.decay` says.

    - linear (ours): from 1 at the end of the warm-up to 0 at `steps`; constant: 1.
    - published: 1 - step / steps, which the warm-up replaces while it lasts (google-research/bert, optimization.py).
    - sawtooth: 1 - step / end, where `end` is the next multiple of the period: `published` in jobs of `period` steps,
      each resumed with num_train_steps = its end.
    - cycles and rewound: linear, to 0 at each of `restarts` (a prune's steps, `pruning_plan.restarts_of`), and from 1
      again; oBERT's recipe (Kurtic et al. 2022) and learning-rate rewinding (Renda et al. 2020).
    """
    if restarts:
        return functools.partial(_restarted, cfg.warmup_steps, steps, tuple(restarts))
    if cfg.decay == "sawtooth":
        return functools.partial(_sawtooth, cfg)
    if cfg.decay == "constant":
        after = optax.constant_schedule(1.0)
    elif cfg.decay == "published":
        whole = optax.linear_schedule(1.0, 0.0, steps)
        after = lambda step: whole(step + cfg.warmup_steps)  # noqa: E731 (joined schedules count from their own start)
    else:
        after = optax.linear_schedule(1.0, 0.0, max(steps - cfg.warmup_steps, 1))
    warmup = optax.linear_schedule(0.0, 1.0, cfg.warmup_steps)
    return optax.join_schedules([warmup, after], [cfg.warmup_steps]) if cfg.warmup_steps else after


def _sawtooth(cfg: OptimizerConfig, step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.int32) + cfg.offset
    end = cfg.period * (step // cfg.period + 1)
    return jnp.where(step < cfg.warmup_steps, step / max(cfg.warmup_steps, 1), 1 - step / end)


def _restarted(warmup: int, steps: int, restarts: tuple[int, ...], step: Any) -> jax.Array:
    starts = jnp.array([warmup, *(at for at in restarts if warmup < at < steps)], jnp.int32)
    ends = jnp.append(starts[1:], jnp.int32(steps))
    step = jnp.asarray(step, jnp.int32)
    cycle = jnp.maximum(jnp.sum(step[..., None] >= starts, -1) - 1, 0)
    left = (ends[cycle] - step) / jnp.maximum(ends[cycle] - starts[cycle], 1)
    return jnp.where(step < warmup, step / max(warmup, 1), jnp.clip(left, 0.0, 1.0))


def learning_rate_at(cfg: OptimizerConfig, steps: int, restarts: Sequence[int] = ()) -> Callable[[int], float]:
    """Step -> the learning rate of the update that step makes, for logs."""
    rate = relative_rate(cfg, steps, restarts)
    return lambda step: cfg.learning_rate * float(np.asarray(rate(step)))


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


def with_peak_rate(opt_state: Any, peak: float) -> Any:
    """`opt_state` with another peak learning rate, placed like the one before: else the step is compiled once more."""
    before = optax.tree_utils.tree_get(opt_state, "peak")
    return optax.tree_utils.tree_set(opt_state, peak=jax.device_put(np.float32(peak), before.sharding))
