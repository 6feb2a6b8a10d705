"""Tokenizers that would take time or memory beyond all bounds, refused: the files may come from anywhere."""

import base64
import json
from typing import Any

import tokenizers

from jaxprune.errors import UserError

MAX_BYTES = 1 << 26
"""Of a tokenizer's file; those of encoders have up to 2^24."""
_GROWTH = 64.0  # characters made of one, at most
_ADDED = 1000  # characters or tokens beside a text, at most
_WORD = 1000  # characters of a word that WordPiece looks at: its time grows with their cube
_GAPS, _SPARE = 4, 10_000


def check_bounds(tokenizer: tokenizers.Tokenizer, where: str) -> None:
    """UserError where ids have wide gaps, or a few characters become very many or take very long."""
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    model, largest = tokenizer.model, max(ids, default=0)
    prefix = getattr(model, "continuing_subword_prefix", "") or ""
    word = getattr(model, "max_input_chars_per_word", 0)
    problems = {
        f"its largest id is {largest:,} for {len(ids):,} tokens": largest > _GAPS * len(ids) + _SPARE,
        f"continuing_subword_prefix has {len(prefix):,} characters": len(prefix) > _ADDED,
        f"max_input_chars_per_word is {word:,}": word > _WORD,
        "its post-processor adds very many tokens": tokenizer.num_special_tokens_to_add(True) > _ADDED,
        "its normalizer makes a few characters very many": _growth(_state(tokenizer.normalizer)) > _GROWTH,
    }
    if wrong := [problem for problem, holds in problems.items() if holds]:
        raise UserError(f"tokenizer {where}: {wrong[0]}; no encoder's tokenizer is like that, use another")


def _state(normalizer: Any) -> dict[str, Any]:
    """A part of tokenizer.json."""
    return json.loads(normalizer.__getstate__()) if normalizer is not None else {}


def _growth(state: dict[str, Any]) -> float:
    """Characters that a normalizer makes of one, at most, but for what Unicode's own rules do."""
    kind = state.get("type")
    if kind == "Sequence":
        grown = 1.0
        for part in state["normalizers"]:
            grown *= _growth(part)
        return grown
    if kind == "Replace":
        made, pattern = len(state["content"]), state["pattern"].get("String")
        return max(1.0, made / len(pattern)) if pattern else max(1, made + (made > 1))  # a regex may match nothing
    if kind == "Prepend":
        return 1.0 if len(state["prepend"]) <= _GROWTH else float("inf")
    if kind == "Precompiled":
        table = base64.b64decode(state["precompiled_charsmap"] or "")
        strings = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
        return max(1.0, max(map(len, strings)) / 4)  # bytes; U+FDFA alone becomes 33
    return 1.0
