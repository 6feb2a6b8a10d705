"""Documents to packed shards: hold out, segment, tokenise, pack, write; and go on after an interruption."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.commands import PrepareConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import data_manifest, resume_point, tokenizer
from jaxprune.data.bucket import AnyPath, any_path
from jaxprune.data.corpus import Reader, documents
from jaxprune.data.corpus_files import size_hint, unread_files
from jaxprune.data.holdout import held_out, text_hash
from jaxprune.data.prepared_folder import claimed, clear, finished, interrupted, origin, recorded
from jaxprune.data.resume_point import RESUME_POINT
from jaxprune.data.split_writer import SplitWriter, TokenizedDocument
from jaxprune.data.tokenizer_pool import TokenizedChunk, tokenize_chunks
from jaxprune.data.written_names import forget
from jaxprune.progress import Progress

log = logging.getLogger(__name__)

SPLITS = ("train", "dev")
_CHUNK_CHARS = 1 << 20  # text tokenised at once
_SINGLE_SHARE = 0.5  # documents of one sentence above which pairs say little


def prepare(cfg: PrepareConfig, out: str | Path, special: SpecialTokens) -> dict[str, Any]:
    """Prepared data in `out`, a directory or the URL of one (`gs://...`), and its manifest.

    `out` then holds shards of the splits `train` and `dev`, `tokenizer/`, and `manifest.json`, which is written last.
    Documents are held out by the hash of their text, so equal texts fall in one split. If `out` already holds this very
    data nothing is done; an interrupted prepare goes on after its last full buffer, to the same bytes. A URL has no
    lock: run one prepare at a time. Errors: UserError on bad input (nothing is left behind if no buffer was full),
    where `out` was prepared, or begun, with another config, and where it holds files of others with the same names.
    `special`: the architecture's special tokens.
    """
    folder = any_path(out)
    if (folder / data_manifest.MANIFEST).is_file():
        return finished(cfg, folder)
    sources = origin(cfg)
    for source in cfg.sources:
        if unread := unread_files(source):
            log.warning("prepare: %s", unread)
    with claimed(folder):
        if (folder / data_manifest.MANIFEST).is_file():  # another process has finished meanwhile
            return finished(cfg, folder)
        begun = interrupted(cfg, folder, sources)
        try:
            with Progress("prepare", "reading text", count=lambda chars: f"{chars / 1e6:,.1f} MB") as progress:
                return _build(cfg, folder, special, sources, begun, progress)
        except BaseException:
            if (folder / RESUME_POINT).is_file():
                log.warning("prepare: stopped; the same command goes on after the last full buffer")
            else:
                clear(folder)
            raise


def _build(
    cfg: PrepareConfig,
    folder: AnyPath,
    special: SpecialTokens,
    sources: list[Any],
    begun: dict[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
    if begun is None:
        for source in cfg.sources:  # what is bad shows before anything is written
            if source.kind != "builtin":
                next(documents(source))
        with progress.during("reading the tokenizer" if cfg.tokenizer.path else "training a vocabulary"):
            vocab = tokenizer.obtain(cfg.tokenizer, lambda: _training_texts(cfg), special)
        names = {f"tokenizer/{name}": content for name, content in tokenizer.files(vocab).items()}
        pieces = {name: data_manifest.write_file(folder, name, content) for name, content in names.items()}
    else:
        pieces = begun["tokenizer"]
        stored = {name.removeprefix("tokenizer/"): (folder / name).read_bytes() for name in pieces}
        vocab = tokenizer.from_files(stored, special, str(folder / "tokenizer"))
    writers = {split: SplitWriter(cfg, folder, split, vocab) for split in SPLITS}
    counts: Counter[str] = Counter()
    reader = Reader(cfg.sources)
    if begun is not None:
        counts.update(begun["counts"])
        reader = Reader(cfg.sources, begun["reader"])
        for split, writer in writers.items():
            writer.restore(begun["splits"][split])
        log.info("prepare: going on after %s documents", f"{counts['documents']:,}")
    warned = not cfg.next_sentence
    total = sum(size_hint(source) for source in cfg.sources)
    chunks = tokenize_chunks(reader.chunks(_CHUNK_CHARS), vocab, cfg.processes)
    progress.begin(total, counts["chars"])
    progress.stage = "packing"
    with closing(chunks):
        for chunk, reader_state in chunks:
            full = sum(writer.buffers for writer in writers.values())
            _add(cfg, chunk, writers, counts)
            warned = warned or _warned_of_single_sentences(cfg, counts)
            progress.update(counts["chars"], f"{counts['documents']:,} documents, {progress.rate / 1e6:.2f} MB/s")
            if sum(writer.buffers for writer in writers.values()) > full:
                point = {"config": recorded(cfg), "sources": sources, "tokenizer": pieces, "counts": counts}
                states = {split: writer.state() for split, writer in writers.items()}
                resume_point.save(folder, point | {"reader": reader_state, "splits": states})
    progress.stage = "writing"
    splits = {split: writer.finish() for split, writer in writers.items()}
    manifest = {
        "format": data_manifest.FORMAT,
        "version": resume_point.versions()["jaxprune"],
        "config": recorded(cfg),
        "sources": sources,
        "blank_documents": reader.blank + counts["blank"],
        "seq_len": cfg.seq_len,
        "next_sentence": cfg.next_sentence,
        "special_tokens": vocab.special_tokens._asdict(),
        "vocab_size": vocab.size,
        "vocab_sha256": vocab.sha256,
        "splits": splits,
        "files": {**writers["train"].shards.files, **writers["dev"].shards.files, **pieces},
    }
    data_manifest.write_manifest(folder, manifest)
    (folder / RESUME_POINT).unlink(missing_ok=True)
    forget(folder)
    log.info("prepare: %s examples to train on, %s to evaluate", splits["train"]["examples"], splits["dev"]["examples"])
    return manifest


def _add(cfg: PrepareConfig, chunk: TokenizedChunk, writers: dict[str, SplitWriter], counts: Counter[str]) -> None:
    """Hand a chunk's documents to the writers of their splits."""
    ends = np.cumsum(chunk.sentences_D)
    token = np.concatenate([[0], np.cumsum(chunk.lengths_S)])
    for at, (end, size) in enumerate(zip(ends.tolist(), chunk.sentences_D.tolist())):
        if not size:
            counts["blank"] += 1
            continue
        split = "dev" if held_out(chunk.hashes[at], cfg.dev_fraction, cfg.seed) else "train"
        document = TokenizedDocument(
            counts["documents"] + at,
            chunk.hashes[at],
            chunk.tokens_T[token[end - size] : token[end]].copy(),  # a view would keep the whole chunk
            chunk.lengths_S[end - size : end].copy(),
        )
        writers[split].add(document)
    counts.update(documents=len(chunk.hashes), chars=chunk.chars, single=int((chunk.sentences_D == 1).sum()))


def _warned_of_single_sentences(cfg: PrepareConfig, counts: Counter[str]) -> bool:
    """Whether it was worth a warning that most documents so far have no next sentence."""
    share = counts["single"] / max(1, counts["documents"])
    if share < _SINGLE_SHARE:
        return False
    paragraphs = "paragraphs: false, " if any(source.paragraphs for source in cfg.sources) else ""
    log.warning(
        "prepare: %.0f%% of the first %s documents are one sentence, which nothing follows: their pairs are all random;"
        " set %snext_sentence: false, or give whole documents",
        100 * share,
        f"{counts['documents']:,}",
        paragraphs,
    )
    return True


def _training_texts(cfg: PrepareConfig) -> Iterator[str]:
    """Documents of the train split: a vocabulary must not know the held-out ones."""
    for source in cfg.sources:
        for text in documents(source):
            if not held_out(text_hash(text), cfg.dev_fraction, cfg.seed):
                yield text
