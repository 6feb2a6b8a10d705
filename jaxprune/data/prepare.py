"""Documents to packed shards: hold out, segment, tokenise, pack, write."""

import fcntl
import hashlib
import importlib.metadata
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config import PrepareConfig, SourceConfig
from jaxprune.data import shards, tokenizer
from jaxprune.data.corpus import documents, files, size_hint
from jaxprune.data.packing import Documents, Packing, gather, pack, split_long
from jaxprune.data.progress import progress
from jaxprune.data.sentences import sentences
from jaxprune.data.tokenizer import Vocabulary

log = logging.getLogger(__name__)

SPLITS = ("train", "dev")
_CHUNK_CHARS = 4 << 20  # text tokenised at once
_BUFFER_TOKENS = 1 << 25  # tokens among whose documents pairs are drawn; bounds memory to about 400 MB
_GATHER_ROWS = 8192


def prepare(cfg: PrepareConfig, out: Path) -> dict[str, Any]:
    """Prepared data in `out`, and its manifest.

    `out` then holds shards of the splits `train` and `dev`, `tokenizer/`, and `manifest.json`, which is written last.
    Documents are held out by the hash of their text, so equal texts fall in one split. If `out` already holds this very
    data nothing is done; an interrupted attempt is replaced. Errors: ValueError on bad input (nothing is left behind)
    and where `out` was prepared with another config.
    """
    out = out.expanduser().absolute()
    if (out / shards.MANIFEST).is_file():
        return _existing(cfg, out)
    origin = _origin(cfg)
    vocab = None if cfg.tokenizer.train_size else tokenizer.load(cfg.tokenizer.path, cfg.tokenizer.revision)
    for source in cfg.sources:
        if source.kind != "builtin":
            next(documents(source))  # bad paths and columns show before anything is written
    made = [p for p in (out, *out.parents) if not p.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out):
            _clear(out)
            try:
                return _build(cfg, out, origin, vocab)
            except BaseException:
                _clear(out)
                raise
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other processes of this machine from preparing the same directory; the lock ends with the process."""
    path = out / ".prepare.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{out}: another prepare is writing here; wait for it") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def held_out(text_hash: int, fraction: float, seed: int) -> bool:
    """Whether a document with this hash belongs to the dev split."""
    bits = hashlib.blake2b(text_hash.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(bits, "little") < fraction * 2.0**64


def text_hash(text: str) -> int:
    """64-bit hash of a document."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _build(cfg: PrepareConfig, out: Path, origin: list[Any], vocab: Vocabulary | None) -> dict[str, Any]:
    if vocab is None:
        vocab = tokenizer.train(lambda: _training_texts(cfg), cfg.tokenizer.train_size, cfg.tokenizer.lowercase)
    builders = {split: _Split(cfg, out, split, vocab) for split in SPLITS}
    counts: Counter[str] = Counter()
    with progress("prepare", sum(size_hint(source) for source in cfg.sources)) as advance:
        for texts in _chunks(itertools.chain.from_iterable(documents(source, counts) for source in cfg.sources)):
            hashes = [text_hash(text) for text in texts]
            held = [held_out(h, cfg.dev_fraction, cfg.seed) for h in hashes]
            spans = [sentences(text) for text in texts]
            ids = iter(vocab.encode([sentence for found in spans for sentence in found]))
            for at, found in enumerate(spans):
                tokens = [sentence for sentence in itertools.islice(ids, len(found)) if sentence]
                if tokens:
                    builders["dev" if held[at] else "train"].add(counts["documents"] + at, hashes[at], tokens)
                else:
                    counts["blank"] += 1
            counts["documents"] += len(texts)
            advance(len(texts), sum(map(len, texts)))
    splits = {split: builder.finish() for split, builder in builders.items()}
    tokenizer.save(vocab, out / "tokenizer")
    names = [name for builder in builders.values() for name in builder.writer.files]
    names += sorted(str(p.relative_to(out)) for p in (out / "tokenizer").iterdir())
    manifest = {
        "format": shards.FORMAT,
        "version": _version(),
        "config": cfg.model_dump(mode="json"),
        "sources": origin,
        "blank_documents": counts["blank"],
        "seq_len": cfg.seq_len,
        "next_sentence": cfg.next_sentence,
        "vocab_size": vocab.size,
        "vocab_sha256": vocab.sha256,
        "splits": splits,
        "files": {name: shards.describe(out, name) for name in names},
    }
    shards.write_manifest(out, manifest)
    log.info("prepare: %s examples to train on, %s to evaluate", splits["train"]["examples"], splits["dev"]["examples"])
    return manifest


