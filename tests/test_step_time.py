"""A dry run's estimate of time: what it counts against what a run did, and its parts against its sum.

How near it comes to a run's seconds is benchmarks/dry_run.py."""

import re

import pytest

from jaxprune.cli import main
from jaxprune.config import PretrainConfig
from jaxprune.config.load import read_yaml, validate
from jaxprune.experiments import step_time
from jaxprune.experiments.pretrain import PRETRAIN
from jaxprune.experiments.shelf import Shelf
from jaxprune.training.workdir import read_records


def test_it_counts_the_steps_prunes_evaluations_and_checkpoints_that_a_run_makes(tiny, pretrained):
    """Where a step takes a second and a checkpoint a thousand."""
    cfg = validate(PretrainConfig, read_yaml(tiny.root / "pretrain.yaml"), "x")
    opened = PRETRAIN.open(PRETRAIN.resolve(cfg, None), Shelf())
    speed = step_time.StepTime(1 / step_time.step_flops(opened), 0.0, 1000.0)
    seconds = step_time.run_seconds(opened, speed) - step_time.AROUND
    steps = sum("loss" in record for record in read_records(pretrained / "metrics.jsonl"))
    prunes = len(read_records(pretrained / "prunes.jsonl"))
    evaluated = 2  # eval_batches, once at the end
    saved = 12 // 2 + 2  # save_every; the model and the records at the end
    assert (steps, prunes) == (12, 3)
    assert seconds == pytest.approx(1000 * saved + steps + prunes + step_time.EVALUATED * evaluated)
    train = cfg.train.model_copy(update={"eval_batches": 10_000, "eval_every": 5})  # the dev set ends before
    opened = PRETRAIN.open(PRETRAIN.resolve(cfg.model_copy(update={"train": train}), None), Shelf())
    assert step_time.evaluated_batches(opened) == 3 * len([*opened.data.dev()])


@pytest.mark.slow
def test_the_parts_that_are_shown_make_up_the_sum(tiny, tmp_path, capsys):
    """A step that was measured here, times their number; compiling; what is around them."""
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", steps=400, train={"save_every": 1000})
    assert main(["pretrain", str(config), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    total, unit = re.search(r"time, estimated +(\d+) (s|min) on this machine", said).groups()
    step, compiling = map(float, re.search(r"a step ([\d.e-]+) s, measured; compiling (\d+) s", said).groups())
    parts = step_time.AROUND + step * (400 + 3 + 2 * step_time.EVALUATED) + compiling
    assert step > 0 and float(total) * {"s": 1, "min": 60}[unit] == pytest.approx(parts, rel=0.02, abs=1.5)
