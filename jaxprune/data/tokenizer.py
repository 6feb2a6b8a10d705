"""The vocabulary: an existing WordPiece tokenizer, or one trained on the corpus."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxprune.config import TokenizerConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens; a trained vocabulary starts with them."""
_ALPHABET = 1000  # letters of a trained vocabulary, at most
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with what the data pipeline needs to know of it."""

    tokenizer: tokenizers.Tokenizer
    pieces: tuple[str, ...]
    """Token of every id; "" where an id is not used."""
    special: dict[str, int]
    """Id of each of SPECIAL."""
    sha256: str
    """Hash of the pieces in order of their ids."""
    prefix: str
    """Mark of a piece that continues a word, "##"; empty if the tokenizer is not WordPiece."""
    lowercase: bool

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text without special tokens; "[MASK]" in a text is text, not the token. Uses all cores."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def vocabulary(tokenizer: tokenizers.Tokenizer, where: str) -> Vocabulary:
    """Wrap a tokenizer. Errors: ValueError if special tokens are missing."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise ValueError(f"tokenizer {where}: lacks {', '.join(missing)}; use a BERT vocabulary or set train_size")
    pieces = [""] * (max(ids.values()) + 1)
    for piece, i in ids.items():
        pieces[i] = piece
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return Vocabulary(
        tokenizer=tokenizer,
        pieces=tuple(pieces),
        special={token: ids[token] for token in SPECIAL},
        sha256=hashlib.sha256("\n".join(pieces).encode()).hexdigest(),
        prefix=getattr(tokenizer.model, "continuing_subword_prefix", "") or ""
        if isinstance(tokenizer.model, models.WordPiece)
        else "",
        lowercase=bool(getattr(tokenizer.normalizer, "lowercase", False)),
    )


def load(path: str, revision: str = "") -> Vocabulary:
    """The vocabulary in a directory or on the hub: tokenizer.json, or vocab.txt (casing: tokenizer_config.json).

    Errors: ValueError for a missing directory or hub name, a damaged file, or missing special tokens.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise ValueError(f"tokenizer.path {path}: no such directory; give one with tokenizer.json or vocab.txt")
        folder = _download(path, revision)
    whole, plain, config = folder / "tokenizer.json", folder / "vocab.txt", folder / "tokenizer_config.json"
    if whole.is_file():
        try:
            return vocabulary(tokenizers.Tokenizer.from_file(str(whole)), path)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{whole}: not a readable tokenizer ({error}); copy it again") from error
    if not plain.is_file():
        raise ValueError(f"tokenizer.path {path}: holds neither tokenizer.json nor vocab.txt")
    try:
        settings = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        pieces = plain.read_text("utf-8").splitlines()
    except ValueError as error:
        raise ValueError(f"tokenizer.path {path}: {error}") from error
    lowercase = bool(settings.get("do_lower_case", True))
    return vocabulary(wordpiece({piece: i for i, piece in enumerate(pieces)}, lowercase), path)


def _download(name: str, revision: str) -> Path:
    """The tokenizer files of a hub model, in the hub's cache."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"tokenizer.path {name}: no directory here, and the hub gave none ({reason}); go online or give a directory"
        ) from error


def wordpiece(vocab: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer over a vocabulary (piece -> id), which may still be empty; lower-casing also strips accents."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if vocab:
        _finish(tokenizer, vocab)
    return tokenizer


def _finish(tokenizer: tokenizers.Tokenizer, vocab: dict[str, int]) -> None:
    known = [token for token in SPECIAL if token in vocab]
    tokenizer.add_special_tokens(known)
    if "[CLS]" in vocab and "[SEP]" in vocab:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
        )


def train(texts: Callable[[], Iterable[str]], size: int, lowercase: bool) -> Vocabulary:
    """A WordPiece vocabulary of at most `size` pieces trained on the texts, which are read twice; SPECIAL come first.

    The same texts give the same pieces: the alphabet is handed to the trainer in a fixed order, since its own order
    (and with it the ties between pieces) changes from run to run. Errors: ValueError if `size` is below the alphabet.
    """
    tokenizer = wordpiece({}, lowercase)
    letters: Counter[str] = Counter()
    for text in texts():
        letters.update(tokenizer.normalizer.normalize_str(text))
    ordered = sorted((c for c in letters if not c.isspace()), key=lambda c: (-letters[c], c))[:_ALPHABET]
    alphabet = sorted(ordered)
    first = [*SPECIAL, *alphabet, *("##" + c for c in alphabet)]
    if size < len(first):
        raise ValueError(f"tokenizer.train_size = {size}: the corpus' letters alone need {len(first)} pieces; raise it")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    tokenizer.train_from_iterator(texts(), trainer)
    # Built again from the bare pieces, so that a trained, a saved and a loaded vocabulary are one and the same.
    return vocabulary(wordpiece(tokenizer.get_vocab(), lowercase), "trained here")


def save(vocab: Vocabulary, folder: Path) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json, as transformers' AutoTokenizer loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab.tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in vocab.pieces), "utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocab.lowercase,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def obtain(cfg: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Vocabulary:
    """The vocabulary a config asks for; `texts` are read only to train one."""
    return train(texts, cfg.train_size, cfg.lowercase) if cfg.train_size else load(cfg.path, cfg.revision)
