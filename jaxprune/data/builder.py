"""Tokenised documents of one split on their way to its shards: buffered, packed, written."""

from collections import Counter
from typing import Any

import numpy as np

from jaxprune.config import PrepareConfig
from jaxprune.data import shards
from jaxprune.data.packing import Documents, Packing, gather, pack, split_long
from jaxprune.data.storage import Place
from jaxprune.data.tokenizer import Vocabulary

_BUFFER_TOKENS = 1 << 25  # tokens among whose documents pairs are drawn; bounds memory to about 400 MB
_GATHER_ROWS = 8192


class Builder:
    """Takes in the documents of one split in order; what it writes depends on them and the config alone."""

    def __init__(self, cfg: PrepareConfig, out: Place, split: str, vocab: Vocabulary) -> None:
        self.cfg, self.split, self.vocab = cfg, split, vocab
        self.packing = Packing(cfg.seq_len, cfg.next_sentence, cfg.short_seq_prob, cfg.random_next_prob)
        self.writer = shards.ShardWriter(out, split, cfg.shard_examples)
        self.dtype = shards.ids_dtype(vocab.size)
        self.counts: Counter[str] = Counter()
        self.buffers = 0
        """Buffers packed so far."""
        self._reset()

    def _reset(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []  # tokens per sentence
        self.numbers: list[int] = []
        self.hashes: list[int] = []
        self.held = 0
        self.first = 0  # 1 when the buffer starts with a document kept from the last one, as a partner only

    def add(self, number: int, text_hash: int, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Take in a document: its running number, hash, ids and tokens per sentence."""
        if self.held >= _BUFFER_TOKENS and len(self.numbers) > 1:
            self._pack()
        self._hold(number, text_hash, tokens, split_long(lengths, self.packing.max_tokens))
        self.counts.update(documents=1, sentences=len(lengths), tokens=tokens.size)

    def _hold(self, number: int, text_hash: int, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.tokens.append(tokens)
        self.lengths.append(lengths)
        self.numbers.append(number)
        self.hashes.append(text_hash)
        self.held += tokens.size

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What another builder needs to go on from here: what JSON can hold, and arrays."""
        said = {"counts": dict(self.counts), "buffers": self.buffers, "first": self.first}
        said |= {"files": self.writer.files, "examples": self.writer.examples}
        arrays: dict[str, np.ndarray] = dict(zip(("ids", "info"), self.writer.held()))
        if self.numbers:
            arrays["tokens"], arrays["lengths"] = np.concatenate(self.tokens), np.concatenate(self.lengths)
            arrays["sentences"] = np.array([len(lengths) for lengths in self.lengths])
            arrays["numbers"], arrays["hashes"] = np.array(self.numbers), np.array(self.hashes, np.uint64)
        return said, arrays

    def restore(self, said: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.counts, self.buffers = Counter(said["counts"]), said["buffers"]
        self.writer.files, self.writer.examples = dict(said["files"]), said["examples"]
        if "ids" in arrays:
            self.writer.add(arrays["ids"], arrays["info"])
        self._reset()
        self.first = said["first"]
        if "tokens" in arrays:
            lengths = np.split(arrays["lengths"], np.cumsum(arrays["sentences"])[:-1])
            tokens = np.split(arrays["tokens"], np.cumsum([int(each.sum()) for each in lengths])[:-1])
            for document in zip(arrays["numbers"].tolist(), arrays["hashes"].tolist(), tokens, lengths):
                self._hold(*document)

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
