"""The built-in corpus: prose that is there on any machine, clean, labelled, without repeats."""

from collections import Counter

import pytest

from jaxprune.config import SourceConfig
from jaxprune.data.builtin import Document, _texts, harvest, prose, sentences
from jaxprune.data.corpus import documents

SAMPLE = '''# A comment with "quotes"
"""The module reads lobsters from the sea and writes them to a file in order.

Usage::

    >>> catch("blue")
    3

See `the guide <https://example.org>`_ for what :class:`~sea.Lobster` does when it is caught by hand.

==========  ==========
column one  column two
==========  ==========

name : str
    The name of the lobster.
"""
TABLE = """
This text is data and not a docstring, so it must not be found by the reader at all.
"""

def catch(colour):
    r\'\'\'Return the number of lobsters of a colour that were caught on this day.\'\'\'
    return 3  # """not a docstring"""
'''


def test_prose_of_a_module(tmp_path):
    path = tmp_path / "sea.py"
    path.write_text(SAMPLE)
    assert prose(_texts(path)) == [
        "The module reads lobsters from the sea and writes them to a file in order.",
        "See the guide for what sea.Lobster does when it is caught by hand.",
        "Return the number of lobsters of a colour that were caught on this day.",
    ]


def test_code_fences_and_bad_files(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "Some words about this small package of ours.\n\n```\nThe code is here and it is long\n\nand goes on.\n```\n"
    )
    assert prose(_texts(path)) == ["Some words about this small package of ours."]
    path.write_bytes(b"\xff\xfe bad")
    assert list(_texts(path)) == []
    assert list(_texts(tmp_path / "missing.py")) == []


@pytest.fixture(scope="module")
def found():
    return harvest(300_000)


def test_harvest_is_mixed_and_reproducible(found):
    size = sum(len(d.text) for d in found)
    packages = Counter(d.package for d in found)
    assert 300_000 <= size < 500_000
    assert len(packages) >= 40 and packages.most_common(1)[0][1] < 0.2 * len(found)
    assert harvest(300_000) == found
    assert {"asyncio", "numpy", "jax"} <= packages.keys()


def test_harvest_has_no_repeats_and_no_code(found):
    lines = [line.lower() for d in found for line in d.text.split("\n")]
    assert len(lines) == len(set(lines))
    assert not any(">>>" in line or "```" in line or "://" in line for line in lines)
    words = Counter(word for line in lines for word in line.split())
    assert words["the"] > 0.03 * sum(words.values())  # English: 4 to 7 %


def test_sentences_keep_their_package():
    text = "The array holds numbers of one type.\nShort one. It also knows its own shape and size."
    assert sentences([Document(text, "numpy")]) == [
        ("The array holds numbers of one type.", "numpy"),
        ("It also knows its own shape and size.", "numpy"),
    ]


def test_builtin_source(found):
    texts = list(documents(SourceConfig(kind="builtin", max_chars=300_000)))
    assert texts[:3] == [d.text for d in found[:3]]
