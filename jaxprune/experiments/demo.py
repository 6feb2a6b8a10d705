"""The whole story in minutes on two CPU cores: prepare, pre-train, prune, recover, fine-tune, report."""

import logging
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxprune.config.commands import DemoConfig, FinetuneConfig, PretrainConfig
from jaxprune.config.load import to_yaml
from jaxprune.config.sections import ModelConfig, OptimizerConfig, TokenizerConfig
from jaxprune.data.mlm import PretrainData
from jaxprune.data.prepare import prepare
from jaxprune.experiments import task_run
from jaxprune.experiments.demo_tasks import own_tasks
from jaxprune.experiments.own_folder import check_own
from jaxprune.experiments.pretrain import PRETRAIN
from jaxprune.experiments.provenance import provenance
from jaxprune.experiments.pruning_plan import plan_of
from jaxprune.experiments.shelf import Shelf
from jaxprune.experiments.walk import walk
from jaxprune.experiments.weights import absolute, source_model, stored_config
from jaxprune.models import architecture_named
from jaxprune.reports.number_text import percent
from jaxprune.reports.runs_page import runs_page
from jaxprune.training.workdir import Workdir, read_records

log = logging.getLogger("jaxprune")

RECOVERY_FLOPS, TUNING_FLOPS = 3.2e12, 6.4e12
"""Arithmetic that pruning and fine-tuning a pre-trained model may take: a minute and a half, and three, on 2 cores."""
MIN_STEPS, MIN_EXAMPLES, EPOCHS, SENTENCE = 10, 64, 2, 32
"""At least so many steps and examples, however large the model; passes over them; tokens of a sentence, about."""


def demo(workdir: Path, cfg: DemoConfig | None = None, *, model: str = "") -> Path:
    """Run `cfg` (default: the embedded one) in `workdir`, or resume it there; returns the path of report.html.

    `model` tells the same story of a pre-trained model, a Hugging Face directory or hub name, in about the same time.
    """
    cfg, shelf = cfg or DemoConfig(), Shelf()
    if model:
        cfg = sized_for(cfg, absolute(model))
    timings: dict[str, float] = {}
    check_own(workdir)
    with Workdir(workdir) as directory:
        text = to_yaml(cfg)
        directory.check_same("config.yaml", text, lambda old, new: [] if old == new else ["the demo's settings"])
        data = directory / "data"
        with _timed(timings, "read documentation, pack examples"):
            prepare(cfg.prepare, data, architecture_named(cfg.prepare.architecture).special_tokens)
        start = cfg.model
        if not start:
            start = str(directory / "dense")
            with _timed(timings, "pre-train the dense model"):
                walk(PRETRAIN, _with_data(cfg.dense, data), directory / "dense", shelf)
        recoveries = {s: _recovery(cfg, data, start, s) for s in cfg.sparsities}
        with _timed(timings, "prune to each sparsity and recover"):
            results = {s: walk(PRETRAIN, run, directory / _name(s), shelf) for s, run in recoveries.items()}
            runs = [_run_record(directory / _name(s), s, result) for s, result in results.items() if result]
        with _timed(timings, "fine-tune each on two tasks"):
            scores = _finetune_all(cfg, directory, data, shelf)
        name = Path(cfg.model).name
        facts, _ = provenance(path.parent for path in sorted(directory.path.glob("*/run.json")))
        page = runs_page(
            runs,
            scores,
            out_dir=directory.path,
            title=f"What pruning does to {name or 'a small BERT'}",
            plan={s: plan_of(run.prune, run.steps, "steps") for s, run in recoveries.items()},
            facts=_facts(cfg, data, stored_config(directory / _name(cfg.sparsities[0])).model) | facts,
            timings=timings,
            commands=[
                "pip install jaxprune",
                f"jaxprune demo{f' --model {Path(cfg.model).name}' if cfg.model else ''}",
            ],
            config=text,
            notes=[
                _learned(runs, data, cfg.recover),
                "The text is documentation of the packages on this machine, so another machine gets other numbers.",
                "`package`: which package a sentence comes from.",
                "`word order`: whether the words of a sentence run forwards or backwards.",
            ],
        )
        directory.finish({"report": str(page), "seconds": timings})
    log.info("%s", _learned(runs, data, cfg.recover))
    log.info("open %s", page)
    return page


