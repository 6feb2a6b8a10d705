"""A dry run's estimate of time, against the run."""

import re
import time

import pytest

from jaxprune.cli import main


@pytest.mark.slow
def test_a_run_takes_what_its_dry_run_said(tiny, tmp_path, capsys):
    """Within a factor of two: training, compiling and saving, where each is a good part of the whole."""
    argv = ["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml", steps=100, train={"save_every": 1000}))]
    assert main([*argv, "--dry-run"]) == 0
    said = capsys.readouterr().out
    estimate = float(re.search(r"time, estimated +(\d+) s on this machine", said)[1])
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    began = time.monotonic()
    assert main([*argv, "--workdir", str(tmp_path / "run")]) == 0
    took = time.monotonic() - began
    assert took / 2 <= estimate <= 2 * took, (estimate, took)
