"""Label the texts of a file with a fine-tuned model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas

from jaxprune.config.commands import FinetuneConfig
from jaxprune.config.encoder_part import encoder_part
from jaxprune.data import tokenizer
from jaxprune.data.examples import Examples
from jaxprune.data.own_task import read_texts
from jaxprune.data.row_packing import shape_for
from jaxprune.data.task_batches import outputs
from jaxprune.data.tasks import HEADS, TASKS, Kind, Task
from jaxprune.errors import UserError
from jaxprune.experiments.task_run import encoded_for
from jaxprune.experiments.weights import check_pairs, check_vocabulary, model_folder, stored_config
from jaxprune.files import write_atomically
from jaxprune.models import architecture_named
from jaxprune.models.config_json import PROBLEM_TYPES, label_names, read_json
from jaxprune.models.folder import read_folder
from jaxprune.models.hub import find_folder
from jaxprune.models.other_files import CONFIG
from jaxprune.models.sentence_folder import Vectors, vectors_in

SUFFIXES = (".csv", ".jsonl")
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "single_label": ("label", "score"),
    "multi_label": ("labels",),
    "regression": ("score",),
    "similarity": ("score",),
}
"""The columns that are written beside the texts."""


def predict(
    model: str, file: str, out: Path | None, *, text: Sequence[str] = (), max_len: int = 0, revision: str = ""
) -> pandas.DataFrame:
    """Write (or, without `out`, print as CSV) a row per text: the text, and the `label` with its probability `score`.

    `labels` with several per text; of a regression or similarity model the `score` alone. `model`: a fine-tuned
    workdir, of which the best run counts, or a Hugging Face directory; `text`: the columns that hold the texts
    (default: those that the run was trained on, else `text`). UserError for a model without a head for a task, and for
    a text column whose name the answers take.
    """
    if out and out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: name a file that ends in {' or '.join(SUFFIXES)}")
    if out and out.exists() and Path(file).exists() and out.samefile(file):
        raise UserError(f"--out {out}: is the file that is read; name another")
    folder = find_folder(model_folder(model), revision or None)
    task = _task(folder, tuple(text) or _columns(model))
    if taken := [name for name in task.text if name in ANSWERS[task.kind]]:
        raise UserError(f"{file}: column {taken[0]!r} is also what the answer is called; rename it there (--text NAME)")
    if text and len(text) < len(_columns(model)):
        raise UserError(f"--text {' '.join(text)}: {model} was trained on pairs of texts; name two columns")
    first, second = read_texts(file, task.text)
    if task.kind == "similarity" and second is None:
        raise UserError(f"--text {' '.join(task.text)}: {folder} compares two texts; name two columns")
    read = read_folder(folder, head=task.head, num_labels=len(task.labels))  # pyright: ignore[reportArgumentType]
    if read.fresh:
        raise UserError(f"{folder}: has no {read.fresh[0]}, so nothing for a task; fine-tune it first")
    record = architecture_named(read.model.architecture)
    vocabulary = tokenizer.load(str(encoder_part(folder)), special=record.special_tokens)
    check_vocabulary(vocabulary, read.model, f"tokenizer {folder}", str(folder))
    examples = Examples(task, file, first, second, np.zeros(len(first), np.float32))
    most = record.max_tokens(read.model)
    if max_len > most:
        raise UserError(f"--max-len {max_len} is above the {most} positions of {folder}; lower it")
    vectors = vectors_in(folder) if task.kind == "similarity" else Vectors()
    if second is not None and task.kind != "similarity":
        check_pairs(read.model, str(folder))
    encoded = encoded_for(examples, vocabulary, max_len or min(most, vectors.max_tokens or most))
    built = record.build(
        read.model,
        head=task.head,  # pyright: ignore[reportArgumentType]
        num_labels=len(task.labels),
        pooling=vectors.pooling,
    )
    forward = jax.jit(lambda params, batch: built.apply(params, batch)["logits"])
    params = jax.device_put(read.params)
    logits = outputs(encoded, shape_for(int(encoded.lengths.max())), lambda batch: np.asarray(forward(params, batch)))
    answers = dict(zip(ANSWERS[task.kind], _answers(task, logits, out), strict=True))
    table = pandas.DataFrame(dict(zip(task.text, (first, second), strict=False)) | answers)
    _write(table, out)
    return table


def _columns(model: str) -> tuple[str, ...]:
    cfg = stored_config(model)
    if not isinstance(cfg, FinetuneConfig):
        return ("text",)
    entry = cfg.tasks[0]
    return TASKS[entry].text if isinstance(entry, str) else entry.texts


def _task(folder: Path, text: tuple[str, ...]) -> Task:
    """What config.json says of the model's task; it has no metrics."""
    config = read_json(encoder_part(folder) / CONFIG)
    classes = str((config.get("architectures") or [""])[0])
    labels = label_names(config)
    kinds: dict[Any, Kind] = {word: kind for kind, head in HEADS.items() if (word := PROBLEM_TYPES.get(head))}
    kind = kinds.get(config.get("problem_type"), "regression" if len(labels) == 1 else "single_label")
    if classes.endswith("Model"):
        kind = "similarity"
    elif not classes.endswith("ForSequenceClassification"):
        raise UserError(f"{folder}: is a {classes or 'model of no class'}, which has no task; fine-tune it first")
    names = () if kind in ("regression", "similarity") else labels
    return Task(folder.name, "", text, "", names, (), kind=kind)


def _answers(task: Task, logits: np.ndarray, out: Path | None) -> tuple[Any, ...]:
    if task.regression:
        return (logits.astype(float),)
    if task.kind == "multi_label":
        chosen = [[name for name, value in zip(task.labels, row, strict=True) if value > 0] for row in logits]
        return (chosen if out and out.suffix == ".jsonl" else ["|".join(names) for names in chosen],)
    from scipy.special import softmax

    best = logits.argmax(1)
    return [task.labels[i] for i in best], softmax(logits, axis=1).max(1)


def _write(table: pandas.DataFrame, out: Path | None) -> None:
    if out is None:
        print(table.to_csv(index=False), end="")
    elif out.suffix == ".csv":
        write_atomically(out, table.to_csv(index=False))
    else:
        write_atomically(out, table.to_json(orient="records", lines=True, force_ascii=False) or "")
    if out:
        print(f"wrote {len(table):,} rows to {out}")
