"""README's way from a folder and a table to a model in `pipeline`: its commands run as they stand."""

import json
import random
import re
import shlex
import shutil
import subprocess
import sys

import conftest
import pandas
import pytest
from own_tasks import WORDS, write_encoder
from safetensors.numpy import load_file
from workflow import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.parity]

TITLE = "From your folder and your CSV to a pruned model"
TOPICS = {"invoice": "billing", "crashes": "bug", "hello": "other"}


def commands(page: str) -> list[str]:
    """The lines of the first block of a section, or of the page that has this title."""
    text = (ROOT / page).read_text()
    (block,) = re.findall(rf"^#+ {TITLE}.*?^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block.splitlines()


def write_tickets(folder) -> None:
    """`tickets.csv` with texts whose words decide their topic, as configs/own_task/tickets.yaml reads it."""
    rng = random.Random(0)
    rows = [(" ".join([*rng.choices(WORDS[-4:], k=rng.randint(1, 6)), word]), TOPICS[word]) for word in [*TOPICS] * 20]
    pandas.DataFrame(rows, columns=["body", "topic"]).to_csv(folder / "tickets.csv", index=False)
    pandas.DataFrame({"body": ["invoice please", "now it crashes"], "id": [7, 8]}).to_csv(
        folder / "new_tickets.csv", index=False
    )


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
    write_tickets(tmp_path)
    python = {"jaxprune": [sys.executable, "-m", "jaxprune"], "python": [sys.executable]}
    for line in lines:
        name, *words = shlex.split(line)
        done = subprocess.run(
            [*python[name], *words], cwd=tmp_path, env=tiny.environment(), capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (answer,) = json.loads(done.stdout.replace("'", '"'))
    assert answer["label"] in TOPICS.values() and 0 < answer["score"] < 1
    table = pandas.read_csv(tmp_path / "labelled.csv")
    assert [*table.columns] == ["body", "label", "score"] and {*table["label"]} <= {*TOPICS.values()}
    pruned, shipped = (load_file(tmp_path / path / "model.safetensors") for path in ("pruned", "runs/tickets/best/hf"))
    name = next(name for name in shipped if name.endswith("layer.0.attention.self.query.weight"))
    before = pruned.get(name, pruned.get(name.removeprefix("bert.")))
    assert before is not None and ((before == 0) == (shipped[name] == 0)).all()
    assert (before == 0).mean() == pytest.approx(0.7, abs=0.001)
