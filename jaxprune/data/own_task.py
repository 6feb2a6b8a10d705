"""A task as a config names it -> its training and dev examples: one of GLUE's, or files and columns of one's own."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.config.task import OwnTaskConfig, TaskEntry
from jaxprune.data.examples import Examples, take
from jaxprune.data.glue_examples import load
from jaxprune.data.metrics import check_metrics
from jaxprune.data.task_files import Table, read_dataset, read_table
from jaxprune.data.tasks import TASKS, Kind, Task, scaled, score
from jaxprune.errors import UserError

USUAL: dict[Kind, tuple[str, ...]] = {
    "single_label": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("spearman", "pearson"),
    "similarity": ("spearman", "pearson"),
}
"""Metrics of a task that names none."""


def read_task(entry: TaskEntry, glue: str, revision: str = "") -> tuple[Examples, Examples]:
    """Training and dev examples of a task, in file order, with its record `Examples.task`.

    `glue` and `revision` say where GLUE lies. Raises one-line UserErrors that name the file, the line or row, the value
    and the remedy.
    """
    if isinstance(entry, str):
        return load(entry, glue, "train", revision), load(entry, glue, "dev", revision)
    if entry.name in TASKS:
        raise UserError(f"tasks: name = {entry.name!r} is GLUE's own; choose another")
    tables = [_table(entry, source) for source in (entry.train, entry.dev) if source]
    texts = [_texts(table, entry.texts) for table in tables]
    labels = [_READ[entry.kind](entry, table) for table in tables]
    task = _task(entry, tables[0], labels[0])
    train, *dev = (
        Examples(task, table.source, *both, _coded(entry, task, table, values))
        for table, both, values in zip(tables, texts, labels, strict=True)
    )
    if not dev:
        train, *dev = _divided(entry, train)
    _check_classes(task, train)
    if entry.dev and entry.kind == "single_label" and not entry.labels:
        _check_same_classes(task, dev[0])
    return train, dev[0]


def read_texts(path: str, text: str | tuple[str, ...]) -> tuple[list[str], list[str] | None]:
    """The texts of a file without labels: N, and N of the second column of a pair, else None. Errors as `read_task`."""
    columns = (text,) if isinstance(text, str) else text
    return _texts(read_table(path, columns), columns)


def _table(entry: OwnTaskConfig, source: str) -> Table:
    label = (entry.label,) if isinstance(entry.label, str) else entry.label
    columns = [*dict.fromkeys((*entry.texts, *label))]
    if entry.dataset:
        return read_dataset(entry.dataset, entry.subset, source, entry.revision, columns)
    return read_table(source, columns)


def _texts(table: Table, columns: Sequence[str]) -> tuple[list[str], list[str] | None]:
    for column in columns:
        for i, value in enumerate(table.columns[column]):
            if value is None or (isinstance(value, str) and not value.strip()):
                raise UserError(f"{table.where(i)}: no text in column {column!r}. Fill it in, or remove the row")
            if not isinstance(value, str):
                raise UserError(f"{table.where(i)}: column {column!r} holds {str(value)[:40]}, expected a text")
    return table.columns[columns[0]], table.columns[columns[1]] if len(columns) > 1 else None


def _single(entry: OwnTaskConfig, table: Table) -> list[str]:
    """The class names (N,)."""
    assert isinstance(entry.label, str)
    return [_name(value, table, i, entry.label) for i, value in enumerate(table.columns[entry.label])]


def _name(value: Any, table: Table, i: int, column: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers in which one was missing
    if value is None or value != value or not str(value).strip():
        raise UserError(f"{table.where(i)}: no label in column {column!r}. Fill it in, or remove the row")
    if not isinstance(value, str | int):
        raise UserError(f"{table.where(i)}: label {str(value)[:40]} in column {column!r} is no name of a class")
    return str(value).strip()


def _several(entry: OwnTaskConfig, table: Table) -> list[list[str]]:
    """The names of each text's labels (N,), none of them allowed."""
    if not isinstance(entry.label, str):
        return [
            [column for column in entry.label if _flag(table.columns[column][i], table, i, column)]
            for i in range(len(table.numbers))
        ]
    names = []
    for i, value in enumerate(table.columns[entry.label]):
        if entry.separator and isinstance(value, str):
            value = [part.strip() for part in value.split(entry.separator) if part.strip()]
        if not isinstance(value, list):
            remedy = (
                "Set separator, or name several columns of 0 and 1" if isinstance(value, str) else "Write [] for none"
            )
            raise UserError(f"{table.where(i)}: {value!r} in column {entry.label!r} is no list of labels. {remedy}")
        names.append([_name(one, table, i, entry.label) for one in value])
    return names


def _flag(value: Any, table: Table, i: int, column: str) -> bool:
    if value not in (0, 1, "0", "1"):
        raise UserError(f"{table.where(i)}: {value!r} in column {column!r} is neither 0 nor 1")
    return value in (1, "1")


def _scores(entry: OwnTaskConfig, table: Table) -> list[Any]:
    assert isinstance(entry.label, str)
    return table.columns[entry.label]


