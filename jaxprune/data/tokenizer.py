"""The vocabulary: an existing WordPiece tokenizer, or one trained on the corpus."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers

from jaxprune.config.sections import TokenizerConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.errors import UserError

_ALPHABET = 1000  # letters of a trained vocabulary, at most
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Vocabulary:
    """A tokenizer with what the data pipeline needs to know of it; its truncation and padding are turned off.

    Errors: UserError if special tokens are missing.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: SpecialTokens, where: str) -> None:
        ids = tokenizer.get_vocab(with_added_tokens=True)
        _check_special(ids, special, where)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        names = {number: piece for piece, number in ids.items()}
        self.tokenizer = tokenizer
        self.pieces = tuple(names.get(number, "") for number in range(max(names) + 1))
        """Token of every id; "" where an id is not used."""
        self.special_tokens = special
        self.special = {role: ids[token] for role, token in special._asdict().items()}
        """Role of a special token (`pad`, `unk`, `cls`, `sep`, `mask`) -> id."""
        self.sha256 = hashlib.sha256("\n".join(self.pieces).encode()).hexdigest()
        """Hash of the pieces in order of their ids."""
        wordpiece = isinstance(tokenizer.model, tokenizers.models.WordPiece)
        self.prefix: str = (getattr(tokenizer.model, "continuing_subword_prefix", "") or "") if wordpiece else ""
        """Mark of a piece that continues a word, "##"; empty if the tokenizer is not WordPiece."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.pieces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text without special tokens, whose names in a text are text. Uses all cores."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _check_special(ids: dict[str, int], special: SpecialTokens, where: str) -> None:
    missing = [token for token in special if token not in ids]
    if missing:
        raise UserError(
            f"tokenizer {where}: its {len(ids)} tokens lack {', '.join(missing)}; use a vocabulary of this architecture"
            " or set train_size"
        )


def parse(content: bytes, special: SpecialTokens, where: str) -> Vocabulary:
    """The vocabulary that a tokenizer.json holds. Errors: UserError if it is damaged or lacks special tokens."""
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{where}: not a readable tokenizer ({error}); copy it again") from error
    return Vocabulary(tokenizer, special, where)


def load(path: str, revision: str = "", *, special: SpecialTokens) -> Vocabulary:
    """The vocabulary in a directory or on the hub: tokenizer.json, or vocab.txt (casing: tokenizer_config.json).

    Errors: UserError for a missing directory or hub name, a damaged file, or missing special tokens.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise UserError(f"tokenizer.path {path}: no such directory; give one with tokenizer.json or vocab.txt")
        folder = _download(path, revision)
    whole, plain, config = folder / "tokenizer.json", folder / "vocab.txt", folder / "tokenizer_config.json"
    if whole.is_file():
        return parse(whole.read_bytes(), special, str(whole))
    if not plain.is_file():
        raise UserError(f"tokenizer.path {path}: holds neither tokenizer.json nor vocab.txt")
    try:
        settings = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        pieces = plain.read_text("utf-8").splitlines()
    except ValueError as error:  # not UTF-8, not JSON
        raise UserError(f"tokenizer.path {path}: {error}") from error
    ids = {piece: number for number, piece in enumerate(pieces)}
    _check_special(ids, special, path)
    return Vocabulary(_wordpiece(ids, bool(settings.get("do_lower_case", True)), special), special, path)


def _download(name: str, revision: str) -> Path:
    """The tokenizer files of a hub model, in the hub's cache."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"tokenizer.path {name}: no directory here, and the hub gave none ({reason}); go online or give a directory"
        ) from error


def _wordpiece(ids: dict[str, int], lowercase: bool, special: SpecialTokens) -> tokenizers.Tokenizer:
    """BERT's tokenizer over a vocabulary (piece -> id)."""
    roles = {f"{role}_token": token for role, token in special._asdict().items()}
    bert = tokenizers.BertWordPieceTokenizer(ids, lowercase=lowercase, **roles)  # lower-casing also strips accents
    return tokenizers.Tokenizer.from_str(bert.to_str())


def train(texts: Callable[[], Iterable[str]], size: int, *, lowercase: bool, special: SpecialTokens) -> Vocabulary:
    """A WordPiece vocabulary of at most `size` pieces trained on the texts, which are read twice; `special` come first.

    The same texts give the same pieces: the alphabet is handed to the trainer in a fixed order, since its own order
    (and with it the ties between pieces) changes from run to run. Errors: UserError if `size` is below the alphabet.
    """
    bert = tokenizers.BertWordPieceTokenizer(lowercase=lowercase, unk_token=special.unk)
    letters: Counter[str] = Counter()
    for text in texts():
        letters.update(bert.normalize(text))
    ordered = sorted((c for c in letters if not c.isspace()), key=lambda c: (-letters[c], c))[:_ALPHABET]
    alphabet = sorted(ordered)
    first = [*special, *alphabet, *("##" + c for c in alphabet)]
    if size < len(first):
        raise UserError(f"tokenizer.train_size = {size}: the corpus' letters alone need {len(first)} pieces; raise it")
    bert.train_from_iterator(
        texts(),
        size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=first,
        show_progress=False,
    )
    # Built again from the bare pieces, so that a trained, a saved and a loaded vocabulary are one and the same.
    return Vocabulary(_wordpiece(bert.get_vocab(), lowercase, special), special, "trained here")


def files(vocab: Vocabulary) -> dict[str, bytes]:
    """Contents of tokenizer.json, vocab.txt and tokenizer_config.json, as transformers' AutoTokenizer loads them."""
    lowercase = bool(getattr(vocab.tokenizer.normalizer, "lowercase", False))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    settings |= {f"{role}_token": token for role, token in vocab.special_tokens._asdict().items()}
    contents = {
        "tokenizer.json": vocab.tokenizer.to_str(pretty=True),
        "vocab.txt": "".join(piece + "\n" for piece in vocab.pieces),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
    return {name: content.encode() for name, content in contents.items()}


def obtain(cfg: TokenizerConfig, texts: Callable[[], Iterable[str]], special: SpecialTokens) -> Vocabulary:
    """The vocabulary a config asks for; `texts` are read only to train one."""
    if cfg.train_size:
        return train(texts, cfg.train_size, lowercase=cfg.lowercase, special=special)
    return load(cfg.path, cfg.revision, special=special)
