"""What ends a command on purpose, each with its exit code; anything else is a defect and keeps its traceback."""

import errno
import os

EXIT_PEER = 76
"""Another process of the job was lost."""
EXIT_STALLED = 79
"""No step ended for too long; the same command resumes."""
EXIT_RESOURCES = 71
"""This machine has too little memory, or allows too few open files or processes."""
EXIT_DISK = 74
"""A disk is full, read-only or broken, or a file-size limit was met."""


class UserError(ValueError):
    """Wrong input: one line with the key or path, the value, and the remedy."""

    exit_code = 2


class InUse(UserError):
    """Another run owns the workdir."""


class Preempted(Exception):
    """SIGTERM or SIGINT arrived and the state is saved; the same command resumes."""

    exit_code = 75


class Diverged(Exception):
    """Loss, gradient or a weight is not finite; nothing was saved since."""

    exit_code = 77


class CheckpointError(Exception):
    """No usable checkpoint, or one could not be written."""

    exit_code = 78


_DISK = (
    *(errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.ESTALE, errno.EBUSY, errno.EXDEV, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT),
)
_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


def causes(error: BaseException) -> list[BaseException]:
    """An error and those that it came from, however they are linked; each once."""
    chain, ahead = [], [error]
    while ahead:
        if (each := ahead.pop(0)) in chain:
            continue
        chain.append(each)
        group = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        ahead += [cause for cause in (each.__cause__, each.__context__, *group) if cause is not None]
    return chain


def disk_errno(error: BaseException) -> int | None:
    """The number of the disk's error that is behind an error, or None."""
    return _errno(error, _DISK)


def resource_errno(error: BaseException) -> int | None:
    """The number of the error behind an error that says that this machine allows no more of something, or None."""
    return _errno(error, _RESOURCES)


def _errno(error: BaseException, numbers: tuple[int, ...]) -> int | None:
    """The first of these numbers in an error and its causes; libraries hand it on as words alone."""
    for each in causes(error):
        if isinstance(each, OSError) and each.errno is not None:
            if each.errno in numbers:
                return each.errno
        elif number := next((number for number in numbers if os.strerror(number) in str(each)), None):
            return number
    return None
