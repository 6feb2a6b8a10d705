"""Prepare training examples; the dry run says what they would be made of."""

from pathlib import Path

from jaxprune.config.commands import PrepareConfig
from jaxprune.data import corpus, tokenizer
from jaxprune.data.corpus_files import size_hint, unread_files
from jaxprune.data.data_manifest import MANIFEST
from jaxprune.data.prepare import prepare
from jaxprune.data.written_names import NAMES
from jaxprune.errors import UserError
from jaxprune.experiments.own_folder import check_own
from jaxprune.models import architecture_named


def prepare_data(cfg: PrepareConfig, workdir: Path, *, dry_run: bool = False) -> None:
    """Write prepared data to `workdir`; the same call again does nothing. `dry_run` checks sources and tokenizer."""
    record = architecture_named(cfg.architecture, "architecture")
    if cfg.next_sentence and not record.next_sentence:
        raise UserError(
            f"next_sentence = true: a {record.name} is not trained on pairs of segments; set next_sentence: false"
        )
    check_own(workdir, (MANIFEST, NAMES))
    if not dry_run:
        manifest = prepare(cfg, workdir, record.special_tokens)
        for split, counts in manifest["splits"].items():
            documents, tokens, examples = (f"{counts[key]:,} {key}" for key in ("documents", "tokens", "examples"))
            print(f"{split}: {documents}, {tokens}, {examples}")
        return
    if cfg.tokenizer.path:
        vocabulary = tokenizer.load(cfg.tokenizer.path, cfg.tokenizer.revision, special=record.special_tokens)
        print(f"tokenizer: {vocabulary.size:,} pieces")
    else:
        print(f"tokenizer: {cfg.tokenizer.train_size:,} pieces, trained on the corpus")
    for source in cfg.sources:
        first = next(corpus.documents(source))
        size = size_hint(source)
        about = f"about {size / 1e6:,.0f} MB of text" if size else "size unknown until read"
        print(f"{corpus.label(source)}: {about}; begins {first[:60]!r}")
        if unread := unread_files(source):
            print(unread)
    kind = "pairs of segments" if cfg.next_sentence else "single segments"
    print(f"examples: {kind} of {cfg.seq_len} tokens, {cfg.dev_fraction:.1%} of the documents held out")
