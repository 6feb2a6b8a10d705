"""A tokenizer with fewer pieces: those that a corpus uses, and what it takes to encode every other text."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from jaxprune.data.tokenizer import Vocabulary
from jaxprune.data.tokenizer_folder import SETTINGS, to_json
from jaxprune.errors import UserError

_WHOLE = "tokenizer.json"


def used_ids(vocabulary: Vocabulary, chunks: Iterable[list[str]]) -> set[int]:
    """The ids that texts, given in chunks, are encoded to."""
    return {number for texts in chunks for ids in vocabulary.encode(texts) for number in ids}


def kept_ids(vocabulary: Vocabulary, used: Collection[int]) -> list[int]:
    """The ids that stay, in order: those `used`, special and added tokens, and the model's smallest pieces.

    A text that is encoded by these alone is so by the tokenizer that `cut` makes of them: WordPiece takes the longest
    piece, which is the longest of fewer too; of BPE every merge stays that makes a kept piece; of Unigram the best way
    stays the best, as the worst piece, which sets the price of unknown characters, stays. Any other text falls to
    smaller pieces: single characters all stay. UserError for another kind of model.
    """
    model, where = _json(vocabulary)["model"], vocabulary.tokenizer
    ids, kind = _ids(model), model["type"]
    kept = {*used, *vocabulary.special.values(), *where.get_added_tokens_decoder()}
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        kept |= {number for piece, number in ids.items() if len(piece) - len(prefix) * piece.startswith(prefix) == 1}
    elif kind == "Unigram":
        worst = min(score for _, score in model["vocab"])
        kept |= {i for i, (piece, score) in enumerate(model["vocab"]) if len(piece) == 1 or score == worst}
        kept |= {model["unk_id"]} - {None}
    elif kind == "BPE" and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        kept |= {number for piece, number in ids.items() if len(piece) == 1}
        merges = {pair: rank for rank, pair in enumerate(_merges(model))}
        names = {number: piece for piece, number in ids.items()}
        kept |= {ids[part] for number in kept & names.keys() for part in _parts(names[number], merges)}
    else:
        raise UserError(
            f"--vocabulary: a tokenizer of {kind} pieces cannot be cut; WordPiece, byte BPE and Unigram can"
        )
    if isinstance(unk := model.get("unk_token"), str):
        kept |= {ids[unk]}
    return sorted(number for number in kept if number < vocabulary.size)


def cut(vocabulary: Vocabulary, kept: Sequence[int]) -> dict[str, bytes]:
    """The files of the tokenizer with the `kept` ids alone, numbered anew in this order; other files as they were.

    A sentencepiece model, which tokenizer.json stands for, is left out.
    """
    new = {old: number for number, old in enumerate(kept)}
    files = {name: content for name, content in vocabulary.files.items() if not name.endswith(".model")}
    whole = json.loads(files[_WHOLE]) if _WHOLE in files else _json(vocabulary)
    model = whole["model"]
    ids = _ids(model)
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[old] for piece, old in ids.items() if old in new}
    else:
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        model["unk_id"] = new.get(model["unk_id"])
    if "merges" in model:
        held = _ids(model)
        pairs = [pair for pair in _merges(model) if {*pair, "".join(pair)} <= held.keys()]
        texts = any(isinstance(pair, str) for pair in model["merges"])
        model["merges"] = [" ".join(pair) if texts else [*pair] for pair in pairs]
        if "merges.txt" in files:
            files["merges.txt"] = "".join(["#version: 0.2\n", *(f"{a} {b}\n" for a, b in pairs)]).encode()
    whole["added_tokens"] = [token | {"id": new[token["id"]]} for token in whole["added_tokens"]]
    whole["post_processor"] = _renumbered(whole["post_processor"], new)
    if whole.get("padding"):
        whole["padding"]["pad_id"] = new.get(whole["padding"]["pad_id"], 0)
    files[_WHOLE] = json.dumps(whole, indent=2, ensure_ascii=False).encode()
    if "vocab.txt" in files:
        lines = (f"{vocabulary.pieces[old]}\n" for old in kept if old <= max(ids.values()))  # a line is an id
        files["vocab.txt"] = "".join(lines).encode()
    if "vocab.json" in files:
        files["vocab.json"] = json.dumps(model["vocab"], ensure_ascii=False).encode()
    if "added_tokens.json" in files:
        added = json.loads(files["added_tokens.json"])
        files["added_tokens.json"] = to_json({token: new[old] for token, old in added.items()})
    settings = json.loads(files.get(SETTINGS, b"{}"))
    if tokens := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in tokens.items()}
        files[SETTINGS] = to_json(settings)
    return files


def _json(vocabulary: Vocabulary) -> dict[str, Any]:
    return json.loads(vocabulary.tokenizer.to_str())


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    pieces = model["vocab"]
    return pieces if isinstance(pieces, dict) else {piece: number for number, (piece, _) in enumerate(pieces)}


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs that BPE merges, the first ones first; old files have them as text."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(a, b) for a, b in pairs]


def _parts(piece: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """The pieces that BPE makes on its way from characters to a piece."""
    parts, made = [*piece], set()
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        made.add(parts[i])
    return made


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with new ids: `["[SEP]", 102]` and `"ids": [102]`."""
    if isinstance(value, dict):
        return {
            key: [new[old] for old in inner] if key == "ids" else _renumbered(inner, new)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return [value[0], new[value[1]]]
        return [_renumbered(inner, new) for inner in value]
    return value
