"""What the pages in docs/ say is what is there."""

import re
import subprocess
import sys

import pytest
import yaml
from workflow import ROOT

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


def test_every_promise_names_a_test_that_is_there():
    file, named = "", 0
    for other, test in re.findall(r"`(test_\w+)?::(test_\w+)`", (DOCS / "reliability.md").read_text()):
        file, named = other or file, named + 1
        assert f"\ndef {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"
    assert named > 30
