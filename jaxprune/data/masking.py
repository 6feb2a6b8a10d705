"""Dynamic masking: which tokens an example predicts, a pure function of (seed, epoch, example).

Shapes: B examples, L tokens, P predictions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxprune.config import DataConfig
from jaxprune.data.bits import below, mix, random_bits, uniform
from jaxprune.data.tokenizer import Vocabulary

_CHOICE, _REPLACE = 1, 2  # streams of random bits


@dataclass(frozen=True)
class Masking:
    """What masking needs to know of the vocabulary and the config."""

    prob: float
    max_predictions: int
    whole_word: bool
    mask_id: int
    is_special_V: np.ndarray
    """bool (V,): never masked and never a replacement."""
    continues_V: np.ndarray
    """bool (V,): pieces such as ##ing."""
    ordinary: np.ndarray
    """Ids a masked token may be replaced with: all but the special ones ([unused...] stay, as in BERT)."""


def masking(cfg: DataConfig, vocab: Vocabulary) -> Masking:
    """Masking over a vocabulary. Errors: ValueError for `whole_word` with a tokenizer that is not WordPiece."""
    if cfg.whole_word and not vocab.prefix:
        raise ValueError("data.whole_word = true needs a WordPiece tokenizer, whose pieces tell where a word goes on")
    is_special = np.zeros(vocab.size, bool)
    is_special[list(vocab.special.values())] = True
    is_special |= np.array([piece == "" for piece in vocab.pieces])
    continues = np.array([bool(vocab.prefix) and piece.startswith(vocab.prefix) for piece in vocab.pieces])
    return Masking(
        cfg.masked_prob,
        cfg.max_predictions,
        cfg.whole_word,
        vocab.special["[MASK]"],
        is_special,
        continues,
        np.flatnonzero(~is_special).astype(np.int32),
    )


class Masked(NamedTuple):
    """Examples with some tokens hidden."""

    ids_BL: np.ndarray
    """int32; 80 % of the chosen tokens are [MASK], 10 % another token, 10 % themselves."""
    positions_BP: np.ndarray
    """int32, ascending; 0 where unused."""
    targets_BP: np.ndarray
    """int32, the hidden tokens; 0 where unused."""
    weights_BP: np.ndarray
    """float32, 1 where used."""


def mask(
    ids_BL: np.ndarray, length_B: np.ndarray, how: Masking, seed: int, epoch_B: np.ndarray, row_B: np.ndarray
) -> Masked:
    """Hide tokens as BERT does: min(P, max(1, round(prob * length))) of them per example, specials never.

    length: tokens of each example, [CLS] and [SEP] included. row: number of the example in its split. With whole words
    a word that no longer fits is passed over, so fewer may be chosen (create_pretraining_data.py does the same).
    """
    ids_BL = ids_BL.astype(np.int32)
    batch, length = ids_BL.shape
    position_L = np.arange(length)
    free_BL = (position_L < length_B[:, None]) & ~how.is_special_V[ids_BL]
    wanted_B = (
        np.maximum(1, np.rint(how.prob * length_B).astype(np.int64)) if how.prob > 0 else np.zeros(batch, np.int64)
    )
    wanted_B = np.minimum(np.minimum(wanted_B, how.max_predictions), free_BL.sum(1))

    stream_B = random_bits(seed, _CHOICE, epoch_B, row_B)
    score_BL = _stream(stream_B, position_L)
    choose = _words if how.whole_word else _tokens
    chosen_BP = choose(ids_BL, free_BL, score_BL, wanted_B, how)
    used_BP = chosen_BP < length
    positions_BP = np.where(used_BP, chosen_BP, 0)
    row = np.arange(batch)[:, None]
    targets_BP = np.where(used_BP, ids_BL[row, positions_BP], 0)

    stream_B = random_bits(seed, _REPLACE, epoch_B, row_B)
    kind_BP = uniform(_stream(stream_B, 2 * positions_BP))
    other_BP = how.ordinary[below(_stream(stream_B, 2 * positions_BP + 1), how.ordinary.size)]
    hidden_BP = np.where(kind_BP < 0.8, how.mask_id, np.where(kind_BP < 0.9, other_BP, targets_BP)).astype(np.int32)
    at, slot = np.nonzero(used_BP)
    ids_BL[at, chosen_BP[at, slot]] = hidden_BP[at, slot]
    return Masked(ids_BL, positions_BP.astype(np.int32), targets_BP.astype(np.int32), used_BP.astype(np.float32))


