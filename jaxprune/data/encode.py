"""Documents to token arrays, a chunk at a time, on all cores; the order and the tokens do not depend on how many."""

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxprune.data import shards, tokenizer
from jaxprune.data.sentences import sentences
from jaxprune.data.tokenizer import Vocabulary

Chunk = tuple[list[str], Any]
"""Documents, and what the caller wants back beside their tokens."""
_ALONE = 16  # chunks up to which starting processes does not pay
_AHEAD = 3  # chunks in work or waiting, per process


class Encoded(NamedTuple):
    """The tokens of a chunk's D documents in one flat array."""

    tokens_T: np.ndarray
    """Ids, no special tokens, of `shards.ids_dtype`."""
    lengths_S: np.ndarray
    """Tokens per sentence, int32, none 0."""
    sentences_D: np.ndarray
    """Sentences per document, int32; 0 where no token is left."""
    hashes: list[int]
    """`text_hash` of each document."""
    chars: int


def text_hash(text: str) -> int:
    """64-bit hash of a document."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode(texts: list[str], vocab: Vocabulary) -> Encoded:
    """Segment and tokenise documents."""
    spans = [sentences(text) for text in texts]
    ids = vocab.encode([sentence for found in spans for sentence in found])
    lengths_S = np.array([len(sentence) for sentence in ids], np.int32)
    counts_D = np.array([len(found) for found in spans], np.int32)
    kept = np.concatenate([[0], np.cumsum(lengths_S > 0)])
    return Encoded(
        np.fromiter(itertools.chain.from_iterable(ids), shards.ids_dtype(vocab.size), int(lengths_S.sum())),
        lengths_S[lengths_S > 0],
        np.diff(kept[np.concatenate([[0], np.cumsum(counts_D)])]).astype(np.int32),
        [text_hash(text) for text in texts],
        sum(map(len, texts)),
    )


def encoded(chunks: Iterator[Chunk], vocab: Vocabulary, processes: int) -> Iterator[tuple[Encoded, Any]]:
    """Each chunk's tokens and what came with it, in order; a bounded number of chunks is in memory.

    `processes` 1 stays in this process, where the tokenizer uses threads; 0 takes one process per core, or none for a
    small corpus. Errors: ValueError if the processes die.
    """
    head = list(itertools.islice(chunks, _ALONE)) if processes == 0 else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes == 1 or (processes == 0 and (len(head) < _ALONE or cores == 1)):
        for texts, beside in itertools.chain(head, chunks):
            yield encode(texts, vocab), beside
        return
    pool = ProcessPoolExecutor(
        processes or cores,
        multiprocessing.get_context("spawn"),
        _start,
        (vocab.tokenizer.to_str(),),
    )
    waiting: deque[Any] = deque()
    try:
        for texts, beside in itertools.chain(head, chunks):
            waiting.append((pool.submit(_encode, texts), beside))
            if len(waiting) >= _AHEAD * (processes or cores):
                future, beside = waiting.popleft()
                yield future.result(), beside
        while waiting:
            future, beside = waiting.popleft()
            yield future.result(), beside
    except BrokenProcessPool as error:
        raise ValueError(
            "prepare: a tokenising process died (memory, or a script without `if __name__ == '__main__':`);"
            " set processes lower, or to 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_vocab: Vocabulary  # of a pool's process


def _start(saved: str) -> None:
    """Make a pool's process ready; it ends when the process that started it does, however that ends."""
    global _vocab
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _vocab = tokenizer.vocabulary(tokenizers.Tokenizer.from_str(saved), "of the pool")


def _encode(texts: list[str]) -> Encoded:
    return encode(texts, _vocab)
