"""A whole run of BERT on eight devices is the run on one: every layout, under Auto and Explicit axes."""

import jax
import numpy as np
import pytest
from test_processes import numbers
from test_resume import end_state

from jaxprune.cli import main
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("axes", "fsdp"), [("auto", 4), ("explicit", 4)])
def test_any_layout_gives_the_same_run(tiny, pretrained, tmp_path, axes, fsdp):
    argv = ["pretrain", str(tiny.root / "pretrain.yaml"), "--workdir", str(tmp_path / "run")]
    assert main([*argv, "--mesh.axes", axes, "--mesh.fsdp", str(fsdp)]) == 0
    np.testing.assert_allclose(numbers(tmp_path / "run"), numbers(pretrained), rtol=2e-4)
    (_, state, data), (_, expected, expected_data) = end_state(tmp_path / "run"), end_state(pretrained)
    assert data == expected_data
    jax.tree.map(np.testing.assert_array_equal, state.masks, expected.masks)
    kept = [[line["kept"] for line in read_records(place / "prunes.jsonl")] for place in (tmp_path / "run", pretrained)]
    assert kept[0] == kept[1]
