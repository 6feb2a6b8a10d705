"""BERT's examples from tokenised documents.

Documents are spans of one flat token array, and so is every segment, so a plan is five integers per example and the
tokens are copied once. Shapes: N examples, L tokens per example, S sentences, D documents, T tokens.
"""

import random
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxprune.data.random_bits import random_bits
from jaxprune.errors import UserError


class Documents(NamedTuple):
    """Tokenised documents in one flat array."""

    tokens_T: np.ndarray
    """Ids, no special tokens."""
    sentences_S: np.ndarray
    """(S + 1,) int64: sentence s is tokens[sentences[s] : sentences[s + 1]], never empty."""
    documents_D: np.ndarray
    """(D + 1,) int64: document d is sentences documents[d] ... documents[d + 1] - 1, never empty."""
    text_hash_D: np.ndarray
    """(D,) uint64: hash of each document's text; equal texts count as one document when pairs are drawn."""


class Plan(NamedTuple):
    """Segments as spans of the flat token array; all (N,) int64."""

    a_start: np.ndarray
    a_len: np.ndarray
    b_start: np.ndarray
    b_len: np.ndarray
    is_random: np.ndarray
    doc_a: np.ndarray
    doc_b: np.ndarray


@dataclass(frozen=True)
class Packing:
    """How examples are cut; probabilities as in `PrepareConfig`."""

    seq_len: int
    next_sentence: bool
    short_seq_prob: float
    random_next_prob: float

    @property
    def max_tokens(self) -> int:
        """Tokens of an example that are not special."""
        return self.seq_len - (3 if self.next_sentence else 2)


