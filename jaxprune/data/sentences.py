"""Sentences of a document."""

import re
from collections.abc import Iterator
from itertools import accumulate

import sentencex

# A line of this many characters without a full stop at its end is taken as hard-wrapped: its sentence goes on.
_WRAPPED = range(50, 101)
_STOP = re.compile(r"[.!?:;…][\"'”’)\]]*$")
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")  # such as U+00A0: after a letter and before a full stop sentencex panics
_BREAK = "\n\n"

WINDOW = 4096
"""Characters handed to sentencex at once, at most."""
_DENSE = WINDOW // 4  # and where no white space parts words, where its time grows with their square
_LOOKAHEAD = 64  # it looks at this much of what follows a full stop, and less
_PAIRS = ("“”", "«»", "「」", "《》", "()", "（）", "[]")


def sentences(text: str) -> list[str]:
    """Sentences of an English text in order, white space collapsed, none empty (segmenter: sentencex).

    A line break ends a sentence after a heading, a list item or a whole paragraph; it does not in hard-wrapped prose.
    """
    if "\n" in text:
        lines = [line.strip() for line in text.splitlines()]
        text = "".join(
            line + (" " if len(line) in _WRAPPED and not _STOP.search(line) else _BREAK) for line in lines if line
        )
    text = _WIDE_SPACE.sub(" ", text)
    return [sentence for segment in _segments(text) if (sentence := " ".join(segment.split()))]


def _segments(text: str) -> Iterator[str]:
    """What sentencex makes of `text`, a window at a time: in linear time, with nothing left out.

    A window ends at a paragraph break, else at its last sentence end outside of quotations and brackets. Only where
    there is none, or a quote is missing, may a paragraph longer than a window be parted otherwise than as a whole.
    """
    begin = 0
    held: list[str] = []  # pieces of a sentence that began in windows before
    while begin < len(text):
        window = text[begin : begin + (WINDOW if " " in text[begin : begin + _DENSE // 4] else _DENSE)]
        whole = begin + len(window) == len(text)
        if not whole and (end := window.rfind(_BREAK)) >= 0:
            window, whole = window[: end + len(_BREAK)], True
        segments, cut = _segment(window), len(window)
        if not whole:
            ends = [end for end in accumulate(map(len, segments)) if end <= len(window) - _LOOKAHEAD]
            cut = next((end for end in reversed(ends) if _is_balanced(window[:end])), ends[-1] if ends else 0)
            if not cut:
                cut = window.rfind(" ", 0, -_LOOKAHEAD) + 1 or len(window) - _LOOKAHEAD
                held.append(window[:cut])
                begin += cut
                continue
            # A lone " or ' after the cut has sentencex part the quotations before it too.
            segments = segments[: ends.index(cut) + 1] if _is_balanced(window) else _segment(window[:cut])
        yield "".join((*held, *segments[:1]))
        yield from segments[1:]
        held = []
        begin += cut


def _segment(window: str) -> list[str]:
    return sentencex.segment("en", window)  # pyright: ignore[reportAttributeAccessIssue]


def _is_balanced(text: str) -> bool:
    """Whether all quotations and brackets of `text` are closed."""
    straight = not any(text.count(quote) % 2 for quote in "\"'")
    return straight and all(text.count(opening) == text.count(closing) for opening, closing in _PAIRS)
