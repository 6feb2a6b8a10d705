"""Sentences of a document."""

import re

import sentencex

# A line of this many characters without a full stop at its end is taken as hard-wrapped: its sentence goes on.
_WRAPPED = range(50, 101)
_STOP = re.compile(r"[.!?:;…][\"'”’)\]]*$")


def sentences(text: str) -> list[str]:
    """Sentences of an English text in order, white space collapsed, none empty (segmenter: sentencex).

    A line break ends a sentence after a heading, a list item or a whole paragraph; it does not in hard-wrapped prose.
    """
    if "\n" in text:
        lines = [line.strip() for line in text.splitlines()]
        text = "".join(
            line + (" " if len(line) in _WRAPPED and not _STOP.search(line) else "\n\n") for line in lines if line
        )
    segments = sentencex.segment("en", text)  # pyright: ignore[reportAttributeAccessIssue]
    return [sentence for segment in segments if (sentence := " ".join(segment.split()))]
