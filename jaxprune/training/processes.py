"""Several processes as one run: they check together, agree, stop at the same step, and leave nobody waiting."""

import hashlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxprune.errors import EXIT_PEER, UserError

log = logging.getLogger("jaxprune")

HEARTBEAT_SECONDS = 120
"""After so long JAX itself aborts the job."""
SILENT_SECONDS = 30.0
_BEAT_SECONDS = 3.0
_AT_ONCE_SECONDS = 1.0
_SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides
_BEATS = "jaxprune/beats"
_DIGEST_BYTES = 8


def join(spec: str) -> None:
    """Make this process part of a job; call before anything else of JAX.

    `auto` takes everything from the environment (Cloud TPU, GKE, SLURM, Open MPI). `HOST:PORT,PROCESSES,ID` says it:
    the address of process 0, how many there are, and which one this is. The port has no authentication: bind it in a
    private network only. UserError for another spec.
    """
    if spec == "auto":
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    else:
        jax.distributed.initialize(*_address(spec), heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    threading.Thread(target=_watch, name="peers", daemon=True).start()
    _gather(np.zeros((), bool))  # CPU processes meet at their first collective within 30 s or never: now all are here


def _address(spec: str) -> tuple[str, int, int]:
    address, *numbers = spec.split(",")
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or not address.rpartition(":")[2].isdigit():
        raise UserError(f"--distributed {spec}: give HOST:PORT,PROCESSES,ID, or nothing to take it from the machine")
    count, number = map(int, numbers)
    if number >= count:
        raise UserError(f"--distributed {spec}: process {number} is outside 0 to {count - 1}; they count from 0")
    return address, count, number


def _watch() -> None:
    """End this process with EXIT_PEER once another is silent: a collective that waits for it may never return.

    Every process counts up in the job's key-value store, which Orbax uses too. Where process 0 itself is gone, JAX
    aborts the others at once, with a message of its own; where it is stopped, the store does not answer.
    """
    from jax._src import distributed

    client: Any = distributed.global_state.client
    me, beat = jax.process_index(), 0
    answered = [time.monotonic()]
    threading.Thread(target=_watch_store, args=(answered,), name="store", daemon=True).start()
    last: dict[str, tuple[str, float]] = {}
    while True:
        beat += 1
        try:
            client.key_value_set(f"{_BEATS}/{me}", str(beat), allow_overwrite=True)
            beats = client.key_value_dir_get(_BEATS)
        except Exception:  # process 0 is gone, or this one is leaving
            answered.clear()
            return
        answered[0] = now = time.monotonic()
        for name, value in beats:
            if last.get(name, ("", 0.0))[0] != value:
                last[name] = (value, now)
            elif now - last[name][1] > SILENT_SECONDS:
                _end_without(name.rsplit("/", 1)[-1])
        time.sleep(_BEAT_SECONDS)


def _watch_store(answered: list[float]) -> None:
    """End this process once the store has not answered for too long; until `answered` is empty."""
    while answered:
        if time.monotonic() - answered[0] > SILENT_SECONDS:
            _end_without("0")
        time.sleep(_BEAT_SECONDS)


def _end_without(lost: str) -> NoReturn:
    said = f"process {lost} of {jax.process_count()} was lost: silent for {SILENT_SECONDS:.0f} s"
    with suppress(OSError, ValueError):
        print(f"jaxprune: {said}; run the same command on all hosts to resume", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER)


def peer_is_lost() -> bool:
    """False once every process of the job was heard of again; else this one ends with EXIT_PEER (see `_watch`)."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return False
    from jax._src import distributed

    client: Any = distributed.global_state.client
    deadline = time.monotonic() + SILENT_SECONDS + 2 * _BEAT_SECONDS
    try:
        first = dict(client.key_value_dir_get(_BEATS))
        while time.monotonic() < deadline:
            time.sleep(_BEAT_SECONDS)
            now = dict(client.key_value_dir_get(_BEATS))
            if all(now[name] != beat for name, beat in first.items()):
                return False
    except Exception:  # process 0 is gone
        return True
    return True


def is_first() -> bool:
    """Whether this process writes the records of the run."""
    return jax.process_index() == 0


@contextmanager
def together(what: str) -> Iterator[None]:
    """A block that may fail on some processes only: if it fails on one, all raise, so that none waits for it."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    failed = np.flatnonzero(_gather(np.array(problem is not None)))
    if problem is not None:
        raise problem
    if failed.size:
        raise UserError(f"{what}: failed on process {failed[0]} of {jax.process_count()}; its output says why")


def agree(values: Mapping[str, str]) -> None:
    """UserError on every process unless all hold the same values; it names the keys that differ."""
    digests = [hashlib.sha256(value.encode()).digest()[:_DIGEST_BYTES] for value in values.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(values), _DIGEST_BYTES)
    theirs = _gather(mine)
    differ = [key for key, same in zip(values, (theirs == theirs[0]).all((0, 2)), strict=True) if not same]
    if differ:
        raise UserError(f"{', '.join(differ)}: not the same on all {jax.process_count()} processes; make them equal")


def from_first(number: int) -> int:
    """The number that process 0 holds, a non-negative int32 on every process."""
    return int(_gather(np.array(number, np.int32))[0])


def whole(tree: Any) -> Any:
    """`tree` as numpy arrays on every process, whatever their sharding. Every process must call it."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def _gather(x: np.ndarray) -> np.ndarray:
    """The x of all processes, (processes, ...)."""
    return x[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(x))


class Stop:
    """SIGTERM, SIGHUP or SIGINT asks for a stop instead of killing, so that the step in flight can finish and be saved.

    SIGINT after either raises KeyboardInterrupt; as Python raises that between bytecodes only, and a compilation may
    take minutes, a process that is still in native code a second later is ended with exit code 130, as by a kill. In a
    job JAX's preemption service passes the notice on, and all processes stop after the same step.
    """

    def __init__(self) -> None:
        self._asked = self._signalled = False
        self._job = jax.distributed.is_initialized()
        self._before: dict[int, Any] = {}
        self._wakeup = self._wakeup_before = -1

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (
                (signal.SIGHUP, signal.SIGINT) if self._job else (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
            ):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._ask)
            reader, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            self._wakeup_before = signal.set_wakeup_fd(self._wakeup)
            threading.Thread(target=_end_stuck, args=(reader,), name="interrupts", daemon=True).start()
        return self

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`; in a job, call it at every step."""
        if self._job and multihost_utils.reached_preemption_sync_point(step):
            log.warning("step %d: a process was asked to stop", step)
            self._asked = True
        return self._asked

    def _ask(self, number: int, frame: Any) -> None:
        del frame
        if self._signalled and number == signal.SIGINT:  # a second Ctrl-C
            raise KeyboardInterrupt
        self._signalled = True
        if self._job:
            os.kill(os.getpid(), signal.SIGTERM)  # which the preemption service listens for
            return
        log.warning("%s: stopping after this step; Ctrl-C stops at once", signal.Signals(number).name)
        self._asked = True

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end_stuck(reader: int) -> None:
    """End this process a second after SIGINT came as a second signal; until the writing end is closed.

    The interpreter writes the number of every signal into a pipe as soon as it arrives, in native code too.
    """
    stopping = False
    with open(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if stopping and number[0] == signal.SIGINT:
                if select.select([numbers], [], [], _AT_ONCE_SECONDS)[0] and not numbers.read(1):
                    return
                os.write(sys.stderr.fileno(), _SHOW_CURSOR if sys.stderr.isatty() else b"")
                os._exit(128 + signal.SIGINT)
            stopping |= number[0] in (signal.SIGINT, signal.SIGTERM)
