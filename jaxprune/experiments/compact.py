"""Make a pruned model physically smaller: what is 0 as a whole goes, and what a corpus does not use."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxprune.config.sections import SourceConfig
from jaxprune.data import tokenizer
from jaxprune.data.corpus import Reader
from jaxprune.data.vocabulary_cut import cut, kept_ids, used_ids
from jaxprune.errors import UserError
from jaxprune.experiments.own_folder import check_new
from jaxprune.experiments.weights import Weights, check_vocabulary, model_folder, read_weights, shallower
from jaxprune.models import architecture_named
from jaxprune.models.hub import find_folder
from jaxprune.models.smaller import Kept, kept_of, write_smaller
from jaxprune.models.weights import read_weights as read_tensors

_CHUNK = 1 << 20  # characters encoded at once


def compact(
    src: str,
    dst: Path,
    *,
    layers: Sequence[int] = (),
    vocabulary: Sequence[str] = (),
    text_field: str = "text",
    variant: str = "",
    uneven: bool = False,
) -> dict[str, tuple[int, int]]:
    """Write `src` to `dst` without the heads and neurons that are pruned whole; (before, after) of what shrank.

    `src`: a Hugging Face directory or hub name, or the workdir of a run that left a model. Logits stay what they are.
    Every layer keeps as many heads and neurons as the one that needs most; with `uneven` what it needs itself, which
    transformers does not load. `layers`: the only ones that stay, numbered anew in this order, which changes logits.
    `vocabulary`: files of text; pieces that they do not use go, with their rows. UserError, before anything is written,
    when `dst` holds something or nothing is to be taken out.
    """
    check_new(dst)
    if len({*layers}) < len(layers) or min(layers, default=0) < 0:
        raise UserError(f"--layers {' '.join(map(str, layers))}: name each layer once, from 0")
    folder = find_folder(model_folder(src), None)
    weights = read_weights(str(folder), variant=variant)
    shallower(weights.model, layers, src)
    rows, files = _smaller_vocabulary(folder, weights, vocabulary, text_field) if vocabulary else ([], {})
    kept = kept_of(weights.model, weights.params, weights.masks, layers=layers, rows=rows, uneven=uneven)
    if kept.cfg == weights.model and not (vocabulary or layers):
        spare = any(len({*alive}) > 1 for alive in kept.alive.values())
        some = "; --uneven takes out what single layers can spare" if spare else ""
        named = f"nor layer or piece of the vocabulary named (--layers, --vocabulary){some}"
        raise UserError(
            f"{src}: no head or neuron is pruned whole in every layer (--structure heads, neurons), {named}"
        )
    write_smaller(folder, dst, kept, files, variant=variant)
    sizes = _sizes(weights, kept) | {"weights": (_weights(folder, variant), _weights(dst))}
    table = Table("", "before", "after")
    for name, (before, after) in sizes.items():
        table.add_row(name, f"{before:,}", f"{after:,}")
    Console(markup=False).print(table)
    for name, alive in kept.alive.items():
        if len({*alive}) > 1:
            width = "its own" if uneven else f"{max(alive)}, as models have one width (--uneven: each its own)"
            print(f"{name}: layers need {', '.join(map(str, alive))}; each keeps {width}")
    print(f"wrote {dst}")
    return sizes


def _smaller_vocabulary(
    folder: Path, weights: Weights, texts: Sequence[str], field: str
) -> tuple[list[int], dict[str, bytes]]:
    """The ids that stay and the files of the tokenizer that has only them."""
    record = architecture_named(weights.model.architecture)
    whole = tokenizer.load(str(folder), special=record.special_tokens)
    check_vocabulary(whole, weights.model, str(folder), str(folder))
    reader = Reader([SourceConfig(path=str(Path(text).expanduser()), text_field=field) for text in texts])
    used = used_ids(whole, (documents for documents, _ in reader.chunks(_CHUNK)))
    if (
        record.max_tokens(weights.model) < weights.model.max_position_embeddings
    ):  # positions count from the padding's id
        used |= {*range(whole.special["pad"])}
    kept = kept_ids(whole, used | {weights.model.pad_token_id})
    files = cut(whole, kept)
    again = tokenizer.from_files(files, record.special_tokens, str(folder))
    if list(again.pieces) != [whole.pieces[old] for old in kept]:
        raise UserError(f"{folder}: its tokenizer does not work with fewer pieces; leave out --vocabulary")
    return kept, files


def _sizes(weights: Weights, kept: Kept) -> dict[str, tuple[int, int]]:
    """What shrank: numbers of layers, heads, neurons and pieces, before and after."""
    units = architecture_named(weights.model.architecture).units
    most = " a layer" if kept.cfg.even else " a layer at most"
    fields = {"layers": "num_hidden_layers", **{f"{name}{most}": one.count for name, one in units.items()}}
    fields["pieces"] = "vocab_size"
    return {name: (getattr(weights.model, field), getattr(kept.cfg, field)) for name, field in fields.items()}


def _weights(folder: Path, variant: str = "") -> int:
    """The number of weights in a directory."""
    return sum(tensor.size for tensor in read_tensors(folder, None, variant)[1].values())
