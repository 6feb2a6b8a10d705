"""A batch whose rows hold several examples: the logits, loss and gradients of the same examples, one in each row."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from test_architectures import QUICK
from test_glue import BERT, examples, word_level
from test_parity import loss_and_gradients

from jaxprune.config.sections import ModelConfig
from jaxprune.data.task_batches import Batch, Encoded, TaskData, encode
from jaxprune.data.tokenizer import Vocabulary
from jaxprune.models import ARCHITECTURES
from jaxprune.models.losses import LOSSES

COUNT = 14
CLASSES = {"classification": 3, "multi_label": 3, "regression": 0, "similarity": 0}
SHAPE: dict[str, Any] = {
    "vocab_size": 105,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def encoded_for(head: str) -> Encoded:
    """Examples of different lengths and, as class weights make them, different weights."""
    rng = np.random.default_rng(3)
    first, second = (rng.integers(1, 12, COUNT).tolist() for _ in range(2))
    encoded = encode(examples(first, second), Vocabulary(word_level(), BERT, "x"), 40, apart=head == "similarity")
    labels = {
        "classification": rng.integers(0, 3, COUNT).astype(np.int32),
        "multi_label": rng.integers(0, 2, (COUNT, 3)).astype(np.float32),
        "regression": rng.normal(size=COUNT).astype(np.float32),
        "similarity": rng.uniform(0, 1, COUNT).astype(np.float32),
    }[head]
    return dataclasses.replace(encoded, labels=labels, weights=rng.uniform(1, 3, COUNT).astype(np.float32))


def padded(encoded: Encoded) -> Batch:
    """A text per row, with an attention mask."""
    parts = np.split(np.arange(len(encoded.ids)), encoded.ends[:-1])
    batch = {name: np.zeros((len(parts), 41), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    batch["input_ids"][:] = encoded.pad
    for row, part in enumerate(parts):
        batch["input_ids"][row, : len(part)] = encoded.ids[part]
        batch["token_type_ids"][row, : len(part)] = encoded.types[part]
        batch["attention_mask"][row, : len(part)] = 1
    return batch | {"labels": encoded.labels, "example_weights": encoded.weights}


CASES = [("bert", head) for head in CLASSES]
CASES += [("distilbert", "classification"), ("distilbert", "regression")]
CASES += [("xlm-roberta", "multi_label"), ("xlm-roberta", "similarity")]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_the_same_logits_losses_and_gradients(name, head):
    """And, of a last layer computed at all positions, what it gives at first tokens alone."""
    record, cfg, encoded = ARCHITECTURES[name], ModelConfig(architecture=name, **SHAPE), encoded_for(head)
    data = TaskData(encoded, COUNT, 0, multiple=2)
    packed = data.batch(0)
    assert data.shape.rows < COUNT / 2 and (packed["segment_ids"] == 0).any()
    real = packed["example_weights"] > 0
    numbers = [int(np.flatnonzero(encoded.weights == weight)[0]) for weight in packed["example_weights"][real]]
    model = record.build(cfg, head=head, num_labels=CLASSES[head])
    loss_fn = LOSSES[head](model.apply)

    @partial(jax.jit, compiler_options=QUICK)
    def run(key, batches):
        params = model.init(key)
        for path in ("pooler", "classifier", "pre_classifier"):  # logits of about 1
            if path in params:
                params[path] = jax.tree.map(lambda x: 3 * x, params[path])
        results = [
            (model.apply(params, batch)["logits"], *loss_and_gradients(loss_fn, params, batch)) for batch in batches
        ]
        return results, model.apply(params, batches[0], hidden_states=True)["logits"]

    ((ours, plain), whole) = jax.device_get(run(jax.random.key(1), (packed, padded(encoded))))
    assert plain[0].std() > 0.05
    np.testing.assert_allclose(ours[0][real], plain[0][numbers], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole[real], ours[0][real], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[1][head], plain[1][head], rtol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(plain[2]):
        got = gradient_at(ours[2], path)
        np.testing.assert_allclose(got, gradient, atol=1e-5 * max(1, np.abs(gradient).max()), err_msg=str(path))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[2])) > 0.02


def gradient_at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree
