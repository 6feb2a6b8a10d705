"""`jaxprune report` on single runs: one page and one table, whatever the workdir; what is none is said in one line."""

import json
import re
import shutil

import pandas
import pytest

from jaxprune.cli import main
from jaxprune.training.workdir import read_records

pytestmark = pytest.mark.slow


def report(*argv, capsys):
    capsys.readouterr()
    code = main(["report", *map(str, argv)])
    return code, capsys.readouterr().err


def test_the_page_of_a_run(pretrained, tmp_path, capsys):
    run = shutil.copytree(pretrained, tmp_path / "run")
    assert report(run, capsys=capsys)[0] == 0
    page = " ".join(re.sub(r"<[^>]*>", " ", (run / "report.html").read_text()).split())
    result, start = (
        json.loads((run / "result.json").read_text()),
        json.loads((run / "run.json").read_text())["starts"][0],
    )
    assert f"Dev loss {result['dev']['loss']:.3f} nats with" in page and "after 12 steps." in page
    for caption in ("Training loss", "Sparsity of the prunable weights", "Learning rate", "Speed", "layer 0", "pooler"):
        assert caption in page
    for word in (f"jaxprune {start['jaxprune']}", start["date"][:10], start["commit"], "jaxprune pretrain"):
        assert word in page
    assert str(tmp_path) not in page.partition("The config used")[0]
    table = pandas.read_csv(run / "metrics.csv")
    losses = {line["step"]: line["loss"] for line in read_records(run / "metrics.jsonl") if "loss" in line}
    assert dict(table.dropna(subset="loss")[["step", "loss"]].itertuples(index=False)) == pytest.approx(losses)
    assert report(run, capsys=capsys)[0] == 0  # again, over its own page


def test_runs_side_by_side(pretrained, tmp_path, capsys):
    whole, stopped = (shutil.copytree(pretrained, tmp_path / name) for name in ("whole", "stopped"))
    (stopped / "result.json").unlink()
    assert report(whole, stopped, "--out", tmp_path / "both", capsys=capsys)[0] == 0
    page = (tmp_path / "both" / "report.html").read_text()
    assert "2 runs side by side, 1 of them finished." in page and "not finished" in page
    assert {*pandas.read_csv(tmp_path / "both" / "metrics.csv")["run"]} == {"whole", "stopped"}
    assert report(tmp_path, "--out", tmp_path / "below", capsys=capsys)[0] == 0  # a folder of runs
    assert "2 runs side by side" in (tmp_path / "below" / "report.html").read_text()


def test_what_is_no_run_is_one_line_and_nothing_is_written_over(pretrained, tmp_path, capsys):
    mine = shutil.copytree(pretrained, tmp_path / "mine")
    (mine / "report.html").write_text("mine")
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "metrics.csv").write_text("mine")
    shutil.copytree(pretrained, tmp_path / "study" / "runs" / "dense")
    (tmp_path / "study" / "config.yaml").write_text("command: study\n")
    cases = {
        (mine,): "report.html: is there already, and not of this command",
        (pretrained / "hf",): "is a model, not a workdir; `jaxprune inspect",
        (tmp_path / "nowhere",): "is not there; give the --workdir",
        (pretrained, "--out", tmp_path / "numbers"): "metrics.csv: is there already, and not of this command",
        (tmp_path / "study", "--out", tmp_path / "out"): "study: is a study, whose page is written into it; give it",
        (tmp_path / "study", pretrained, "--out", tmp_path / "out"): "study: is a study, whose page is written into it",
        (pretrained, mine): "2 workdirs: name the directory of their common page with --out DIR",
    }
    for argv, words in cases.items():
        code, error = report(*argv, capsys=capsys)
        assert code == 2 and words in error and error.count("\n") == 1, error
    assert (mine / "report.html").read_text() == (tmp_path / "numbers" / "metrics.csv").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_inspect_reads_every_workdir_or_names_the_model(pretrained, tmp_path, capsys):
    run = shutil.copytree(pretrained, tmp_path / "study" / "run")
    shutil.rmtree(run / "checkpoints")
    assert main(["inspect", str(run), "--json"]) == 0
    matrices = json.loads(capsys.readouterr().out)["matrices"]
    assert {row["path"]: row["sparsity"] for row in matrices} == pytest.approx(
        read_records(pretrained / "prunes.jsonl")[-1]["leaves"]
    )
    (tmp_path / "study" / "config.yaml").write_text("command: study\n")
    assert main(["inspect", str(tmp_path / "study")]) == 2
    assert f"holds several models; name one of {run / 'hf'}" in capsys.readouterr().err
