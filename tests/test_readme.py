"""README's way from a folder and a table to a model in `pipeline`: its commands run as they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import pandas
import pytest
from own_tasks import write_encoder
from safetensors.numpy import load_file
from workflow import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.parity]

TITLE = "From your folder and your CSV to a pruned model"
TOPICS = {"billing", "bug", "other"}


def commands(page: str, title: str = TITLE) -> list[str]:
    """The lines of the first block of a section, or of the page that has this title."""
    text = (ROOT / page).read_text()
    (block,) = re.findall(rf"^#+ {title}.*?^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block.splitlines()


def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command line prints in `folder`."""
    name, *words = shlex.split(line)
    argv = {"jaxprune": [sys.executable, "-m", "jaxprune"], "python": [sys.executable]}[name] + words
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_the_four_commands(tiny, tmp_path):
    """From the real encoder where it is installed, else from a tiny one."""
    pytest.importorskip("torch")
    lines = commands("README.md")
    assert lines == commands("docs/own_model.md") and len(lines) == 4
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    if conftest.MINILM:
        shutil.copytree(conftest.MINILM, tmp_path / "my-encoder")
    else:
        write_encoder(tmp_path / "my-encoder")
        with (tmp_path / "configs" / "own_task" / "tickets.yaml").open("a") as file:
            file.write("max_len: 40\n")  # the positions it has
    # Quickly compiled programs are slower, which shows in a model of this size.
    environment = tiny.environment() | ({"XLA_FLAGS": ""} if conftest.MINILM else {})
    for line in lines:
        out = run(line, tmp_path, environment)
    (answer,) = json.loads(out.replace("'", '"'))
    assert answer["label"] in TOPICS and 0 < answer["score"] < 1
    table = pandas.read_csv(tmp_path / "labelled.csv")
    assert [*table.columns] == ["body", "label", "score"] and {*table["label"]} <= TOPICS
    if conftest.MINILM:
        assert [*table["label"]] == ["billing", "bug", "other"]  # what the real one, at 70 %, has learned
    pruned, shipped = (load_file(tmp_path / path / "model.safetensors") for path in ("pruned", "runs/tickets/best/hf"))
    name = next(name for name in shipped if name.endswith("layer.0.attention.self.query.weight"))
    before = pruned.get(name, pruned.get(name.removeprefix("bert.")))
    assert before is not None and ((before == 0) == (shipped[name] == 0)).all()
    assert (before == 0).mean() == pytest.approx(0.7, abs=0.001)


def test_the_three_commands(tiny, tmp_path):
    """A whole study from nothing but the package and its configs."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    prepare, dry, study = commands("README.md", "A study in three commands")
    run(prepare, tmp_path, tiny.environment())
    assert "13 runs" in run(dry, tmp_path, tiny.environment()) and not (tmp_path / "runs" / "quick" / "study").exists()
    run(study, tmp_path, tiny.environment())
    runs = pandas.read_csv(tmp_path / "runs" / "quick" / "study" / "tables" / "runs.csv")
    assert len(runs) == 9 and {*runs["task"]} == {"tickets"} and {*runs["seed"]} == {0, 1, 2}
    means = runs.groupby(["condition", "target"])["score"].mean()
    assert means["pruned", 0.0] > means["pruned", 0.9] + 0.2  # it learned the topics, and pruning takes them
    assert (tmp_path / "runs" / "quick" / "study" / "report.html").stat().st_size > 10_000