def split_long(lengths: np.ndarray, limit: int) -> np.ndarray:
    """Lengths of sentences after those above `limit` tokens are cut into pieces of `limit`; the sum stays.

    BERT drops what does not fit an example; a table or list without a full stop would lose thousands of tokens.
    """
    if not (lengths > limit).any():
        return lengths
    pieces = -(-lengths // limit)
    out = np.full(int(pieces.sum()), limit, lengths.dtype)
    out[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * limit
    return out


def plan_pairs(docs: Documents, packing: Packing, seed: str, first: int = 0) -> Plan:
    """Segment pairs of the documents `first`, `first + 1`, ... before truncation, as create_pretraining_data.py does.

    Sentences are taken until the target length; A is a random number of them; B is the rest, or with
    `random_next_prob` a run of sentences of another document, and then the rest is put back. Differences from the
    original: B never comes from the same document, nor from one of equal text; the short target is drawn per example,
    not per document; a pair that should be consecutive but holds one sentence takes the next one as B, so that only a
    document's last sentence is paired at random by need. Errors: UserError if all documents have the same text.
    """
    rng = random.Random(seed).random  # .random() gives the same numbers in every Python
    starts, bounds, same = docs.sentences_S.tolist(), docs.documents_D.tolist(), docs.text_hash_D.tolist()
    count, longest = len(bounds) - 1, packing.max_tokens
    if len(set(same)) < 2:
        raise UserError("next_sentence needs at least 2 different documents; add text or set next_sentence: false")
    rows = array("q")
    for doc in range(first, count):
        i, end = bounds[doc], bounds[doc + 1]
        while i < end:
            target = 2 + int(rng() * (longest - 1)) if rng() < packing.short_seq_prob else longest
            j = bisect_left(starts, starts[i] + target, i + 1, end)
            is_random = rng() < packing.random_next_prob
            if not is_random and j == i + 1:
                j = min(j + 1, end)
                is_random = j == i + 1
            a_end = i + 1 + int(rng() * (j - i - 1))
            a_start, a_len = starts[i], starts[a_end] - starts[i]
            other = doc
            if is_random:
                other = int(rng() * (count - 1))
                other += other >= doc
                while same[other] == same[doc]:
                    other = (other + 1) % count
                begin = bounds[other] + int(rng() * (bounds[other + 1] - bounds[other]))
                stop = bisect_left(starts, starts[begin] + max(1, target - a_len), begin + 1, bounds[other + 1])
                i = a_end
            else:
                begin, stop = a_end, j
                i = j
            rows.extend((a_start, a_len, starts[begin], starts[stop] - starts[begin], is_random, doc, other))
    return Plan(*np.frombuffer(rows, np.int64).reshape(-1, 7).T)


def plan_singles(docs: Documents, packing: Packing, seed: str, first: int = 0) -> Plan:
    """Single segments: as many whole sentences of one document as fit. Nothing is truncated; B is empty."""
    rng = random.Random(seed).random
    starts, bounds = docs.sentences_S.tolist(), docs.documents_D.tolist()
    rows, longest = array("q"), packing.max_tokens
    for doc in range(first, len(bounds) - 1):
        i, end = bounds[doc], bounds[doc + 1]
        while i < end:
            target = 2 + int(rng() * (longest - 1)) if rng() < packing.short_seq_prob else longest
            j = max(i + 1, bisect_right(starts, starts[i] + target, i + 1, end + 1) - 1)
            rows.extend((starts[i], starts[j] - starts[i], 0, 0, 0, doc, doc))
            i = j
    return Plan(*np.frombuffer(rows, np.int64).reshape(-1, 7).T)


def truncate(plan: Plan, limit: int, seed: int) -> Plan:
    """Cut pairs to `limit` tokens: the longer segment loses tokens (B on a tie), each from front or back at random."""
    a, b = plan.a_len, plan.b_len
    over = np.maximum(a + b - limit, 0)
    alone = np.minimum(over, np.abs(a - b))  # what the longer one loses before both are equal
    cut_a = np.where(a > b, alone, 0) + (over - alone) // 2
    cut_b = over - cut_a
    front_a, front_b = _coin_flips(cut_a, seed, 0), _coin_flips(cut_b, seed, 1)
    return plan._replace(
        a_start=plan.a_start + front_a, a_len=a - cut_a, b_start=plan.b_start + front_b, b_len=b - cut_b
    )


def _coin_flips(flips_N: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Heads among `flips` fair coins, per row."""
    words = np.arange(-(-int(flips_N.max(initial=0)) // 64), dtype=np.int64)
    bits = random_bits(seed, stream, np.arange(flips_N.size)[:, None], words)
    used = np.clip(flips_N[:, None] - 64 * words, 0, 64).astype(np.uint64)
    shift = np.minimum(np.uint64(64) - used, np.uint64(63))
    return np.where(used > 0, np.bitwise_count(bits >> shift), 0).sum(1, dtype=np.int64)


def gather(tokens_T: np.ndarray, plan: Plan, seq_len: int, cls_id: int, sep_id: int, pad_id: int) -> np.ndarray:
    """Examples `cls A sep B sep pad ...` (or `cls A sep` where B is empty), (N, L), dtype of tokens."""
    position_L = np.arange(seq_len)
    a_end = plan.a_len[:, None] + 1  # position of the first `sep`
    b_end = a_end + (plan.b_len[:, None] + 1) * (plan.b_len[:, None] > 0)  # position of the last `sep`
    source = np.where(
        position_L < a_end, plan.a_start[:, None] + position_L - 1, plan.b_start[:, None] + position_L - a_end - 1
    )
    ids_NL = tokens_T[np.clip(source, 0, tokens_T.size - 1)]
    ids_NL[:, 0] = cls_id
    ids_NL[(position_L == a_end) | (position_L == b_end)] = sep_id
    ids_NL[position_L > b_end] = pad_id
    return ids_NL


def pack(docs: Documents, packing: Packing, seed: str, first: int = 0) -> Plan:
    """Examples of the documents from `first` on, ready for `gather`; a function of its arguments alone."""
    if not packing.next_sentence:
        return plan_singles(docs, packing, seed, first)
    plan = plan_pairs(docs, packing, seed, first)
    return truncate(plan, packing.max_tokens, random.Random(seed + "/truncate").getrandbits(63))
