"""Train and prune steps, compiled for a TPU slice on a machine without one."""

import importlib.util
import os
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxprune.errors import UserError
from jaxprune.plan.slices import Slice
from jaxprune.training.compile import Program
from jaxprune.training.sharding import within


class Compiled(NamedTuple):
    """A step as the TPU compiler made it, or why it made none."""

    text: str
    """The optimized HLO; empty if the step does not fit."""
    memory: Any
    """Bytes on one chip, as `memory_analysis()` has them."""
    bytes_accessed: float
    """Bytes that its instructions read and write, memory on the chip's core included; loops count once."""
    refused: str
    """The compiler's words if HBM does not suffice, else empty."""


def devices(where: Slice) -> list[Any]:
    """The slice's devices, to compile for. UserError without libtpu, and for a shape that the compiler refuses."""
    if importlib.util.find_spec("libtpu") is None and not Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file():
        raise UserError("libtpu, the TPU compiler, is not installed; run `pip install 'jaxprune[tpu]'` on Linux")
    extra = {"chip_config_name": where.chip.config} if where.chip.config else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **extra).devices
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise UserError(f"--topology {where.topology}: {said}; choose another shape") from None
    if threading.current_thread() is threading.main_thread():  # libtpu's own handler prints a stack trace
        signal.signal(signal.SIGTERM, handler)
    return list(found)


def compile_train(steps: Program, batch: dict[str, Any]) -> Compiled:
    """The train step for a batch of these shapes."""
    return _compile(steps, steps.train, steps.frozen, batch, _key())


def compile_prune(steps: Program) -> Compiled:
    """The prune step."""
    return _compile(steps, steps.prune, jax.eval_shape(lambda: steps.amounts(0.5)), _key())


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _compile(steps: Program, step: Any, *arguments: Any) -> Compiled:
    with within(steps.mesh):
        lowered = step.lower(steps.abstract, *arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled("", None, 0.0, str(error).splitlines()[0])
    cost = compiled.cost_analysis() or {}
    return Compiled(compiled.as_text(), compiled.memory_analysis(), cost.get("bytes accessed", 0.0), "")
