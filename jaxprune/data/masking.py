"""Dynamic masking: which tokens an example predicts, a pure function of (seed, epoch, example).

Shapes: B examples, L tokens, P predictions, V pieces of the vocabulary.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxprune.config.sections import DataConfig
from jaxprune.data.random_bits import below, random_bits, uniform
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError

_CHOICE, _REPLACE = 1, 2  # streams of random bits


class Masking:
    """How to mask examples of `seq_len` tokens: in one of two forms, `cfg.masking`.

    `published` is google-research/bert's create_pretraining_data.py: every token but `cls` and `sep` may be chosen, an
    unknown word too, and its replacement is any piece of the vocabulary, special tokens included; with whole words, a
    piece that goes on after a `sep` belongs to the word before it. `known` is jaxprune's own: no special token is ever
    chosen, nor an unknown word, nor is one a replacement ([unused...] are, in both).

    Errors: UserError for `whole_word` with a tokenizer that is not WordPiece.
    """

    def __init__(self, cfg: DataConfig, vocab: Vocabulary, seq_len: int) -> None:
        if cfg.whole_word and not vocab.prefix:
            raise UserError("data.whole_word = true needs a WordPiece tokenizer: its pieces tell where a word goes on")
        special, number_V = vocab.special, np.arange(vocab.size)
        self.published = cfg.masking == "published"
        self.prob, self.whole_word, self.mask_id = cfg.masked_prob, cfg.whole_word, special["mask"]
        self.predictions = cfg.max_predictions or max(1, math.ceil(cfg.masked_prob * seq_len))
        """P: `cfg.max_predictions`, or by default `cfg.masked_prob` of the length (20 of 128 tokens, 77 of 512)."""
        unused_V = np.array([piece == "" for piece in vocab.pieces])
        special_V = np.isin(number_V, list(special.values())) | unused_V
        self.fixed_V = np.isin(number_V, [special["cls"], special["sep"]]) if self.published else special_V
        """bool (V,): never chosen."""
        self.continues_V = np.array([bool(vocab.prefix) and piece.startswith(vocab.prefix) for piece in vocab.pieces])
        """bool (V,): pieces such as ##ing."""
        self.replacements = np.flatnonzero(~(unused_V if self.published else special_V)).astype(np.int32)
        """Ids that a chosen token may be replaced with."""


class Masked(NamedTuple):
    """Examples with some tokens hidden."""

    ids_BL: np.ndarray
    """int32; 80 % of the chosen tokens are `mask`, 10 % another token, 10 % themselves."""
    positions_BP: np.ndarray
    """int32, ascending; 0 where unused."""
    targets_BP: np.ndarray
    """int32, the hidden tokens; 0 where unused."""
    weights_BP: np.ndarray
    """float32, 1 where used."""


def mask(
    ids_BL: np.ndarray, length_B: np.ndarray, masking: Masking, seed: int, epoch_B: np.ndarray, row_B: np.ndarray
) -> Masked:
    """Hide tokens as BERT does: min(P, max(1, round(prob * length))) of them per example, where so many may be chosen.

    length: tokens of each example, special ones included. row: number of the example in its split. With whole words
    a word that no longer fits is passed over, so fewer may be chosen (create_pretraining_data.py does the same).
    """
    ids_BL = ids_BL.astype(np.int32)
    length = ids_BL.shape[1]
    position_L = np.arange(length)
    free_BL = (position_L < length_B[:, None]) & ~masking.fixed_V[ids_BL]
    wanted_B = np.maximum(1, np.rint(masking.prob * length_B).astype(np.int64)) * (masking.prob > 0)
    wanted_B = np.minimum(np.minimum(wanted_B, masking.predictions), free_BL.sum(1))

    counters = epoch_B[:, None], row_B[:, None]
    score_BL = random_bits(seed, _CHOICE, *counters, position_L)
    choose = _words if masking.whole_word else _tokens
    chosen_BP = np.sort(choose(ids_BL, free_BL, score_BL, wanted_B, masking), axis=1)
    unused = masking.predictions - chosen_BP.shape[1]
    chosen_BP = np.pad(chosen_BP, ((0, 0), (0, unused)), constant_values=length)
    used_BP = chosen_BP < length
    positions_BP = np.where(used_BP, chosen_BP, 0)
    targets_BP = np.where(used_BP, np.take_along_axis(ids_BL, positions_BP, 1), 0)

    kind_BP = uniform(random_bits(seed, _REPLACE, *counters, 2 * positions_BP))
    draw_BP = below(random_bits(seed, _REPLACE, *counters, 2 * positions_BP + 1), masking.replacements.size)
    other_BP = np.where(kind_BP < 0.9, masking.replacements[draw_BP], targets_BP)
    at, slot = np.nonzero(used_BP)
    ids_BL[at, chosen_BP[at, slot]] = np.where(kind_BP < 0.8, masking.mask_id, other_BP)[at, slot]
    return Masked(ids_BL, positions_BP.astype(np.int32), targets_BP.astype(np.int32), used_BP.astype(np.float32))


def _tokens(
    ids_BL: np.ndarray, free_BL: np.ndarray, score_BL: np.ndarray, wanted_B: np.ndarray, masking: Masking
) -> np.ndarray:
    """Positions (B, at most P) of the `wanted` free tokens of lowest score; L where unused."""
    length = ids_BL.shape[1]
    size = min(masking.predictions, length)
    # The low bits of a score make room for the position, so that one partition yields both.
    low = np.uint64((1 << length.bit_length()) - 1)
    keys_BL = np.where(free_BL, score_BL | low, np.uint64(2**64 - 1)) ^ low ^ np.arange(length).astype(np.uint64)
    if size < length:
        keys_BL = np.partition(keys_BL, size - 1, axis=1)[:, :size]
    chosen = (np.sort(keys_BL, axis=1) & low).astype(np.int64)
    return np.where(np.arange(size) < wanted_B[:, None], chosen, length)


def _words(
    ids_BL: np.ndarray, free_BL: np.ndarray, score_BL: np.ndarray, wanted_B: np.ndarray, masking: Masking
) -> np.ndarray:
    """As `_tokens`, but a word's pieces go together; words are tried in the order of their scores."""
    batch, length = ids_BL.shape
    row = np.arange(batch)
    before_BL = np.zeros((batch, length), bool)  # whether there is a word that a piece could go on with
    before_BL[:, 1:] = (np.maximum.accumulate(free_BL, axis=1) if masking.published else free_BL)[:, :-1]
    start_BL = free_BL & ~(masking.continues_V[ids_BL] & before_BL)
    # Number of a token's word = position of its first piece.
    first_BL = np.maximum.accumulate(np.where(start_BL, np.arange(length), 0), axis=1)
    pieces_BL = np.zeros((batch, length), np.int64)
    np.add.at(pieces_BL, (np.broadcast_to(row[:, None], first_BL.shape), first_BL), free_BL)
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
    chosen_BL = free_BL & np.take_along_axis(taken_BL, first_BL, 1)
    return np.sort(np.where(chosen_BL, np.arange(length), length), axis=1)[:, : masking.predictions]
