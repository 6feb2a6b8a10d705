"""GLUE examples: a hub dataset or the TSV files of a `glue_data/` folder, as N texts and labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.data.examples import Examples
from jaxprune.data.task_files import lines_of
from jaxprune.data.tasks import Task, scaled, score, task
from jaxprune.errors import UserError


def load(name: str, glue: str, split: str, revision: str = "") -> Examples:
    """Examples of task `name` from a hub dataset or from a local folder in the layout of the official `glue_data/`.

    `split` is `train` or `dev`, for MNLI also `dev_mismatched` (its `dev` is the matched set). `revision` pins a commit
    of the hub dataset. Raises one-line UserErrors that name the file, the row (1 = first line of the file; on the hub
    0 = first example), the value and the remedy.
    """
    row = task(name)
    splits = {own: (files, hub_split) for own, files, hub_split in row.splits}
    if split not in splits:
        why = "; GLUE publishes no test labels" if split.startswith("test") else ""
        raise UserError(f"{name} has no split {split!r}{why}. Use one of {', '.join(splits)}")
    files, hub_split = splits[split]
    folder = Path(glue).expanduser()
    if folder.is_dir():
        if revision:
            raise UserError(f"revision = {revision!r} pins a hub dataset, but glue = {glue!r} is a folder: remove one")
        return _from_folder(row, folder, split, files)
    if glue.startswith((".", "/", "~")) or "\\" in glue or glue.count("/") > 1:
        raise UserError(
            f"glue = {glue!r}: no such folder. Give a folder that holds {row.folder or row.name}/, or a hub dataset"
        )
    return _from_hub(row, glue, hub_split, revision)


def _from_folder(row: Task, folder: Path, split: str, files: tuple[str, ...]) -> Examples:
    directory = folder / (row.folder or row.name)
    if not directory.is_dir():
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "nothing"
        raise UserError(f"{directory}: no such folder. glue = {str(folder)!r} holds {names}; add {directory.name}/")
    path = next((directory / name for name in files if (directory / name).is_file()), None)
    if path is not None:
        return _read(row, path)
    raw = directory / "msr_paraphrase_train.txt"
    if row.name == "MRPC" and raw.is_file():
        return _read(row, raw, keep=_mrpc_split(directory / "dev_ids.tsv", split))
    raise UserError(f"{directory / files[0]}: no such file. The {split} split of {row.name} is read from it")


def _mrpc_split(path: Path, split: str) -> Callable[[dict[str, str]], bool]:
    """GLUE cuts its dev set out of the original training file by a published list of pairs of sentence ids."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. It lists which pairs of msr_paraphrase_train.txt form GLUE's dev split")
    pairs = {tuple(line.split("\t")[:2]) for line in lines_of(path)}
    return lambda cells: ((cells["#1 ID"], cells["#2 ID"]) in pairs) == (split == "dev")


def _read(row: Task, path: Path, keep: Callable[[dict[str, str]], bool] | None = None) -> Examples:
    """A tab-separated file without quoting (a `"` is a plain character)."""
    lines = lines_of(path)
    header = list(row.header) or (lines[0].split("\t") if lines else [])
    begin = 0 if row.header else 1
    if len(lines) <= begin:
        raise UserError(f"{path}: empty, {len(lines)} rows. Download the {row.name} file again")
    for column in (*row.text, row.label):
        if column not in header:
            raise UserError(f"{path}, row 1: no column {column!r}; it has {', '.join(header)}. Name the columns so")
    texts: tuple[list[str], ...] = tuple([] for _ in row.text)
    labels: list[float] = []
    skipped = 0
    for number, line in enumerate(lines[begin:], begin + 1):
        values = line.split("\t")
        if len(values) < len(header) and row.skip_short_rows:
            skipped += 1
            continue
        if len(values) < len(header) or any(values[len(header) :]):
            raise UserError(
                f"{path}, row {number}: {len(values)} tab-separated columns, expected {len(header)}: {line[:60]!r}. "
                "Repair or remove the row"
            )
        cells = dict(zip(header, values))
        if keep is not None and not keep(cells):
            continue
        labels.append(_label(row, cells[row.label], f"{path}, row {number}", row.coded))
        for column, out in zip(row.text, texts):
            out.append(cells[column])
    if not labels:
        raise UserError(f"{path}: no usable rows ({skipped} too short). Download the {row.name} file again")
    return _examples(row, str(path), texts, labels, skipped)


def _examples(row: Task, source: str, texts: Sequence[list[str]], labels: list[float], skipped: int = 0) -> Examples:
    values = scaled(row, np.array(labels)) if row.regression else np.array(labels, np.int32)
    return Examples(row, source, texts[0], texts[1] if len(texts) > 1 else None, values, skipped)


def _label(row: Task, value: Any, where: str, coded: bool) -> float:
    """A class number or a score, checked. Raises UserError for anything outside the task's set: -1, NaN, a typo."""
    if row.regression:
        return score(row, value, where)
    allowed = [str(i) for i in range(len(row.labels))] if coded else list(row.labels)
    if str(value) in allowed:
        return allowed.index(str(value))
    meaning = ", ".join(f"{a} ({n})" for a, n in zip(allowed, row.labels)) if coded else ", ".join(allowed)
    why = " (-1 marks a test set without labels)" if str(value) == "-1" else ""
    raise UserError(f"{where}: label {value!r}{why} is not one of {meaning}. Repair or remove the row")


def _from_hub(row: Task, glue: str, split: str, revision: str) -> Examples:
    import datasets

    source = f"{glue}/{row.hub}/{split}" + (f"@{revision}" if revision else "")
    try:
        data = datasets.load_dataset(glue, row.hub, split=split, revision=revision or None)
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise UserError(
            f"glue = {glue!r} is no local folder, and the hub gave no {source}: {reason[0]}. "
            "Check the name, the revision and the network, or give the folder of a glue_data/ download"
        ) from error
    if not isinstance(data, datasets.Dataset):
        raise UserError(f"{source}: the hub gave a {type(data).__name__}, expected one split")
    columns = (*(row.hub_text or row.text), "label")
    if missing := [c for c in columns if c not in data.column_names]:
        raise UserError(f"{source}: no column {missing[0]!r}; it has {', '.join(data.column_names)}. Use nyu-mll/glue")
    names = getattr(data.features["label"], "names", None)
    if not row.regression and names is not None and tuple(names) != row.labels:
        raise UserError(f"{source}: classes are {', '.join(names)}, expected {', '.join(row.labels)} in this order")
    cells = data.select_columns(list(columns)).to_dict()
    assert isinstance(cells, dict)
    if not cells["label"]:
        raise UserError(f"{source}: empty, 0 rows. Use nyu-mll/glue")
    labels = [_label(row, value, f"{source}, row {i}", True) for i, value in enumerate(cells["label"])]
    texts = [cells[column] for column in columns[:-1]]
    for column, values in zip(columns, texts):
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(f"{source}, row {i}: column {column!r} holds {value!r}, expected a text")
    return _examples(row, source, texts, labels)
