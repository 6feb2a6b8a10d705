"""What ends a command on purpose, each with its exit code; anything else is a defect and keeps its traceback."""

EXIT_PEER = 76
"""Another process of the job was lost."""
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
