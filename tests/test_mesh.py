"""A whole run of BERT on eight devices is the run on one: split params, under Auto and Explicit axes."""

import json

import jax
import numpy as np
import pytest
from test_processes import numbers
from test_resume import end_state

from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_any_layout_gives_the_same_run(tiny, pretrained, tmp_path, monkeypatch, axes):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    argv = ["pretrain", tiny.root / "pretrain.yaml", "--workdir", tmp_path / "run"]
    done = tiny.run(*argv, "--mesh.axes", axes, "--mesh.fsdp", 4)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["mesh"] == {"member": 1, "data": 2, "fsdp": 4}
    np.testing.assert_allclose(numbers(tmp_path / "run"), numbers(pretrained), rtol=2e-4)
    (_, state, data), (_, expected, expected_data) = end_state(tmp_path / "run"), end_state(pretrained)
    assert data == expected_data
    jax.tree.map(np.testing.assert_array_equal, state.masks, expected.masks)
    kept = [[line["kept"] for line in read_records(place / "prunes.jsonl")] for place in (tmp_path / "run", pretrained)]
    assert kept[0] == kept[1]
