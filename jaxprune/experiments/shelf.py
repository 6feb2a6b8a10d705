"""What the runs of one process share: compiled steps, encoded data, weights to start from."""

from collections.abc import Callable, Hashable
from typing import Any


class Shelf:
    """Values that are made once, by kind and key."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Hashable], Any] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], Any], *, single: bool = False) -> Any:
        """The value of that kind and key, made if it is not there; a `single` kind holds its newest value alone."""
        if (kind, key) not in self._values:
            if single:
                self._values = {name: value for name, value in self._values.items() if name[0] != kind}
            self._values[kind, key] = make()
        return self._values[kind, key]
