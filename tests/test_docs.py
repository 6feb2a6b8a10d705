"""What the pages in docs/ say is what is there."""

import argparse
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import yaml
from workflow import ROOT

from jaxprune.cli import main
from jaxprune.config import COMMANDS
from jaxprune.config.load import validate

DOCS = ROOT / "docs"


def test_the_page_of_all_keys_is_made_from_the_models():
    """Else: python docs/configuration.py > docs/configuration.md."""
    made = subprocess.run([sys.executable, DOCS / "configuration.py"], capture_output=True, text=True, check=True)
    assert made.stdout == (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_configs_in_docs_are_configs(page):
    """Every YAML block that names its command."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        content = yaml.safe_load(block)
        if "command" in content:
            validate(COMMANDS[content["command"]], content, page.name)


CALLS = {
    "prepare": "prepare.prepare_data",
    "pretrain": "pretrain.pretrain",
    "finetune": "finetune.finetune",
    "study": "study.study",
    "prune": "prune_folder.prune_folder",
    "export": "export_model.export_model",
    "compact": "compact.compact",
    "predict": "predict.predict",
    "plan": "slice_plan.plan_slice",
    "report": "run_report.report",
    "inspect": "inspect.inspect_checkpoint",
    "diff": "inspect.diff_checkpoints",
    "check": "check.check",
    "doctor": "doctor.doctor",
    "demo": "demo.demo",
}
PAGES = [ROOT / "README.md", *DOCS.glob("*.md"), *ROOT.glob("results/*/*.md"), *ROOT.glob("configs/*/*.yaml")]


def command_lines() -> list[tuple[str, str]]:
    """(page, line) of every command that a page or a config's head shows, but for shell variables and placeholders."""
    lines = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(rf"^[# ]*(jaxprune +(?:{'|'.join(CALLS)}) .*)$", text, re.MULTILINE):
            words = re.split(r" #| \| | && |;| \[", line)[0].replace("USD_PER_CHIP_HOUR", "1.2").replace("i/n", "1/2")
            if not re.search(r"[$`]|[A-Z]{4}|\bmy\.yaml", re.sub("MINILM|FOLDER", "x", words)):
                lines.append((str(page.relative_to(ROOT)), words))
    return lines


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_on_pages_are_commands(page, line, monkeypatch):
    """With the config that they name and every key and flag of theirs; what they then do is replaced."""
    name, *argv = shlex.split(line)[1:]
    done = []
    monkeypatch.setattr(f"jaxprune.experiments.{CALLS[name]}", lambda *_, **__: done.append(name))
    monkeypatch.chdir(ROOT)
    assert main([name, *argv]) == 0 and done == [name]


def benchmark_lines() -> list[tuple[str, str]]:
    """(page, line) of every benchmark that a page, or the head of one, runs."""
    lines = []
    for page in [*PAGES, *ROOT.glob("benchmarks/*.py")]:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"python (benchmarks/\w+\.py[^`\n{]*)[`\n]", text):
            lines.append((str(page.relative_to(ROOT)), re.sub(r"[][]|\.\.\.", " ", line).strip()))  # [optional ...]
    return lines


@pytest.mark.parametrize(("page", "line"), benchmark_lines())
def test_benchmarks_on_pages_take_their_words(page, line, monkeypatch):
    path, *argv = shlex.split(line)
    parse, parsed = argparse.ArgumentParser.parse_args, []

    def only_parse(*args):
        parsed.append(parse(*args))
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [path, *argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert end.value.code == 0 and parsed


@pytest.mark.slow
def test_benchmarks_run(tiny, pretrained):
    """Those that take a model or a corpus of any size, on a tiny one."""
    small = "--rounds 1 --layers 1 --width 64 --vocab 200 --batch 4 --length 16"
    prepare = tiny.prepare_yaml(tiny.root / "benchmark.yaml")
    for line, words in (
        (f"train_step.py {small}", "masked"),
        (f"prune.py {pretrained / 'hf'} --rounds 1", "warm"),
        (f"prepare.py {prepare} --megabytes 1 --processes 1", "0.1"),
        (f"dry_run.py --rounds 1 {tiny.pretrain_yaml(tiny.root / 'dry_run.yaml')}", "said / took"),
    ):
        path, *argv = line.split()
        command = [sys.executable, str(ROOT / "benchmarks" / path), *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=500)
        assert done.returncode == 0 and words in done.stdout, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_files_on_pages_are_there(page):
    """Paths from the repository's root, and links."""
    text = page.read_text()
    named = re.findall(r"`((?:jaxprune|configs|tests|benchmarks|tpu_scripts|docs|results)/[\w./-]+)`", text)
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if not link.startswith("mailto")]
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


IN_CI = {"jaxprune prune    my-encoder", "jaxprune prepare configs/study_quick"}
"""How the blocks of commands begin that tests/test_readme.py runs."""


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_commands_run_in_ci_or_say_what_they_need(page):
    """Each block by itself, or all of a page in its head."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = [
        block
        for block in blocks
        if re.search(r"^(jaxprune|pip|python|hf|gcloud|tpu_scripts/\S+) ", block, re.MULTILINE)
    ]
    if "commands on this page need" not in text.partition("\n## ")[0]:
        assert not [b for b in commands if not b.startswith(("# Needs ", *IN_CI))]


def test_every_promise_names_a_test_that_is_there():
    file, named = "", 0
    for other, test in re.findall(r"`(test_\w+)?::(test_\w+)`", (DOCS / "reliability.md").read_text()):
        file, named = other or file, named + 1
        assert f"\ndef {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"
    assert named > 30
