"""The page for people with a loop of their own: every block runs as it stands."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
NEEDS = {"Equinox": "equinox", "Haiku": "haiku"}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.splitlines()[0])
def test_the_block_runs(section):
    title = section.splitlines()[0]
    if title in NEEDS and importlib.util.find_spec(NEEDS[title]) is None:
        pytest.skip(f"{NEEDS[title]} is not installed (the `test` extra)")
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    with jax.numpy_rank_promotion("allow"):  # the reader's code, not ours
        exec(compile(blocks[0], title, "exec"), {})
