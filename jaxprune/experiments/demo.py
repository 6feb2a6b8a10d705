"""The whole story in minutes on two CPU cores: prepare, pre-train, prune, recover, fine-tune, report."""

import logging
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.commands import DemoConfig, FinetuneConfig, PretrainConfig
from jaxprune.config.load import to_yaml
from jaxprune.data import builtin
from jaxprune.data.examples import Examples
from jaxprune.data.holdout import held_out, text_hash
from jaxprune.data.mlm import PretrainData
from jaxprune.data.prepare import prepare
from jaxprune.data.tasks import Task
from jaxprune.experiments import task_run
from jaxprune.experiments.pretrain import PRETRAIN
from jaxprune.experiments.provenance import provenance
from jaxprune.experiments.pruning_plan import plan_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import walk
from jaxprune.models import architecture_named
from jaxprune.reports.runs_page import runs_page
from jaxprune.training.workdir import Workdir, read_records

log = logging.getLogger("jaxprune")


def demo(workdir: Path, cfg: DemoConfig | None = None) -> Path:
    """Run `cfg` (default: the embedded one) in `workdir`, or resume it there; returns the path of report.html."""
    cfg, shelf = cfg or DemoConfig(), Shelf()
    timings: dict[str, float] = {}
    with Workdir(workdir) as directory:
        text = to_yaml(cfg)
        directory.check_same("config.yaml", text, lambda old, new: [] if old == new else ["the demo's settings"])
        data = directory / "data"
        with _timed(timings, "read documentation, train a vocabulary, pack examples"):
            prepare(cfg.prepare, data, architecture_named(cfg.prepare.architecture).special_tokens)
        with _timed(timings, "pre-train the dense model"):
            dense_cfg = _with_data(cfg.dense, data)
            walk(PRETRAIN, dense_cfg, directory / "dense", shelf)
        recoveries = {s: _recovery(cfg, data, directory / "dense", s) for s in cfg.sparsities}
        with _timed(timings, "prune to each sparsity and recover"):
            results = {s: walk(PRETRAIN, run, directory / _name(s), shelf) for s, run in recoveries.items()}
            runs = [_run_record(directory / _name(s), s, result) for s, result in results.items() if result]
        with _timed(timings, "fine-tune each on two tasks"):
            scores = _finetune_all(cfg, directory, data, shelf)
        facts, _ = provenance([directory / "dense", *(directory / _name(s) for s in cfg.sparsities)])
        page = runs_page(
            runs,
            scores,
            out_dir=directory.path,
            title="What pruning does to a small BERT",
            plan={s: plan_of(run.prune, run.steps, "steps") for s, run in recoveries.items()},
            facts=_facts(cfg, dense_cfg, data) | facts,
            timings=timings,
            commands=["pip install jaxprune", "jaxprune demo"],
            config=text,
            notes=[
                "The text is documentation of the packages on this machine, so another machine gets other numbers.",
                "`package`: which package a sentence comes from.",
                "`word order`: whether the words of a sentence run forwards or backwards.",
            ],
        )
        directory.finish({"report": str(page), "seconds": timings})
    log.info("open %s", page)
    return page


@contextmanager
def _timed(timings: dict[str, float], phase: str):
    log.info("%s ...", phase)
    began = time.monotonic()
    yield
    timings[phase] = time.monotonic() - began


def _name(sparsity: float) -> str:
    return f"sparsity-{sparsity:g}"


def _with_data(cfg: PretrainConfig, data: Path) -> PretrainConfig:
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"path": str(data)})})


def _recovery(cfg: DemoConfig, data: Path, dense: Path, sparsity: float) -> PretrainConfig:
    run = _with_data(cfg.recover, data)
    prune = run.prune.model_copy(update={"sparsity": sparsity})
    return run.model_copy(update={"init_from": str(dense), "prune": prune})


def _run_record(workdir: Path, target: float, result: dict[str, Any]) -> dict[str, Any]:
    metrics, prunes = (read_records(workdir / name) for name in ("metrics.jsonl", "prunes.jsonl"))
    return {
        "target": target,
        "sparsity": result["sparsity"],
        "dev_loss": result["dev"]["loss"],
        "dev_mlm_loss": result["dev"]["mlm"],
        "dev_nsp_loss": result["dev"]["nsp"],
        "mlm_accuracy": result["dev"]["mlm_accuracy"],
        "nsp_accuracy": result["dev"]["nsp_accuracy"],
        "curve": [{k: m[k] for k in ("step", "loss", "sparsity")} for m in metrics if "loss" in m],
        "leaf_sparsity": prunes[-1]["leaves"] if prunes else {},
        "seconds": result["seconds_this_session"],
    }


def _finetune_all(cfg: DemoConfig, directory: Workdir, data: Path, shelf: Shelf) -> list[dict[str, Any]]:
    examples = {task.name: splits for task, splits in _tasks(cfg)}

    def read(run: FinetuneConfig, name: Any) -> Any:
        del run
        return examples[name]

    command, scores = task_run.tuning(read), []
    rate = cfg.finetune.learning_rates[0]
    for sparsity in cfg.sparsities:
        source = {"init_from": str(directory / _name(sparsity)), "tokenizer": str(data / "tokenizer")}
        for task in examples:
            for seed in cfg.finetune.seeds:
                run = task_run.one_run(cfg.finetune.model_copy(update=source | {"train_loss": True}), task, rate, seed)
                folder = directory / f"finetune-{sparsity:g}" / task.replace(" ", "-") / f"seed{seed}"
                result = walk(command, run, folder, shelf)
                assert result is not None
                kept = {key: result[key] for key in ("task", "seed", "metric", "score", "train_loss")}
                scores.append({"target": sparsity, **kept, "majority": result["majority_accuracy"]})
    return scores


def _tasks(cfg: DemoConfig) -> list[tuple[Task, list[Examples]]]:
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


def _facts(cfg: DemoConfig, dense: PretrainConfig, data: Path) -> dict[str, str]:
    prepared = PretrainData(str(data), dense.data, split="train", batch_size=dense.batch_size, seed=dense.seed)
    model = dense.model
    tokens = (dense.steps * dense.batch_size + len(cfg.sparsities) * cfg.recover.steps * cfg.recover.batch_size) * (
        prepared.seq_len
    )
    return {
        "model": f"BERT, {model.num_hidden_layers} layers x {model.hidden_size}, {model.vocab_size:,} word pieces",
        "text": f"{prepared.manifest['splits']['train']['tokens']:,} tokens of documentation, "
        f"{prepared.examples:,} examples of {prepared.seq_len}",
        "pre-training": f"{dense.steps:,} steps dense, then {cfg.recover.steps:,} per sparsity; {tokens:,} tokens",
        "pruning": f"magnitude, per matrix, cubic over {cfg.recover.prune.end} steps, hard masks",
    }
