"""The vocabulary: an existing tokenizer, or a WordPiece one trained on the corpus."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import tokenizers

from jaxprune.config.sections import TokenizerConfig
from jaxprune.config.special_tokens import SpecialTokens
from jaxprune.data import tokenizer_folder
from jaxprune.data.tokenizer_bounds import check_bounds
from jaxprune.data.tokenizer_folder import SETTINGS
from jaxprune.errors import UserError

_ALPHABET = 1000  # letters of a trained vocabulary, at most
_UNLIMITED = 10**9  # transformers writes 1e30 for a length that nobody set


class Vocabulary:
    """A tokenizer with what the data pipeline needs to know of it; its truncation and padding are turned off.

    `files`: those it was read from, by name; `typed`, `cuts_left`: as in `tokenizer_folder.Loaded`. Errors: UserError
    if special tokens are missing.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special: SpecialTokens,
        where: str,
        files: Mapping[str, bytes] | None = None,
        *,
        typed: bool = True,
        cuts_left: bool = False,
    ) -> None:
        check_bounds(tokenizer, where)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        wordpiece = isinstance(tokenizer.model, tokenizers.models.WordPiece)
        missing = [token for token in special if token not in ids]
        if wordpiece and (unknown := getattr(tokenizer.model, "unk_token", "")) not in missing:
            # Without a piece for unknown words (an added token is none) WordPiece fails at a word that it lacks.
            missing += [] if unknown in tokenizer.get_vocab(with_added_tokens=False) else [unknown]
        if missing:
            raise tokenizer_folder.lacks(missing, len(ids), where)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        names = {number: piece for piece, number in sorted(ids.items())}  # an added token may share an id
        self.tokenizer = tokenizer
        self.files = dict(files or {})
        """The files it was read from, by name; empty if it was trained here."""
        self.pieces = tuple(names.get(number, "") for number in range(max(names) + 1))
        """Token of every id; "" where an id is not used."""
        self.special_tokens = special
        self.special = {role: ids[token] for role, token in special._asdict().items()}
        """Role of a special token (`pad`, `unk`, `cls`, `sep`, `mask`) -> id."""
        self.sha256 = hashlib.sha256("\n".join(self.pieces).encode()).hexdigest()
        """Hash of the pieces in order of their ids."""
        self.prefix: str = (getattr(tokenizer.model, "continuing_subword_prefix", "") or "") if wordpiece else ""
        """Mark of a piece that continues a word, "##"; empty if the tokenizer is not WordPiece."""
        self.separators = max(1, tokenizer.num_special_tokens_to_add(True) - 2)
        """`sep` tokens between the texts of a pair: 1 in BERT, 2 in RoBERTa."""
        self._typed = typed
        self.cuts_left = cuts_left
        """Whether a text that is too long loses its beginning, not its end."""
        self._always_text = tokenizer.encode_special_tokens

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.pieces)

    @cached_property
    def second_type(self) -> int:
        """Segment type of the second text of a pair: 1 in BERT, 0 in RoBERTa."""
        unknown = self.special_tokens.unk
        return int(self._typed and 1 in self.tokenizer.encode(unknown, unknown).type_ids)

    @cached_property
    def space(self) -> str:
        """What a sentence after another begins with: " " where the space between them is part of a token, else ""."""
        both, alone, spaced = self.encode(["a a", "a", " a"])
        return " " if both == alone + spaced != alone + alone else ""

    def encode(self, texts: list[str], *, names_as_ids: bool = False) -> list[list[int]]:
        """Ids of each text, without special tokens around it. Uses all cores.

        Names of special tokens in a text are text, so that no text of a corpus can end its own example; with
        `names_as_ids` they become those tokens, as in transformers (unless the folder's own settings say otherwise).
        """
        self.tokenizer.encode_special_tokens = self._always_text or not names_as_ids
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def parse(content: bytes, special: SpecialTokens, where: str) -> Vocabulary:
    """The vocabulary that a tokenizer.json holds. Errors: UserError if it is damaged or lacks special tokens."""
    return Vocabulary(tokenizer_folder.from_json(content, where), special, where)


def load(path: str, revision: str = "", *, special: SpecialTokens) -> Vocabulary:
    """The vocabulary in a directory or on the hub, which encodes as transformers' AutoTokenizer does.

    `special`: the architecture's tokens, for roles that the files give none. Errors: UserError for a missing directory
    or hub name, a damaged file, or missing special tokens.
    """
    return from_files(tokenizer_folder.read_files(path, revision), special, path)


def from_files(contents: Mapping[str, bytes], special: SpecialTokens, where: str) -> Vocabulary:
    """As `load`, from files already read, by name."""
    try:
        tokenizer, special, files, typed, cuts_left = tokenizer_folder.build(contents, special, where)
    except UserError:
        raise
    except (TypeError, LookupError, AttributeError, ValueError, RecursionError) as error:  # values of another kind
        raise UserError(f"{where}: its tokenizer's files are damaged ({error!r}); copy them again") from error
    return Vocabulary(tokenizer, special, where, files, typed=typed, cuts_left=cuts_left)


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


def files(vocab: Vocabulary, *, max_length: int = 0) -> dict[str, bytes]:
    """Contents of the files to write beside a model, by name, as transformers' AutoTokenizer loads them.

    The vocabulary's own, byte for byte. `max_length`, a model's longest sequence in tokens, becomes `model_max_length`
    where the settings give none, so that `truncation=True` cuts there; 0 leaves it out.
    """
    contents = vocab.files or _written(vocab)
    settings = json.loads(contents.get(SETTINGS, b"{}"))
    stated = settings.get("model_max_length")
    if max_length and not (isinstance(stated, int | float) and 0 < stated < _UNLIMITED):
        settings["model_max_length"] = max_length
        contents = contents | {SETTINGS: tokenizer_folder.to_json(settings)}
    return contents


def _written(vocab: Vocabulary) -> dict[str, bytes]:
    """The files of a vocabulary that was trained here."""
    lowercase = bool(getattr(vocab.tokenizer.normalizer, "lowercase", False))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    settings |= {f"{role}_token": token for role, token in vocab.special_tokens._asdict().items()}
    return {
        "tokenizer.json": vocab.tokenizer.to_str(pretty=True).encode(),
        "vocab.txt": "".join(piece + "\n" for piece in vocab.pieces).encode(),
        SETTINGS: tokenizer_folder.to_json(settings),
    }


def obtain(cfg: TokenizerConfig, texts: Callable[[], Iterable[str]], special: SpecialTokens) -> Vocabulary:
    """The vocabulary a config asks for; `texts` are read only to train one."""
    if cfg.train_size:
        return train(texts, cfg.train_size, lowercase=cfg.lowercase, special=special)
    return load(cfg.path, cfg.revision, special=special)
