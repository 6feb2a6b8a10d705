"""Names: the paths of leaves, the regexes that match them, and the choices a user makes by name."""

import difflib
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jax.tree_util import DictKey, GetAttrKey, keystr

from jaxprune.errors import UserError

_PATIENCE = 1.0  # seconds of CPU time


def path_of(key_path: Sequence) -> str:
    """The path of a leaf as `encoder/layer_00/attention/query/kernel`, from a key path of `jax.tree_util`.

    A leaf that a dict holds in an object with the attribute `value` (a Flax NNX variable) is named as the object.
    """
    keys = tuple(key_path)
    if len(keys) > 1 and isinstance(keys[-2], DictKey) and keys[-1] == GetAttrKey("value"):
        keys = keys[:-1]
    return keystr(keys, simple=True, separator="/")


def nearest(name: str, names: Iterable[str]) -> str:
    """`; the nearest is ...`, for the end of an error's line; empty when there are no names."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return f"; the nearest is {close[0]!r}" if close else ""


def matching(regex: str, paths: Sequence[str], argument: str) -> set[str]:
    """The paths that a regex matches as a whole; a UserError that names the argument when there are none."""
    matches = matched(regex, paths, argument)
    if not matches:
        raise UserError(f"{argument}: {regex!r} matches no parameter path as a whole{nearest(regex, paths)}")
    return matches


def matched(regex: str, paths: Iterable[str], argument: str, *, part: bool = False) -> set[str]:
    """The paths that a regex matches as a whole, or in `part`; UserError where it is none or backtracks for ever."""
    try:
        with _patience(f"{argument}: {regex!r} takes too long to match, so it may never end; write it simpler"):
            pattern = re.compile(regex)
            match = pattern.search if part else pattern.fullmatch
            return {path for path in paths if match(path)}
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{argument}: {regex!r} is no regular expression: {error}") from None


@contextmanager
def _patience(message: str) -> Iterator[None]:
    """A block of pure Python that is given up, with a UserError, after some seconds; in other threads it is not."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(number: int, frame: Any):
        raise UserError(message)

    before = signal.signal(signal.SIGVTALRM, give_up)  # a regex that backtracks looks for signals
    signal.setitimer(signal.ITIMER_VIRTUAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def chosen(argument: str, choice: str | Callable | Any, choices: Mapping[str, Any]) -> Any:
    """What `choice` names in `choices`; what is no name comes back as it is. An unknown name is a UserError."""
    if not isinstance(choice, str):
        return choice
    if choice not in choices:
        listed = f"use one of {', '.join(choices)}{nearest(choice, choices)}"
        raise UserError(f"{argument} = {choice!r} is unknown; {listed}")
    return choices[choice]
