"""Documents to packed shards: hold out, segment, tokenise, pack, write; and go on after an interruption."""

import fcntl
import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config import PrepareConfig, SourceConfig
from jaxprune.data import attempt, shards, storage, tokenizer
from jaxprune.data.builder import Builder
from jaxprune.data.corpus import Reader, documents, files, size_hint
from jaxprune.data.encode import Encoded, encoded, text_hash
from jaxprune.data.progress import progress
from jaxprune.data.storage import Place
from jaxprune.data.tokenizer import Vocabulary

log = logging.getLogger(__name__)

SPLITS = ("train", "dev")
_CHUNK_CHARS = 1 << 20  # text tokenised at once


def prepare(cfg: PrepareConfig, out: str | Path) -> dict[str, Any]:
    """Prepared data in `out`, a directory or the URL of one (`gs://...`), and its manifest.

    `out` then holds shards of the splits `train` and `dev`, `tokenizer/`, and `manifest.json`, which is written last.
    Documents are held out by the hash of their text, so equal texts fall in one split. If `out` already holds this very
    data nothing is done; an interrupted attempt goes on after its last full buffer, to the same bytes. A URL has no
    lock: run one prepare at a time. Errors: ValueError on bad input (nothing is left behind if no buffer was full) and
    where `out` was prepared, or begun, with another config.
    """
    place = storage.place(out)
    if (place / shards.MANIFEST).is_file():
        return _existing(cfg, place)
    origin = _origin(cfg)
    vocab = None
    if not (place / attempt.PROGRESS).is_file():  # else what is bad shows before anything is written
        vocab = None if cfg.tokenizer.train_size else tokenizer.load(cfg.tokenizer.path, cfg.tokenizer.revision)
        for source in cfg.sources:
            if source.kind != "builtin":
                next(documents(source))
    with _folder(place), _locked(place):
        begun = _begun(cfg, place, origin)
        try:
            return _build(cfg, place, origin, begun, vocab)
        except BaseException:
            if (place / attempt.PROGRESS).is_file():
                log.warning("prepare: stopped; the same command goes on after the last full buffer")
            else:
                _clear(place)
            raise


