"""How a command ends: one line about what went wrong, and the exit code that stands for it."""

import errno
import io
import logging
import os
import select
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from jaxprune.errors import (
    EXIT_DISK,
    EXIT_PEER,
    EXIT_RESOURCES,
    CheckpointError,
    UserError,
    causes,
    disk_errno,
    resource_errno,
)

_PATH = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP),
    errno.ENOTEMPTY,
)
_WIDTH = 2000
_LAST_SECONDS = 3.0  # below processes.SILENT_SECONDS


def exit_code_of(command: Callable[[], int], name: str, *, job: bool = False) -> int:
    """The exit code of a command: what it returns, or of its error, which is printed in one line after its `name`.

    An error that is none of `errors` is a defect and raised on; in a `job` it is printed, as raising waits for peers.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say(f"{name}: interrupted; run the same command to go on")
        return 130
    except (Exception, BaseExceptionGroup) as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        code = EXIT_PEER if job and _is_lost_peer(error) else code_of_error(error)
        if code is None or os.environ.get("JAXPRUNE_TRACEBACK"):
            if not job:
                raise
            traceback.print_exc()  # raising would wait for peers at exit
            return code or 1
        message = str(error)
        if code == EXIT_RESOURCES:
            message = _resource(error)
        elif isinstance(error, OSError):
            remedy = "make room or choose another disk" if code == EXIT_DISK else "choose another path"
            path = error.filename2 or error.filename or "the disk or the output"
            message = f"{path}: {error.strerror}; {remedy}, and run again"
        if code == EXIT_PEER:
            message = f"a peer process was lost; run the same command on all hosts to resume ({_one_line(error)})"
        _say(f"{name}: {message}")
        return code


def open_streams() -> None:
    """Give what was started without standard streams some that lead nowhere, so that no file takes their numbers; let
    the output show what its encoding lacks, such as a path that is no UTF-8, as an escape."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def quiet_threads() -> None:
    """Let what goes on behind a save print no traceback: a write that fails is raised where it is waited for.

    Of many writes of one save that fail, Orbax raises the first and closes its event loop; the others call back later,
    on whatever thread, or are forgotten.
    """
    for name in ("asyncio", "absl"):  # Orbax tells of its options there too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.excepthook = _show
    if sys.unraisablehook is sys.__unraisablehook__:  # a test framework has its own
        sys.unraisablehook = _show_unraisable


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if threading.current_thread() is threading.main_thread() and not _calls_back(trace):
        sys.__excepthook__(kind, error, trace)


def _show_unraisable(unraisable: Any) -> None:
    if not _calls_back(unraisable.exc_traceback):
        sys.__unraisablehook__(unraisable)


def _calls_back(trace: TracebackType | None) -> bool:
    """Whether an error is of native code that called an event loop."""
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == "asyncio.base_events"


def _say(line: str) -> None:
    """Print a line to standard error, if anything can be printed there; of what it quotes, no more than can be read."""
    lines = [
        part if len(part) <= _WIDTH else f"{part[: _WIDTH // 2]} ... {part[-_WIDTH // 2 :]}"
        for part in line.split("\n")
    ]
    with suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def _resource(error: BaseException) -> str:
    """What ran out, and what helps."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}; raise `ulimit -n`, and run again"
    if isinstance(error, OSError):
        return f"{error.strerror}; end other programs or raise `ulimit -u`, and run again"
    return f"out of memory ({_one_line(error)}); take a smaller batch or a larger machine, and run again"


def _reader_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as `| head` leaves it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed since another process is gone; memory that ran out is a failure of this one.

    A save notices it as something else, so whatever is no documented error waits for the peers to be heard of.
    """
    if isinstance(error, UserError) or disk_errno(error):
        return False
    runtime = [str(each) for each in causes(error) if _is_runtime(each)]
    if any("RESOURCE_EXHAUSTED" in text for text in runtime):
        return False
    if runtime:
        return True
    from jaxprune.experiments.environment import peer_is_lost

    came_from_another = isinstance(error, CheckpointError) and error.__cause__ is not None
    return (code_of_error(error) is None or came_from_another) and peer_is_lost()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def leave(code: int) -> None:
    """End this process at once: an orderly exit would wait for peers of a job that may be gone, and without memory or
    descriptors for threads that cannot end.

    Process 0 serves the others; it goes last, so that each can still say why it ends.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and jax.process_index() == 0:
        time.sleep(_LAST_SECONDS)
    os._exit(code)


def code_of_error(error: BaseException) -> int | None:
    """The documented code of an error (errors.py); None for a defect, which keeps its traceback."""
    if isinstance(error, OSError):
        if disk_errno(error):
            return EXIT_DISK
        if resource_errno(error):
            return EXIT_RESOURCES
        return UserError.exit_code if error.errno in _PATH and error.filename is not None else None
    if isinstance(error, MemoryError) or (_is_runtime(error) and "RESOURCE_EXHAUSTED" in str(error)):
        return EXIT_RESOURCES
    return getattr(error, "exit_code", None)


def _is_runtime(error: BaseException) -> bool:
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
