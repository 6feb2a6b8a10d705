"""Documents to token arrays, a chunk at a time, on all cores; the order and the tokens do not depend on how many."""

import itertools
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from jaxprune.data import tokenizer
from jaxprune.data.example_shards import ids_dtype
from jaxprune.data.holdout import text_hash
from jaxprune.data.sentences import sentences
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError

Chunk = tuple[list[str], Any]
"""Documents, and what the caller wants back beside their tokens."""
_ALONE = 16  # chunks up to which starting processes does not pay
_MOST = 16  # more than one process can read and pack for (about nine: benchmarks/prepare.py)
_AHEAD = 3  # chunks in work or waiting, per process
_DIED = "prepare: a tokenising process died, for want of memory perhaps; set processes lower, or to 1"


class TokenizedChunk(NamedTuple):
    """The tokens of a chunk's D documents in one flat array."""

    tokens_T: np.ndarray
    """Ids, no special tokens, of `ids_dtype`."""
    lengths_S: np.ndarray
    """Tokens per sentence, int32, none 0."""
    sentences_D: np.ndarray
    """Sentences per document, int32; 0 where no token is left."""
    hashes: list[int]
    """`text_hash` of each document."""
    chars: int


def tokenize(texts: list[str], vocab: Vocabulary) -> TokenizedChunk:
    """Segment and tokenise documents; where spaces are part of tokens, those between sentences are too."""
    split = [sentences(text) for text in texts]
    spaced = ((vocab.space if at else "") + sentence for each in split for at, sentence in enumerate(each))
    ids = vocab.encode(list(spaced))
    lengths_S = np.array([len(sentence) for sentence in ids], np.int32)
    counts_D = np.array([len(each) for each in split], np.int32)
    kept = np.concatenate([[0], np.cumsum(lengths_S > 0)])
    return TokenizedChunk(
        np.fromiter(itertools.chain.from_iterable(ids), ids_dtype(vocab.size), int(lengths_S.sum())),
        lengths_S[lengths_S > 0],
        np.diff(kept[np.concatenate([[0], np.cumsum(counts_D)])]).astype(np.int32),
        [text_hash(text) for text in texts],
        sum(map(len, texts)),
    )


def tokenize_chunks(
    chunks: Iterator[Chunk], vocab: Vocabulary, processes: int
) -> Generator[tuple[TokenizedChunk, Any]]:
    """Each chunk's tokens and what came with it, in order; a bounded number of chunks is in memory.

    `processes` 1 stays in this process, where the tokenizer uses threads; 0 takes one process per core, as far as that
    pays, or none for a small corpus. Errors: UserError if a process dies.
    """
    head = list(itertools.islice(chunks, _ALONE)) if processes == 0 else []
    if processes == 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = 1 if len(head) < _ALONE else min(cores, _MOST)
    chunks = itertools.chain(head, chunks)
    if processes == 1:
        for texts, beside in chunks:
            yield tokenize(texts, vocab), beside
        return
    with _pool(vocab, processes) as submit:
        waiting: deque[tuple[Future[TokenizedChunk], Any]] = deque()
        for texts, beside in chunks:
            waiting.append((submit(texts), beside))
            if len(waiting) >= _AHEAD * processes:
                future, beside = waiting.popleft()
                yield future.result(), beside
        for future, beside in waiting:
            yield future.result(), beside


@contextmanager
def _pool(vocab: Vocabulary, processes: int) -> Iterator[Callable[[list[str]], "Future[TokenizedChunk]"]]:
    """A function that has other processes tokenise documents.

    They are plain Python processes that read a pipe, not multiprocessing's: those run the caller's script once more.
    A process ends when its pipe does, so none outlives this one, however that ends.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", "from jaxprune.data.tokenizer_pool import serve; serve()"]
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        for _ in range(processes)
    ]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    try:
        for worker in workers:
            _send(worker, (vocab.tokenizer.to_str().encode(), vocab.special_tokens))
            idle.put(worker)

        def ask(texts: list[str]) -> TokenizedChunk:
            worker = idle.get()
            try:
                _send(worker, texts)
                assert worker.stdout is not None
                return pickle.load(worker.stdout)
            except (EOFError, pickle.UnpicklingError) as error:
                raise UserError(_DIED) from error
            finally:
                idle.put(worker)

        threads = ThreadPoolExecutor(processes)
        try:
            yield lambda texts: threads.submit(ask, texts)
        finally:
            for worker in workers:
                worker.kill()
            threads.shutdown(cancel_futures=True)
    finally:
        for worker in workers:
            worker.kill()
            with suppress(BrokenPipeError), worker:
                pass


def _send(worker: "subprocess.Popen[bytes]", message: Any) -> None:
    try:
        assert worker.stdin is not None
        worker.stdin.write(pickle.dumps(message))
        worker.stdin.flush()
    except BrokenPipeError as error:
        raise UserError(_DIED) from error


def serve() -> None:
    """Be a process of the pool: read a tokenizer, then lists of documents, answer each with its tokens."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not get among the answers
    content, special = pickle.load(sys.stdin.buffer)
    vocab = tokenizer.parse(content, special, "of the pool")
    with suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(tokenize(pickle.load(sys.stdin.buffer), vocab), answers)
            answers.flush()
