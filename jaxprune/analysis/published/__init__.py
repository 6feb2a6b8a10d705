"""The numbers of Gordon, Duh & Andrews 2020 as data; README.md names the source of each file."""

import csv
from pathlib import Path
from typing import Any

TABLES = ("table1", "table2", "table3", "movement_epochs", "movement_matrices", "memory")


def published(name: str) -> list[dict[str, Any]]:
    """The rows of one of `TABLES`: numbers as floats, fractions in [0, 1], losses in nats, empty cells as None."""
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text