def _stream(start_B: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Random bits (B, ...) at places of the splitmix64 streams that start at `start`."""
    return mix(start_B[:, None] + np.uint64(0x9E3779B97F4A7C15) * (place.astype(np.uint64) + np.uint64(1)))


def _tokens(
    ids_BL: np.ndarray, free_BL: np.ndarray, score_BL: np.ndarray, wanted_B: np.ndarray, how: Masking
) -> np.ndarray:
    """Positions (B, P) of the `wanted` free tokens of lowest score, ascending, then L where unused."""
    length = ids_BL.shape[1]
    size = min(how.max_predictions, length)
    # The low bits of a score make room for the position, so that one partition yields both.
    place = np.uint64((1 << length.bit_length()) - 1)
    keys_BL = np.where(free_BL, score_BL | place, np.uint64(2**64 - 1)) ^ place ^ np.arange(length).astype(np.uint64)
    if size < length:
        keys_BL = np.partition(keys_BL, size - 1, axis=1)[:, :size]
    chosen = (np.sort(keys_BL, axis=1) & place).astype(np.int64)
    return _padded(np.where(np.arange(size) < wanted_B[:, None], chosen, length), how.max_predictions, length)


def _words(
    ids_BL: np.ndarray, free_BL: np.ndarray, score_BL: np.ndarray, wanted_B: np.ndarray, how: Masking
) -> np.ndarray:
    """As `_tokens`, but a word's pieces go together; words are tried in the order of their scores."""
    batch, length = ids_BL.shape
    row = np.arange(batch)
    joined_BL = how.continues_V[ids_BL] & free_BL
    joined_BL[:, 1:] &= free_BL[:, :-1]
    joined_BL[:, 0] = False
    # Number of a token's word = position of its first piece.
    first_BL = np.maximum.accumulate(np.where(joined_BL, 0, np.arange(length)), axis=1)
    pieces_BL = np.zeros((batch, length + 1), np.int64)
    np.add.at(pieces_BL, (np.broadcast_to(row[:, None], first_BL.shape), first_BL), free_BL)
    start_BL = free_BL & ~joined_BL
    order_BL = np.argsort(np.where(start_BL, score_BL >> np.uint64(1), np.uint64(2**64 - 1)), axis=1)
    taken_BL = np.zeros((batch, length), bool)
    count_B = np.zeros(batch, np.int64)
    for rank in range(int(start_BL.sum(1).max(initial=0))):
        word_B = order_BL[:, rank]
        size_B = pieces_BL[row, word_B]
        fits_B = start_BL[row, word_B] & (count_B + size_B <= wanted_B)
        taken_BL[row, word_B] |= fits_B
        count_B += size_B * fits_B
        if (count_B == wanted_B).all():
            break
    chosen_BL = free_BL & taken_BL[row[:, None], first_BL]
    chosen = np.sort(np.where(chosen_BL, np.arange(length), length), axis=1)[:, : how.max_predictions]
    return _padded(chosen, how.max_predictions, length)


def _padded(chosen: np.ndarray, width: int, length: int) -> np.ndarray:
    """Positions sorted and filled up to `width` columns with `length`."""
    chosen = np.sort(chosen, axis=1)
    return np.pad(chosen, ((0, 0), (0, width - chosen.shape[1])), constant_values=length)
