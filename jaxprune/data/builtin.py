"""English text that every machine already has: documentation of the standard library and the installed packages.

It is read at run time: docstrings of what Python can import here (no module is run), descriptions in the packages'
metadata, and documentation files beside the code. Nothing of it is stored in this repository.
"""

import functools
import hashlib
import inspect
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxprune.data.sentences import sentences as split_sentences
from jaxprune.errors import UserError


@dataclass(frozen=True)
class Document:
    """Prose of one module or one documentation file."""

    text: str
    package: str
    """Import name of the package it documents, such as `asyncio` or `numpy`."""


_MIN_CHARS = 200  # a shorter document says too little
_MAX_FILE = 2 << 20  # bytes; larger sources are tables
_SKIP = {"__pycache__", "site-packages", "dist-packages", "pip", "idlelib", "lib2to3"}
_SKIP |= {"test", "tests", "testing", "vendor", "_vendor", "vendored", "node_modules"}
_SUFFIXES = {".py", ".rst", ".md", ".txt"}


@functools.lru_cache(1)
def harvest(max_chars: int) -> tuple[Document, ...]:
    """Documents in a fixed order for a given environment, no paragraph twice; about `max_chars` characters (0: all).

    Packages take turns, the largest first, so that a small share is mixed too. Errors: UserError if there is none.
    """
    largest_first = sorted(_packages().items(), key=lambda item: (-len(item[1]), item[0]))
    queues = {name: iter(files) for name, files in largest_first}
    seen: set[bytes] = set()
    documents: list[Document] = []
    total = 0
    while queues:
        for name, files in list(queues.items()):
            text = ""
            for path in files:
                text = _fresh(prose(_texts(path)), seen)
                if len(text) >= _MIN_CHARS:
                    break
            else:
                del queues[name]
                continue
            documents.append(Document(text, name))
            total += len(text)
            if 0 < max_chars <= total:
                return tuple(documents)
    if not documents:
        raise UserError("source builtin: no documentation is installed here; use kind: local or hub")
    return tuple(documents)


def sentences(documents: Iterable[Document]) -> list[tuple[str, str]]:
    """(sentence, package) of all documents, in order; only whole sentences of at least five words."""
    return [
        (sentence, document.package)
        for document in documents
        for sentence in split_sentences(document.text)
        if sentence[-1] in ".!?" and sentence[0].isupper() and len(_WORD.findall(sentence)) >= 5
    ]


def _packages() -> dict[str, list[Path]]:
    """Files that may hold documentation, by package: the standard library's modules and what is installed beside it."""
    packages: dict[str, list[Path]] = {}
    for root in dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, names in os.walk(root):
            top = next(iter(Path(folder).relative_to(root).parts), "")
            subfolders[:] = sorted(name for name in subfolders if not _skipped(name))
            metadata = top.endswith(".dist-info")  # only its METADATA is prose; the rest is licences and lists
            for name in sorted(names):
                path = Path(folder, name)
                if name == "METADATA" if metadata else path.suffix in _SUFFIXES and not _skipped(name):
                    package = top.split("-")[0] or path.stem
                    packages.setdefault(package.lower(), []).append(path)
    return packages


def _skipped(name: str) -> bool:
    name = name.lower()
    return name in _SKIP or name.startswith(("test_", "_test", ".")) or "license" in name


_STRING = re.compile(
    r"""#[^\n]*|(?P<quote>\"{3}|'{3})(?P<body>.*?)(?P=quote)|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'""", re.DOTALL
)
_OPENS = re.compile(r":\s*[rRuU]?$")


def _texts(path: Path) -> Iterator[str]:
    """Raw documentation in a file: docstrings in order, or the whole of a documentation file."""
    try:
        if path.stat().st_size > _MAX_FILE:
            return
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if path.suffix != ".py":
        yield text.partition("\n\n")[2] if path.name == "METADATA" else text
        return
    if '"""' not in text and "'''" not in text:
        return
    # Strings are found by their quotes alone: ast.parse takes ten times as long.
    top = True
    for match in _STRING.finditer(text):
        if match["quote"] and (top or _OPENS.search(text, max(0, match.start() - 200), match.start())):
            yield inspect.cleandoc(match["body"])
        top = top and match[0].startswith("#")


_MARKUP = [
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # Markdown links
    (re.compile(r":[\w:+.-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),  # roles such as :func:`open`
    (re.compile(r"`([^`<]*?)\s*<[^>]*>`_*"), r"\1"),  # reST links
    (re.compile(r"(`+|\*\*)(.+?)\1_*"), r"\2"),
    (re.compile(r"<[^>]{1,200}>"), " "),  # HTML
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"\[\w+\]_|\|\w+\|"), ""),
]
_CODE = re.compile(r"[=(){}\[\]<>|\\_/#@$%^~*+]")
_WORD = re.compile(r"[A-Za-z]{2,}")


def prose(texts: Iterable[str]) -> list[str]:
    """Paragraphs of running English in documentation: no code, doctests, tables, parameter lists or bare links."""
    paragraphs: list[str] = []
    for text in texts:
        fenced = False
        for block in re.split(r"\n\s*\n", text.replace("\t", "    ")):
            lines = block.split("\n")
            fences = sum(line.lstrip().startswith("```") for line in lines)
            skip, fenced = fenced or fences, fenced ^ bool(fences % 2)
            if skip or not _is_prose(lines):
                continue
            joined = " ".join(" ".join(lines).split())
            for pattern, replacement in _MARKUP:
                joined = pattern.sub(replacement, joined)
            joined = " ".join(joined.split()).lstrip("*-.# ")
            if _is_english(joined):
                paragraphs.append(joined)
    return paragraphs


def _is_prose(lines: list[str]) -> bool:
    """Whether a block looks like a paragraph by its layout."""
    full = [line for line in lines if line.strip()]
    if not full:
        return False
    indents = {len(line) - len(line.lstrip()) for line in full}
    first = full[0].strip()
    if len(indents) > 1 or first.startswith((">>>", "...", ".. ", ":", "|", "+-", "$ ", "@", "import ", "from ")):
        return False
    if re.match(r"[\w*, ]+ ?: ?\S", first) and len(first) < 60:  # name : type
        return False
    return not any(re.fullmatch(r"[\s=\-~^*+#|\"'`_.:]{3,}", line) or ">>>" in line for line in full)


def _is_english(text: str) -> bool:
    """Whether a paragraph is mostly words, starts like a sentence and ends like one."""
    words = _WORD.findall(text)
    return (
        len(words) >= 6
        and text[0].isupper()
        and text[-1] in ".!?"
        and sum(map(len, words)) >= 0.7 * len(text)
        and len(_CODE.findall(text)) <= 0.03 * len(text)
        and sum(word.islower() for word in words) >= 0.6 * len(words)
    )


def _fresh(paragraphs: list[str], seen: set[bytes]) -> str:
    """The paragraphs not seen before, one a line."""
    fresh = []
    for paragraph in paragraphs:
        mark = hashlib.blake2b(paragraph.lower().encode(), digest_size=8).digest()
        if mark not in seen:
            seen.add(mark)
            fresh.append(paragraph)
    return "\n".join(fresh)