@contextmanager
def _folder(out: Place) -> Iterator[None]:
    """Make a local directory; if an error leaves what was made empty, remove it."""
    if not isinstance(out, Path):
        yield
        return
    made = [p for p in (out, *out.parents) if not p.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def _locked(out: Place) -> Iterator[None]:
    """Keep other processes of this machine from preparing the same directory; the lock ends with the process."""
    if not isinstance(out, Path):
        yield
        return
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


def _build(
    cfg: PrepareConfig, out: Place, origin: list[Any], begun: attempt.Attempt | None, vocab: Vocabulary | None
) -> dict[str, Any]:
    if begun is not None:
        vocab, pieces = _load_tokenizer(out, begun.said["tokenizer"]), begun.said["tokenizer"]
    else:
        vocab = vocab or tokenizer.obtain(cfg.tokenizer, lambda: _training_texts(cfg))
        pieces = _save_tokenizer(vocab, out)
    builders = {split: Builder(cfg, out, split, vocab) for split in SPLITS}
    counts: Counter[str] = Counter()
    reader = Reader(cfg.sources)
    if begun is not None:
        counts.update(begun.said["counts"])
        reader = Reader(cfg.sources, begun.said["reader"])
        for split, builder in builders.items():
            builder.restore(begun.said["splits"][split], begun.arrays(split))
        log.info("prepare: going on after %s documents", f"{counts['documents']:,}")
    total = sum(size_hint(source) for source in cfg.sources)
    chunks = encoded(reader.chunks(_CHUNK_CHARS), vocab, cfg.processes)
    with closing(chunks), progress("prepare", total, counts["documents"], counts["chars"]) as advance:
        for found, place in chunks:
            full = sum(builder.buffers for builder in builders.values())
            _add(cfg, found, builders, counts)
            advance(len(found.hashes), found.chars)
            if sum(builder.buffers for builder in builders.values()) > full:
                states = {split: builder.state() for split, builder in builders.items()}
                said = {"config": _recorded(cfg), "sources": origin, "tokenizer": pieces, "counts": counts}
                said |= {"reader": place, "splits": {split: state for split, (state, _) in states.items()}}
                attempt.save(out, said, {split: arrays for split, (_, arrays) in states.items()})
    splits = {split: builder.finish() for split, builder in builders.items()}
    manifest = {
        "format": shards.FORMAT,
        "version": attempt.versions()["jaxprune"],
        "config": _recorded(cfg),
        "sources": origin,
        "blank_documents": reader.blank + counts["blank"],
        "seq_len": cfg.seq_len,
        "next_sentence": cfg.next_sentence,
        "vocab_size": vocab.size,
        "vocab_sha256": vocab.sha256,
        "splits": splits,
        "files": {**builders["train"].writer.files, **builders["dev"].writer.files, **pieces},
    }
    shards.write_manifest(out, manifest)
    attempt.remove(out)
    log.info("prepare: %s examples to train on, %s to evaluate", splits["train"]["examples"], splits["dev"]["examples"])
    return manifest


def _add(cfg: PrepareConfig, found: Encoded, builders: dict[str, Builder], counts: Counter[str]) -> None:
    """Hand a chunk's documents to the builders of their splits."""
    ends = np.cumsum(found.sentences_D)
    token = np.concatenate([[0], np.cumsum(found.lengths_S)])
    for at, (end, size) in enumerate(zip(ends.tolist(), found.sentences_D.tolist())):
        if not size:
            counts["blank"] += 1
            continue
        split = "dev" if held_out(found.hashes[at], cfg.dev_fraction, cfg.seed) else "train"
        builders[split].add(
            counts["documents"] + at,
            found.hashes[at],
            found.tokens_T[token[end - size] : token[end]].copy(),  # a view would keep the whole chunk
            found.lengths_S[end - size : end].copy(),
        )
    counts.update(documents=len(found.hashes), chars=found.chars)


def _save_tokenizer(vocab: Vocabulary, out: Place) -> dict[str, Any]:
    """Write `tokenizer/`; sizes and hashes of its files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(vocab, Path(folder))
        if isinstance(out, Path):
            (out / "tokenizer").mkdir(exist_ok=True)
        return {
            f"tokenizer/{path.name}": shards.write(out, f"tokenizer/{path.name}", path.read_bytes())
            for path in sorted(Path(folder).iterdir())
        }


def _load_tokenizer(out: Place, pieces: dict[str, Any]) -> Vocabulary:
    """The vocabulary that `_save_tokenizer` wrote."""
    with tempfile.TemporaryDirectory() as folder:
        for name in pieces:
            (Path(folder) / Path(name).name).write_bytes((out / name).read_bytes())
        return tokenizer.load(folder)


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


def _recorded(cfg: PrepareConfig) -> dict[str, Any]:
    """The config without what leaves the result as it is."""
    return cfg.model_dump(mode="json", exclude={"processes"})


def _begun(cfg: PrepareConfig, out: Place, origin: list[Any]) -> attempt.Attempt | None:
    """An interrupted attempt at this very data to go on from; else the directory is cleared of what is ours."""
    begun = attempt.load(out)
    if begun is None:
        _clear(out)
        return None
    _same(out, begun.said, cfg, origin, "begun")
    whole = {name: entry for split in SPLITS for name, entry in begun.said["splits"][split]["files"].items()}
    shards.verify(out, {"files": whole | begun.said["tokenizer"]}, hashes=False)
    _clear(out, {*whole, *begun.said["tokenizer"], attempt.PROGRESS})
    return begun


def _existing(cfg: PrepareConfig, out: Place) -> dict[str, Any]:
    """The manifest of finished data, if it is what `cfg` asks for."""
    manifest = shards.read_manifest(out)
    try:
        origin = _origin(cfg)
    except ValueError:  # the corpus is gone, which is no fault once it is prepared
        origin = manifest["sources"]
    _same(out, manifest, cfg, origin, "prepared")
    shards.verify(out, manifest, hashes=False)
    attempt.remove(out)
    log.info("prepare: %s is already prepared with this config; nothing to do", out)
    return manifest


def _same(out: Place, said: dict[str, Any], cfg: PrepareConfig, origin: list[Any], how: str) -> None:
    """Raise ValueError if `out` was prepared or begun from another config or corpus."""
    old, new = _flat(said["config"]), _flat(_recorded(cfg))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if keys:
        said_keys = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)" for key in keys)
        raise ValueError(f"{out}: {how} with another config: {said_keys}; choose another directory or delete this one")
    if said["sources"] != origin:
        raise ValueError(f"{out}: the corpus files have changed since; choose another directory or delete this one")


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists under dotted keys."""
    if isinstance(tree, dict | list | tuple):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, value in pairs for k, v in _flat(value, f"{key}.{name}" if key else str(name)).items()}
    return {key: tree}


_OURS = re.compile(r"((train|dev)-\d{5}\.(ids|info)\.npy|manifest\.json|progress\.npz)(\.tmp)?")


def _clear(out: Place, keep: Collection[str] = ()) -> None:
    """Remove what an unfinished prepare left, but for the names to keep; files of others stay."""
    ours = [(path.name, path) for path in out.glob("*") if _OURS.fullmatch(path.name)]
    ours += [(f"tokenizer/{path.name}", path) for path in (out / "tokenizer").glob("*")]
    for name, path in ours:
        if name not in keep:
            path.unlink()
    if isinstance(out, Path):
        with suppress(OSError):
            (out / "tokenizer").rmdir()