_READ: dict[Kind, Callable[[OwnTaskConfig, Table], list[Any]]] = {
    "single_label": _single,
    "multi_label": _several,
    "regression": _scores,
    "similarity": _scores,
}


def _task(entry: OwnTaskConfig, train: Table, labels: list[Any]) -> Task:
    scores = entry.kind in ("regression", "similarity")
    task = Task(
        name=entry.name,
        hub="",
        text=entry.texts,
        label=entry.label if isinstance(entry.label, str) else ", ".join(entry.label),
        labels=() if scores else entry.labels or _names(entry, train, labels),
        metrics=entry.metrics or USUAL[entry.kind],
        kind=entry.kind,
        bounds=entry.bounds or ((0.0, 1.0) if entry.kind == "similarity" else None),
    )
    check_metrics(task)
    if isinstance(entry.class_weights, str):
        return dataclasses.replace(task, class_weights=entry.class_weights)
    for name in entry.class_weights:
        if name not in task.labels:
            raise UserError(f"class_weights: {name!r} is none of the labels {_listed(task.labels)}")
    return dataclasses.replace(task, class_weights=tuple(entry.class_weights.get(name, 1.0) for name in task.labels))


def _names(entry: OwnTaskConfig, train: Table, labels: list[Any]) -> tuple[str, ...]:
    """The labels in the training examples, sorted, as numbers if all are."""
    if not isinstance(entry.label, str):
        return entry.label
    names = {*labels} if entry.kind == "single_label" else {name for several in labels for name in several}
    if entry.kind == "single_label" and len(names) < 2:
        raise UserError(f"{train.source}: every label in column {entry.label!r} is {labels[0]!r}; nothing to learn")
    if entry.kind == "single_label" and len(names) > 10 and 2 * len(names) > len(labels):
        raise UserError(
            f"{train.source}: column {entry.label!r} has {len(names)} different labels in {len(labels)} examples. Name "
            "the column of the classes, or set kind: regression for scores"
        )
    if not names:
        raise UserError(f"{train.source}: no example has a label in column {entry.label!r}; nothing to learn")
    number = all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if number else 0, name)))


def _coded(entry: OwnTaskConfig, task: Task, table: Table, labels: list[Any]) -> np.ndarray:
    """Labels as `Examples.labels`."""
    if task.regression:
        return scaled(task, np.array([score(task, value, table.where(i)) for i, value in enumerate(labels)]))
    number = {name: i for i, name in enumerate(task.labels)}
    several = [[one] for one in labels] if task.kind == "single_label" else labels
    for i, names in enumerate(several):
        for name in names:
            if name not in number:
                near = difflib.get_close_matches(name, task.labels, 1)
                why = "is not one of labels" if entry.labels else "has no training example; those with some are"
                hint = f" Did you mean {near[0]!r}?" if near else " Repair or remove the row"
                raise UserError(f"{table.where(i)}: label {name!r} {why} {_listed(task.labels)}.{hint}")
    if task.kind == "single_label":
        return np.array([number[name] for name in labels], np.int32)
    coded = np.zeros((len(labels), len(number)), np.float32)
    for i, names in enumerate(labels):
        coded[i, [number[name] for name in names]] = 1
    return coded


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _divided(entry: OwnTaskConfig, examples: Examples) -> tuple[Examples, Examples]:
    """Training and dev part by `dev_fraction`, each in file order."""
    from sklearn.model_selection import train_test_split

    classes = examples.labels if entry.kind == "single_label" else None
    if classes is not None and 1 in (counts := np.bincount(classes)):
        name = examples.task.labels[int(np.argmax(counts == 1))]
        why = f"class {name!r} has one example, which cannot be in both parts. Give dev examples, or add some of it"
        raise UserError(f"{examples.source}: dev_fraction = {entry.dev_fraction:g}: {why}")
    try:
        parts = train_test_split(
            np.arange(len(examples)), test_size=entry.dev_fraction, random_state=entry.split_seed, stratify=classes
        )
    except ValueError as error:  # a class of one example, a dev set smaller than the number of classes
        raise UserError(
            f"{examples.source}: dev_fraction = {entry.dev_fraction:g}: {error}. Give dev examples"
        ) from None
    train, dev = (take(examples, np.sort(rows)) for rows in parts)
    return train, dev


def _check_same_classes(task: Task, dev: Examples) -> None:
    """UserError for a class that is trained and that dev lacks; a config that names the `labels` means it so."""
    lacking = [
        name for name, count in zip(task.labels, np.bincount(dev.labels, minlength=len(task.labels))) if not count
    ]
    if lacking:
        why = "add some, or name the classes in labels to score without it"
        raise UserError(f"{dev.source}: no dev example of class {lacking[0]!r}, which is trained; {why}")


def _check_classes(task: Task, train: Examples) -> None:
    if task.regression:
        return
    counts = np.bincount(train.labels, minlength=len(task.labels)) if train.labels.ndim == 1 else train.labels.sum(0)
    if not counts.all():
        name = task.labels[int(np.argmin(counts))]
        raise UserError(f"{train.source}: no training example of class {name!r}. Take it out of labels, or add some")