class _Split:
    """Tokenised documents of one split on their way to its shards."""

    def __init__(self, cfg: PrepareConfig, out: Path, split: str, vocab: Vocabulary) -> None:
        self.cfg, self.split, self.vocab = cfg, split, vocab
        self.packing = Packing(cfg.seq_len, cfg.next_sentence, cfg.short_seq_prob, cfg.random_next_prob)
        self.writer = shards.ShardWriter(out, split, cfg.shard_examples)
        self.dtype = shards.ids_dtype(vocab.size)
        self.counts: Counter[str] = Counter()
        self.buffers = 0
        self._reset()

    def _reset(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []  # tokens per sentence
        self.numbers: list[int] = []
        self.hashes: list[int] = []
        self.held = 0
        self.first = 0  # 1 when the buffer starts with a document kept from the last one, as a partner only

    def add(self, number: int, text_hash: int, sentences: list[list[int]]) -> None:
        """Take in a document: its running number, hash and sentences of ids."""
        if self.held >= _BUFFER_TOKENS and len(self.numbers) > 1:
            self._pack()
        lengths = np.array([len(sentence) for sentence in sentences], np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(sentences), self.dtype, int(lengths.sum()))
        self._hold(number, text_hash, tokens, split_long(lengths, self.packing.max_tokens))
        self.counts.update(documents=1, sentences=len(sentences), tokens=tokens.size)

    def _hold(self, number: int, text_hash: int, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.tokens.append(tokens)
        self.lengths.append(lengths)
        self.numbers.append(number)
        self.hashes.append(text_hash)
        self.held += tokens.size

    def finish(self) -> dict[str, Any]:
        """Pack and write the rest; the split's counts. Errors: ValueError if the split holds too little."""
        if self.counts["documents"] < 1 + self.cfg.next_sentence:
            raise ValueError(
                f"the {self.split} split has {self.counts['documents']} document(s), too few"
                f"{' to pair documents (next_sentence)' if self.cfg.next_sentence else ''}; add documents"
                f" or change dev_fraction = {self.cfg.dev_fraction}"
            )
        self._pack()
        self.writer.flush()
        pairs = max(1, self.writer.examples)
        return {
            **{key: self.counts[key] for key in ("documents", "sentences", "tokens")},
            "examples": self.writer.examples,
            "random_next": round(self.counts["random"] / pairs, 4) if self.cfg.next_sentence else None,
        }

    def _pack(self) -> None:
        docs = Documents(
            np.concatenate(self.tokens),
            np.cumsum(np.concatenate([[0], *self.lengths])),
            np.cumsum([0, *map(len, self.lengths)]),
            np.array(self.hashes, np.uint64),
        )
        if docs.tokens_T.max() >= self.vocab.size:
            raise ValueError(f"token id {docs.tokens_T.max()} is outside the vocabulary of {self.vocab.size} pieces")
        number_D = np.array(self.numbers, np.uint32)
        for duplicate in range(self.cfg.duplicates if self.split == "train" else 1):
            plan = pack(
                docs, self.packing, f"{self.cfg.seed}/{self.split}/{self.buffers}/{duplicate}", first=self.first
            )
            info = np.zeros(len(plan.a_len), shards.INFO)
            info["a_len"], info["b_len"], info["is_random"] = plan.a_len, plan.b_len, plan.is_random
            info["doc_a"], info["doc_b"] = number_D[plan.doc_a], number_D[plan.doc_b]
            self.counts["random"] += int(plan.is_random.sum())
            special = self.vocab.special
            for at in range(0, len(info), _GATHER_ROWS):
                part = type(plan)(*(field[at : at + _GATHER_ROWS] for field in plan))
                ids = gather(
                    docs.tokens_T, part, self.cfg.seq_len, special["[CLS]"], special["[SEP]"], special["[PAD]"]
                )
                self.writer.add(ids, info[at : at + _GATHER_ROWS])
        last = self.numbers[-1], self.hashes[-1], self.tokens[-1], self.lengths[-1]
        self.buffers += 1
        self._reset()
        self._hold(*last)
        self.first = 1


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk, chars = [], 0
    for text in texts:
        chunk.append(text)
        chars += len(text)
        if chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _training_texts(cfg: PrepareConfig) -> Iterator[str]:
    """Documents of the train split: a vocabulary must not know the held-out ones."""
    for source in cfg.sources:
        for text in documents(source):
            if not held_out(text_hash(text), cfg.dev_fraction, cfg.seed):
                yield text


def _origin(cfg: PrepareConfig) -> list[Any]:
    """Names and sizes of the local files read: a second prepare sees that a corpus has changed."""
    return [_file_sizes(source) if source.kind == "local" else [] for source in cfg.sources]


def _file_sizes(source: SourceConfig) -> list[list[Any]]:
    return [[path.name, path.stat().st_size] for path, _ in files(source)]


def _existing(cfg: PrepareConfig, out: Path) -> dict[str, Any]:
    """The manifest of finished data, if it is what `cfg` asks for."""
    manifest = shards.read_manifest(out)
    old, new = _flat(manifest["config"]), _flat(cfg.model_dump(mode="json"))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys:
        said = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)" for key in keys)
        raise ValueError(f"{out}: prepared with another config: {said}; choose another directory or delete this one")
    try:
        changed = manifest["sources"] != _origin(cfg)
    except ValueError:  # the corpus is gone, which is no fault once it is prepared
        changed = False
    if changed:
        raise ValueError(f"{out}: the corpus files have changed since; choose another directory or delete this one")
    shards.verify(out, manifest, hashes=False)
    log.info("prepare: %s is already prepared with this config; nothing to do", out)
    return manifest


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists under dotted keys."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, value in pairs for k, v in _flat(value, f"{key}.{name}" if key else str(name)).items()}
    return {key: tree}


def _clear(out: Path) -> None:
    """Remove what an unfinished prepare left; files of others stay."""
    for pattern in ("*-?????.ids.npy*", "*-?????.info.npy*", f"{shards.MANIFEST}*"):
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / "tokenizer", ignore_errors=True)


def _version() -> str:
    try:
        return importlib.metadata.version("jaxprune")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