def sized_for(cfg: DemoConfig, model: str) -> DemoConfig:
    """`cfg` for a pre-trained model: as many steps and examples as its size leaves time for."""
    shape = source_model(model, "")
    record = architecture_named(shape.architecture)
    rows, length, seeds = 8, cfg.prepare.seq_len, len(cfg.finetune.seeds)
    sparsities = (0.0, 0.5, 0.9)
    of_row = record.train_flops(shape, seq_len=length, predictions=length // 6)
    steps = _between(MIN_STEPS, RECOVERY_FLOPS / (len(sparsities) * rows * of_row), cfg.recover.steps)
    of_example = record.train_flops(shape, seq_len=SENTENCE, predictions=0)
    passes = len(sparsities) * len(cfg.finetune.tasks) * seeds * EPOCHS
    examples = _between(MIN_EXAMPLES, TUNING_FLOPS / (passes * of_example), cfg.train_examples)
    rate = {"optimizer": OptimizerConfig(learning_rate=1e-4, warmup_steps=2)}
    prune = cfg.recover.prune.model_copy(update={"end": steps // 2, "every": max(1, steps // 10)})
    recover = {"steps": steps, "batch_size": rows, "prune": prune, **rate}  # its model has no dropout
    tuning = {"learning_rates": (1e-4,), "epochs": EPOCHS, "batch_size": 16}
    return cfg.model_copy(
        update={
            "model": model,
            "sparsities": sparsities,
            "prepare": cfg.prepare.model_copy(
                update={"architecture": shape.architecture, "tokenizer": TokenizerConfig(path=model)}
            ),
            "recover": cfg.recover.model_copy(update=recover),
            "finetune": cfg.finetune.model_copy(update=tuning),
            "train_examples": examples,
            "dev_examples": min(cfg.dev_examples, 2 * examples),
        }
    )


def _between(least: int, value: float, most: int) -> int:
    return int(min(max(least, value), most))


def _learned(runs: list[dict[str, Any]], data: Path, recover: PretrainConfig) -> str:
    """What the models know of the text, beside what is known without one: the commonest piece."""
    dev = PretrainData(str(data), recover.data, split="dev", batch_size=recover.batch_size, seed=recover.seed)
    counts: Counter[int] = Counter()
    for batch in dev.eval_batches(recover.train.eval_batches):
        counts.update(batch["masked_ids"][batch["masked_weights"] > 0].tolist())
    commonest = counts.most_common(1)[0][1] / counts.total()
    shares = ", ".join(f"{percent(round(run['mlm_accuracy'], 3))} at {percent(run['target'])}" for run in runs)
    return (
        f"Of the masked pieces of held-out text the models fill in rightly: {shares}. "
        f"Always answering the commonest piece gives {percent(round(commonest, 3))}."
    )


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


def _recovery(cfg: DemoConfig, data: Path, start: str, sparsity: float) -> PretrainConfig:
    run = _with_data(cfg.recover, data)
    prune = run.prune.model_copy(update={"sparsity": sparsity})
    return run.model_copy(update={"init_from": start, "prune": prune})


def _run_record(workdir: Path, target: float, result: dict[str, Any]) -> dict[str, Any]:
    metrics, prunes = (read_records(workdir / name) for name in ("metrics.jsonl", "prunes.jsonl"))
    return {
        "target": target,
        "sparsity": result["sparsity"],
        "dev_loss": result["dev"]["loss"],
        "mlm_accuracy": result["dev"]["mlm_accuracy"],
        "curve": [{k: m[k] for k in ("step", "loss", "sparsity")} for m in metrics if "loss" in m],
        "leaf_sparsity": prunes[-1]["leaves"] if prunes else {},
        "seconds": result["seconds_this_session"],
    }


def _finetune_all(cfg: DemoConfig, directory: Workdir, data: Path, shelf: Shelf) -> list[dict[str, Any]]:
    examples = {task.name: splits for task, splits in own_tasks(cfg)}

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


def _facts(cfg: DemoConfig, data: Path, model: ModelConfig) -> dict[str, str]:
    run = cfg.recover
    prepared = PretrainData(str(data), run.data, split="train", batch_size=run.batch_size, seed=run.seed)
    dense = "" if cfg.model else f"{cfg.dense.steps:,} steps of {cfg.dense.batch_size} rows dense, then "
    size = f"{model.num_hidden_layers} layers x {model.hidden_size}, {model.vocab_size:,} word pieces"
    return {
        "model": f"{Path(cfg.model).name or model.architecture.upper()}, {size}",
        "text": f"{prepared.manifest['splits']['train']['tokens']:,} tokens of documentation, "
        f"{prepared.examples:,} examples of {prepared.seq_len}",
        "pre-training": f"{dense}{run.steps:,} steps of {run.batch_size} rows per sparsity",
        "pruning": f"magnitude, per matrix, cubic over {run.prune.end} steps, hard masks",
        "fine-tuning": f"{cfg.train_examples:,} examples, {cfg.finetune.epochs} epochs, seeds {[*cfg.finetune.seeds]}",
    }
