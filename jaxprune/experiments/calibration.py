"""Texts that a model reads before it is pruned in one shot: what a criterion observes of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.sections import DataConfig
from jaxprune.data import tokenizer
from jaxprune.data.bucket import any_path
from jaxprune.data.masking import Masking, mask
from jaxprune.data.text_lines import lines
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.errors import UserError
from jaxprune.experiments.weights import Weights, check_vocabulary, completed, lacking
from jaxprune.models import architecture_named
from jaxprune.models.hub import find_folder
from jaxprune.models.losses import LOSSES
from jaxprune.models.model import Batch
from jaxprune.pruning.interface import Criterion
from jaxprune.pruning.masks import apply_masks, on_prunable

LENGTH = 128
"""Tokens of a text at most; what is longer is cut."""
_ROWS = 8  # texts of a batch


class Calibration(NamedTuple):
    """Texts as token ids."""

    ids: np.ndarray
    """(N, L) int32, padded."""
    lengths: np.ndarray
    """(N,) int64."""
    vocabulary: Vocabulary


def read_texts(path: str, texts: int, weights: Weights, folder: str) -> Calibration:
    """The first `texts` lines of a file that are not empty, as the tokenizer of the model directory `folder` has them.

    UserError for a file that cannot be read or has no text, and for a tokenizer that does not suit the model.
    """
    record = architecture_named(weights.model.architecture)
    where = encoder_part(find_folder(folder, None))
    vocabulary = tokenizer.load(str(where), special=record.special_tokens)
    check_vocabulary(vocabulary, weights.model, f"tokenizer {folder}", folder)
    if not Path(path).expanduser().is_file():
        raise UserError(f"--calibration {path}: no such file; give one with a text per line")
    held = []
    for _, line in lines(any_path(Path(path).expanduser())):
        if line.strip():
            held.append(line.strip())
        if len(held) == texts:
            break
    if not held:
        raise UserError(f"--calibration {path}: has no text; give a file with one per line")
    length = min(LENGTH, record.max_tokens(weights.model))
    cls, sep = vocabulary.special["cls"], vocabulary.special["sep"]
    rows = [[cls, *ids[: length - 2], sep] for ids in vocabulary.encode(held)]
    lengths = np.array([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), vocabulary.special["pad"], np.int32)
    for row, pieces in zip(ids, rows):
        row[: len(pieces)] = pieces
    return Calibration(ids, lengths, vocabulary)


def observed(criterion: Criterion, weights: Weights, masks: Any, texts: Calibration, seed: int) -> Any:
    """The criterion's state when the masked model has read the texts once.

    Inputs are summed over tokens; gradients are those of the masked-LM loss, of one text at a time. UserError for
    gradients of a model without a masked-LM head.
    """
    params = apply_masks(jax.tree.map(jnp.asarray, weights.params), masks)
    state = jax.jit(criterion.init)(params, masks)
    assert criterion.observe is not None
    if criterion.watches == "inputs":
        read = _inputs(criterion, weights)
        batches = _batches(texts, _ROWS)
    else:
        read = _gradients(criterion, weights)
        masking = Masking(DataConfig(), texts.vocabulary, texts.ids.shape[1])
        batches = (_masked(batch, masking, seed, row) for row, batch in enumerate(_batches(texts, 1)))
    read = jax.jit(read, donate_argnums=0)
    for batch in batches:
        state = read(state, params, masks, batch)
    return state


def unread(weights: Weights, masks: Any) -> list[str]:
    """The paths of masks into which no text's inputs go: those of embedding tables, poolers and heads."""
    built = architecture_named(weights.model.architecture).build(weights.model, head="similarity")
    batch = {name: jnp.zeros((2, 8), jnp.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    known = jax.eval_shape(lambda params: built.apply(params, batch, inputs=True)["inputs"], shapes)
    flat: dict[str, Any] = flatten_dict(masks, sep="/")
    return [path for path, leaf in flat.items() if leaf is not None and path not in known]


def _inputs(criterion: Criterion, weights: Weights) -> Any:
    built = architecture_named(weights.model.architecture).build(weights.model, head="similarity")
    whole = completed(weights, built.init, jax.random.key(0))

    def read(state: Any, params: Any, masks: Any, batch: Batch) -> Any:
        inputs = built.apply(_with(whole, params), batch, inputs=True)["inputs"]
        counts = batch["attention_mask"].astype(jnp.float32)[..., None]
        products = {path: _products(x.astype(jnp.float32) * counts) for path, x in inputs.items()}
        flat: dict[str, Any] = flatten_dict(masks, sep="/")
        seen = {path: None if leaf is None else products[path] for path, leaf in flat.items()}
        return criterion.observe(state, params, masks, unflatten_dict(seen, sep="/"))  # pyright: ignore

    return read


def _products(x: jax.Array) -> jax.Array:
    """X^T X (n, n) of inputs (B, L, n)."""
    return jnp.einsum("bln,blm->nm", x, x, precision="highest")


def _gradients(criterion: Criterion, weights: Weights) -> Any:
    built = architecture_named(weights.model.architecture).build(weights.model, head="pretraining")
    heads = [path for path in lacking(weights, built.init) if not path.startswith(("pooler", "nsp"))]
    if heads:
        remedy = "use a criterion of inputs (wanda, obs), or pre-train its heads first"
        raise UserError(f"--criterion: {weights.source} has no {heads[0]}, so no loss to take gradients of; {remedy}")
    whole = completed(weights, built.init, jax.random.key(0))
    loss_fn = LOSSES["pretraining"](built.apply)

    def loss(own: Any, batch: Batch) -> jax.Array:
        total, count = loss_fn(_with(whole, own), (), batch, None)[0]["mlm"]
        return total / jnp.maximum(count, 1)

    def read(state: Any, params: Any, masks: Any, batch: Batch) -> Any:
        grads = jax.grad(loss)(on_prunable(lambda w: w, masks, params), batch)
        return criterion.observe(state, params, masks, grads)  # pyright: ignore

    return read


def _with(whole: Any, own: Any) -> Any:
    """`whole` with those of its leaves that `own` has."""
    flat: dict[str, Any] = flatten_dict(whole, sep="/")
    held: dict[str, Any] = flatten_dict(own, sep="/")
    flat |= {path: held[path] for path in flat if held.get(path) is not None}
    return unflatten_dict(flat, sep="/")


def _batches(texts: Calibration, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `rows` texts; what fills up the last one is padding."""
    for first in range(0, len(texts.ids), rows):
        ids = texts.ids[first : first + rows]
        lengths = texts.lengths[first : first + rows]
        ids = np.pad(ids, ((0, rows - len(ids)), (0, 0)), constant_values=texts.vocabulary.special["pad"])
        lengths = np.pad(lengths, (0, rows - len(lengths)))
        seen = np.arange(ids.shape[1]) < lengths[:, None]
        yield {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": seen.astype(np.int32)}


def _masked(batch: dict[str, np.ndarray], masking: Masking, seed: int, row: int) -> dict[str, np.ndarray]:
    """A batch with tokens to predict, as in pre-training."""
    zero = np.zeros(1, np.int64)
    hidden = mask(batch["input_ids"], batch["attention_mask"].sum(1), masking, seed, zero, zero + row)
    batch |= {"input_ids": hidden.ids_BL, "masked_positions": hidden.positions_BP}
    return batch | {"masked_ids": hidden.targets_BP, "masked_weights": hidden.weights_BP}
