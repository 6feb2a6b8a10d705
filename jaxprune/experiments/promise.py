"""What the same command promises after an interruption: the same bits, or the same up to rounding."""

from collections.abc import Mapping
from typing import Any

NUMERIC = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose version may change a bit."""
_MACHINE = ("backend", "devices", "processes", "cores", "XLA_FLAGS", "mesh")
_DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true")


def promise(now: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """`bitwise`, or `statistical: ...` with what stands in the way, for a start on `now` after one on `before`.

    Both are as `environment` gives them. On another machine, mesh or version sums are rounded in another order: masks
    are the same functions of the weights, but weights drift apart by rounding.
    """
    if now["backend"] == "gpu" and not any(flag in now["XLA_FLAGS"] for flag in _DETERMINISTIC):
        return f"statistical: a GPU sums in any order unless XLA_FLAGS has {_DETERMINISTIC[0]}"
    changed = [] if before is None else [*_changes(before, now)]
    return f"statistical: {', '.join(changed)} since the last start" if changed else "bitwise"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]):
    for name in NUMERIC:
        old, new = (start.get("packages", {}).get(name) for start in (before, now))
        if old != new:
            yield f"{name} {old} -> {new}"
    for name in _MACHINE:
        old, new = before.get(name), now.get(name)
        if name in before and old != new:
            yield f"{name} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} x {value[0]}" if value and len({*value}) == 1 else ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {size}" for key, size in value.items())
    return str(value) or "none"
