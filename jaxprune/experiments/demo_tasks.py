"""The demo's two tasks, made of the text that it pre-trains on: which package a sentence is of, and its word order."""

from collections import Counter
from typing import Any

import numpy as np

from jaxprune.config.commands import DemoConfig
from jaxprune.data import builtin
from jaxprune.data.examples import Examples
from jaxprune.data.holdout import held_out, text_hash
from jaxprune.data.tasks import Task


def own_tasks(cfg: DemoConfig) -> list[tuple[Task, list[Examples]]]:
    """Two tasks from the corpus itself; dev examples come from the documents that pre-training held out too."""
    documents = builtin.harvest(cfg.prepare.sources[0].max_chars)
    split = [[], []]
    for document in documents:
        split[held_out(text_hash(document.text), cfg.prepare.dev_fraction, cfg.prepare.seed)].append(document)
    # The dev documents are few: sentences for both tasks come from them alone.
    pools = [builtin.sentences(part) for part in split]
    return [_package_task(cfg, pools), _order_task(cfg, pools)]


def _package_task(cfg: DemoConfig, pools: list[list[tuple[str, str]]]) -> tuple[Task, list[Examples]]:
    counts = Counter(package for _, package in pools[0]) & Counter(package for _, package in pools[1])
    names = tuple(sorted(name for name, _ in counts.most_common(cfg.packages)))
    task = Task("package", "", ("sentence",), "package", names, ("accuracy",))
    splits = []
    for number, (pool, count) in enumerate(zip(pools, (cfg.train_examples, cfg.dev_examples), strict=True)):
        rows = _sample([row for row in pool if row[1] in names], count, number)
        labels = np.array([names.index(package) for _, package in rows], np.int32)
        splits.append(Examples(task, "builtin", [text for text, _ in rows], None, labels))
    return task, splits


def _order_task(cfg: DemoConfig, pools: list[list[tuple[str, str]]]) -> tuple[Task, list[Examples]]:
    task = Task("word order", "", ("sentence",), "intact", ("reversed", "intact"), ("accuracy",))
    splits = []
    for number, (pool, count) in enumerate(zip(pools, (cfg.train_examples, cfg.dev_examples), strict=True)):
        rng = np.random.Generator(np.random.Philox(key=number))
        rows = _sample(pool, count, 2 + number)
        labels = rng.integers(0, 2, len(rows)).astype(np.int32)
        texts = [text if label else _turn(text) for (text, _), label in zip(rows, labels, strict=True)]
        splits.append(Examples(task, "builtin", texts, None, labels))
    return task, splits


def _turn(text: str) -> str:
    """The sentence with its inner words in reverse order; its first and last word give nothing away."""
    first, *inner, last = text.split()
    return " ".join([first, *reversed(inner), last])


def _sample(rows: list[Any], count: int, seed: int) -> list[Any]:
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(rows))
    return [rows[i] for i in order[:count]]
