"""Tokenised documents of one split on their way to its shards: buffered, packed, written."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from jaxprune.config.commands import PrepareConfig
from jaxprune.data.bucket import AnyPath
from jaxprune.data.example_shards import INFO, ShardWriter
from jaxprune.data.packing import Documents, Packing, gather, pack, split_long
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError

_BUFFER_TOKENS = 1 << 25  # tokens among whose documents pairs are drawn; bounds memory to about 400 MB
_GATHER_ROWS = 8192


class TokenizedDocument(NamedTuple):
    """A tokenised document of S sentences and T tokens."""

    number: int
    """Running number in the corpus."""
    text_hash: int
    tokens_T: np.ndarray
    """Ids, no special tokens."""
    lengths_S: np.ndarray
    """Tokens per sentence."""


class SplitWriter:
    """Takes in the documents of one split in order; what it writes depends on them and the config alone."""

    def __init__(self, cfg: PrepareConfig, folder: AnyPath, split: str, vocab: Vocabulary) -> None:
        self.cfg, self.split, self.special = cfg, split, vocab.special
        self.packing = Packing(cfg.seq_len, cfg.next_sentence, cfg.short_seq_prob, cfg.random_next_prob)
        self.shards = ShardWriter(folder, split, cfg.shard_examples)
        self.counts: Counter[str] = Counter()
        self.buffers = 0
        """Buffers packed so far."""
        self._buffer: list[TokenizedDocument] = []
        self._held = 0  # tokens in the buffer
        self._first = 0  # 1 when the buffer starts with a document kept from the last one, as a partner only

    def add(self, document: TokenizedDocument) -> None:
        """Take in a document."""
        if self._held >= _BUFFER_TOKENS and len(self._buffer) > 1:
            self._pack()
        self.counts.update(documents=1, sentences=len(document.lengths_S), tokens=document.tokens_T.size)
        self._hold(document._replace(lengths_S=split_long(document.lengths_S, self.packing.max_tokens)))

    def _hold(self, document: TokenizedDocument) -> None:
        self._buffer.append(document)
        self._held += document.tokens_T.size

    def state(self) -> dict[str, Any]:
        """What another writer needs to go on from here."""
        state = {"counts": dict(self.counts), "buffers": self.buffers, "first": self._first}
        state |= {"files": self.shards.files, "examples": self.shards.examples, "held": self.shards.held()}
        if self._buffer:
            numbers, hashes, tokens, lengths = zip(*self._buffer)
            state |= {"numbers": numbers, "hashes": hashes, "sentences": [*map(len, lengths)]}
            state |= {"tokens": np.concatenate(tokens), "lengths": np.concatenate(lengths)}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; the writer is new."""
        self.counts, self.buffers, self._first = Counter(state["counts"]), state["buffers"], state["first"]
        self.shards.files, self.shards.examples = dict(state["files"]), state["examples"]
        if state["held"]:
            self.shards.add(*state["held"].values())
        if "tokens" in state:
            lengths = np.split(state["lengths"], np.cumsum(state["sentences"])[:-1])
            tokens = np.split(state["tokens"], np.cumsum([int(each.sum()) for each in lengths])[:-1])
            for fields in zip(state["numbers"], state["hashes"], tokens, lengths):
                self._hold(TokenizedDocument(*fields))

    def finish(self) -> dict[str, Any]:
        """Pack and write the rest; the split's counts. Errors: UserError if the split holds too little."""
        if self.counts["documents"] < 1 + self.cfg.next_sentence:
            raise UserError(
                f"the {self.split} split has {self.counts['documents']} document(s), too few"
                f"{' to pair documents (next_sentence)' if self.cfg.next_sentence else ''}; add documents"
                f" or change dev_fraction = {self.cfg.dev_fraction}"
            )
        self._pack()
        self.shards.flush()
        pairs = max(1, self.shards.examples)
        return {
            **{key: self.counts[key] for key in ("documents", "sentences", "tokens")},
            "examples": self.shards.examples,
            "random_next": round(self.counts["random"] / pairs, 4) if self.cfg.next_sentence else None,
        }

    def _pack(self) -> None:
        numbers, hashes, tokens, lengths = zip(*self._buffer)
        docs = Documents(
            np.concatenate(tokens),
            np.cumsum(np.concatenate([[0], *lengths])),
            np.cumsum([0, *map(len, lengths)]),
            np.array(hashes, np.uint64),
        )
        number_D = np.array(numbers, np.uint32)
        special = self.special["cls"], self.special["sep"], self.special["pad"]
        for duplicate in range(self.cfg.duplicates if self.split == "train" else 1):
            seed = f"{self.cfg.seed}/{self.split}/{self.buffers}/{duplicate}"
            plan = pack(docs, self.packing, seed, self._first)
            info = np.zeros(len(plan.a_len), INFO)
            for name in ("a_len", "b_len", "is_random"):
                info[name] = getattr(plan, name)
            info["doc_a"], info["doc_b"] = number_D[plan.doc_a], number_D[plan.doc_b]
            self.counts["random"] += int(plan.is_random.sum())
            for at in range(0, len(info), _GATHER_ROWS):
                rows = slice(at, at + _GATHER_ROWS)
                ids = gather(docs.tokens_T, type(plan)(*(field[rows] for field in plan)), self.cfg.seq_len, *special)
                self.shards.add(ids, info[rows])
        last = self._buffer[-1]
        self.buffers += 1
        self._buffer, self._held, self._first = [], 0, 1
        self._hold(last)
