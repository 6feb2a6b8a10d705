"""A tiny config planned for a real TPU slice by the real TPU compiler, through the command."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import warnings

import pytest

from jaxprune.cli import main
from jaxprune.plan.tables import show

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"),
]

CONFIG = """\
command: pretrain
steps: 40
batch_size: 128
model: {dtype: bfloat16, vocab_size: 4096, hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
  intermediate_size: 512, max_position_embeddings: 128}
prune: {sparsity: 0.5, end: 20, every: 10}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "tiny.yaml"
    path.write_text(CONFIG)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["plan", str(path), "--topology", "v5e-4", "--json", "--price", "2", "--seq-len", "64"]) == 0
    return json.loads(out.getvalue())


def test_a_plan_that_is_ended_says_nothing(report, tmp_path):
    """The compiler brings a handler that prints a stack trace."""
    with (tmp_path / "err").open("w") as errors:
        with warnings.catch_warnings(action="ignore"):  # of threads that the child is without: it only ends
            child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM and (tmp_path / "err").read_text() == ""


def test_it_fits_and_the_parts_add_up(report):
    memory = dict(report["memory"])
    hbm, total = memory.pop("hbm"), memory.pop("total")
    assert report["fits"] and 0 < total == sum(memory.values()) < hbm == 16 * 2**30
    weights = report["model"]["params"]
    assert memory["params"] == 4 * weights
    assert memory["teacher"] == 0 and report["teacher"] is None
    assert memory["optimizer"] == 8 * weights + 4 * 4  # two moments, three counts and the peak rate
    assert memory["masks"] == 4096 * 128 + 2 * (4 * 128**2 + 2 * 128 * 512) + 128**2
    # The vocabulary's logits at 10 masked positions of the chip's 32 examples, in bfloat16 at least.
    assert memory["layout_padding"] >= 0 and memory["activations_and_temporaries"] > 0


def test_the_compiler_multiplies_what_the_model_needs(report):
    assert 0.95 < report["flops"]["ratio"] <= 1.05 and not report["flops"]["waste"]


def test_gradients_cross_once_and_nothing_else_does(report):
    rows = report["train"]["collectives"]
    assert {row["kind"] for row in rows} == {"all-reduce"}
    weights, table = report["model"]["params"], 4096 * 128
    # bf16, as the products make them; the tied table float32, once; the few float32 vectors are below 2 % here
    expected = 2 * (weights - table) + 4 * table
    assert sum(row["bytes"] for row in rows) == pytest.approx(expected, rel=0.05)


def test_a_chip_that_holds_all_weights_prunes_alone(report):
    prune = report["prune"]
    assert prune["sorts"] == [] and prune["collectives"] == []


def test_times_follow_from_the_figures(report):
    train, where, recipe = report["train"], report["slice"], report["recipe"]
    assert train["bounds"]["compute"] == pytest.approx(report["flops"]["mxu"] / 197e12)
    assert train["bounds"]["hbm"] == pytest.approx(train["hbm_bytes"] / 819e9)
    assert train["bounds"]["ici"] == pytest.approx(train["collectives"][0]["wire_bytes"] / 100e9)  # 2 of 4 links
    assert train["seconds"] == train["bounds"][train["bound_by"]] == max(train["bounds"].values())
    assert where["chips"] == 4 and recipe["prunes"] == 3
    assert recipe["hours"] == pytest.approx((40 * train["seconds"] + 3 * report["prune"]["seconds"]) / 3600)
    assert recipe["cost_usd"] == pytest.approx(recipe["hours"] * 4 * 2)
    # Every weight, mask and moment is read and every weight and moment written, at the least.
    assert train["hbm_bytes"] > (4 + 1 + 8 + 12) * report["model"]["params"] * 0.9


def test_the_tables_say_the_same(report, capsys):
    show(report)
    out = capsys.readouterr().out
    for words in ("v5e:2x2", "--seq-len", "all-reduce", "prune step", f"bound by {report['train']['bound_by']}"):
        assert words in out


def test_what_does_not_fit_is_said_with_the_compilers_words(tmp_path, capsys):
    path = tmp_path / "large.yaml"
    large = CONFIG.replace("batch_size: 128", "batch_size: 4096").replace("vocab_size: 4096", "vocab_size: 500000")
    path.write_text(large)
    assert main(["plan", str(path), "--topology", "v5e:2x2", "--seq-len", "64", "--json"]) == 0
    refused = json.loads(capsys.readouterr().out)
    assert not refused["fits"] and "memory" not in refused
    assert "Ran out of memory" in refused["refused"] and "available HBM (15.75G)" in refused["refused"]
