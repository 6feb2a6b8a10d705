"""A dry run's estimate of time, against the run."""

import re
import time

import pytest

from jaxprune.cli import main


@pytest.mark.slow
def test_a_run_takes_what_its_dry_run_said(tiny, tmp_path, capsys, monkeypatch):
    """Within a factor of two: training, compiling and saving, where each is a good part of the whole. Both are seconds
    of this process on a core: what else the machine does in between is no fault of either."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    argv = ["pretrain", str(tiny.pretrain_yaml(tmp_path / "c.yaml", steps=100, train={"save_every": 1000}))]
    assert main([*argv, "--dry-run"]) == 0
    said = capsys.readouterr().out
    estimate = float(re.search(r"time, estimated +(\d+) s on this machine", said)[1])
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    began = time.process_time()
    assert main([*argv, "--workdir", str(tmp_path / "run")]) == 0
    took = time.process_time() - began
    assert took / 2 <= estimate <= 2 * took, (estimate, took)
