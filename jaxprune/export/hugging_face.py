"""The dense form: a Hugging Face directory with its masks, config, tokenizer and card."""

import logging
from pathlib import Path

import numpy as np

import jaxprune
from jaxprune.export.source import Source
from jaxprune.models.folder import write_masked

log = logging.getLogger("jaxprune")

_CARD = "README.md"


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write the model into the directory `target`, bit-equal, and a card where the source has none.

    UserError where layers differ in shape, which nothing that reads such directories computes.
    """
    source.check_even()
    write_masked(source.name, target, {}, revision=source.revision or None, variant=source.variant)
    if source.model.head_dim:
        log.warning("%s: heads were taken out of it; our commands load it, transformers does not", source.name)
    if not (target / _CARD).exists():
        (target / _CARD).write_text(card(source), encoding="utf-8")


def card(source: Source) -> str:
    """A few lines in Markdown: what the model is and how much of it is 0."""
    kept = source.pruned()
    size = sum(mask.size for mask in kept.values())
    zeros = size - sum(int(np.count_nonzero(mask)) for mask in kept.values())
    total = sum(array.size for array in source.tensors.values())
    share = f"{zeros:,} of the {size:,} weights of {len(kept)} matrices are pruned: exactly 0.\n" if size else ""
    return f"""---
library_name: transformers
tags: [pruning, jaxprune]
---
# {source.folder.resolve().name}
A {source.record.name} of {total:,} weights, written by jaxprune {jaxprune.__version__}.
{share}"""
