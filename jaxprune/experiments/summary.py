"""What a finished run says on its last lines: what came out, how good it is, where it lies, what comes next."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune.experiments.weights import kept_model
from jaxprune.progress import duration

log = logging.getLogger("jaxprune")

CONSTANT = (
    "gives every example of the dev set the same answer, so it has learned nothing; "
    "try another learning rate, more epochs or more examples"
)
_SHARES = {"mlm_accuracy": "of the masked words right", "nsp_accuracy": "of the next sentences right"}


def say_pretrained(workdir: Path, result: Mapping[str, Any]) -> None:
    """The last lines of a pre-training run."""
    here = shlex.quote(str(workdir))
    log.info("%s: finished, %s steps, %s", workdir, f"{result['steps']:,}", duration(result["seconds_this_session"]))
    log.info("  sparsity  %.4f of the prunable weights", result["sparsity"])
    log.info("  dev set   %s", dev_words(result["dev"]))
    if (model := kept_model(workdir)) is not None:
        log.info("  model     %s, its masks beside it; transformers opens it", model)
    log.info("  next      jaxprune finetune CONFIG.yaml --workdir DIR --init-from %s", here)
    _say_report(workdir)


def say_finetuned(workdir: Path, records: Sequence[Mapping[str, Any]], kept: bool) -> None:
    """The last lines of a grid of fine-tuning runs; one that learned nothing is named."""
    here = shlex.quote(str(workdir))
    seconds = sum(record["seconds_this_session"] for record in records)
    log.info("%s: finished, %d runs, %s", workdir, len(records), duration(seconds))
    for record in records:
        if record.get("best"):
            grid = [other for other in records if other["task"] == record["task"]]
            which = f"the best of {len(grid)}: " if len(grid) > 1 else ""
            words = (record["task"], score_words(record), which, *_cell(record))
            log.info("  %-9s %s (%slearning rate %g, seed %d)", *words)
    for record in records:
        if record.get("constant_predictions"):
            log.warning("%s, learning rate %g, seed %d: %s", record["task"], *_cell(record), CONSTANT)
    if kept:
        tasks = {record["task"] for record in records}
        for folder in [workdir / "best"] if len(tasks) == 1 else [workdir / "best" / task for task in sorted(tasks)]:
            log.info("  model     %s", folder / "hf")
        model = here if len(tasks) == 1 else f"{here}/best/TASK/hf"
        log.info("  next      jaxprune predict %s FILE.csv --out labelled.csv", model)
    _say_report(workdir)


def dev_words(dev: Mapping[str, float]) -> str:
    """`loss 5.712 nats, 20.0 % of the masked words right, 68.9 % of the next sentences right`."""
    shares = [f"{100 * dev[name]:.1f} % {words}" for name, words in _SHARES.items() if name in dev]
    return ", ".join([f"loss {dev['loss']:.3f} nats", *shares])


def score_words(record: Mapping[str, Any]) -> str:
    """`accuracy 0.873, the commonest class alone 0.510`."""
    words = f"{record['metric']} {record['score']:.3f}"
    majority = record.get("majority_accuracy") if record["metric"] == "accuracy" else None
    return words if majority is None else f"{words}, the commonest class alone {majority:.3f}"


def _cell(record: Mapping[str, Any]) -> tuple[float, int]:
    return record["learning_rate"], record["seed"]


def _say_report(workdir: Path) -> None:
    here = shlex.quote(str(workdir))
    log.info("  to read   jaxprune report %s (a page, and metrics.csv), or tensorboard --logdir %s", here, here)
