"""Losses of tasks against torch and transformers: class weights, several labels per text, rows of several examples."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxprune.config.sections import ModelConfig
from jaxprune.data.examples import Examples, example_weights
from jaxprune.data.tasks import Task
from jaxprune.errors import UserError
from jaxprune.models.bert import bert
from jaxprune.models.folder import write_folder
from jaxprune.models.losses import LOSSES
from jaxprune.models.model import Head

TINY = ModelConfig(
    vocab_size=32,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def loss_and_gradient(head: Head, logits: np.ndarray, batch: dict[str, Any]):
    """The loss of a model whose params are its logits, and the gradient by them."""

    def mean(params):
        terms, metrics = LOSSES[head](lambda params, batch, key: {"logits": params})(params, (), batch, None)
        ((total, count),) = terms.values()
        return total / count, metrics

    (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
    return loss, gradient, {name: float(total / count) for name, (total, count) in metrics.items()}


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_class_weights_are_those_of_torch(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    logits, weight = rng.normal(size=(12, 3)).astype(np.float32), rng.uniform(0.1, 4, 3).astype(np.float32)
    labels = rng.integers(0, 3, 12).astype(np.int32)
    task = Task("t", "", ("a",), "b", ("x", "y", "z"), ("accuracy",), class_weights=tuple(map(float, weight)))
    weights = example_weights(Examples(task, "made up", [""] * 12, None, labels))
    loss, gradient, _ = loss_and_gradient("classification", logits, {"labels": labels, "example_weights": weights})
    theirs = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.CrossEntropyLoss(torch.tensor(weight))(theirs, torch.tensor(labels).long())
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("width", [1, 4])
def test_several_labels_are_those_of_torch(width):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(width)
    logits = rng.normal(size=(9, width)).astype(np.float32) * 20  # far enough for a naive log to overflow
    labels = rng.integers(0, 2, (9, width)).astype(np.float32)
    batch = {"labels": labels, "example_weights": np.array([1] * 7 + [0] * 2, np.float32)}
    loss, gradient, metrics = loss_and_gradient("multi_label", logits, batch)
    theirs = torch.tensor(logits, requires_grad=True)
    reference = torch.nn.BCEWithLogitsLoss()(theirs[:7], torch.tensor(labels)[:7])
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)
    assert metrics["label_accuracy"] == pytest.approx(np.mean((logits > 0)[:7] == labels[:7]))


HEADS: tuple[Head, ...] = ("classification", "multi_label", "regression")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_of_several_examples_lose_what_each_alone_does(head, weighted):
    rng = np.random.default_rng(0)
    shape = (6, 3)[: 1 if head == "regression" else 2]
    logits = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(0, 2, shape if head == "multi_label" else 6)
    labels = labels.astype(np.int32 if head == "classification" else np.float32)
    weights = {"example_weights": rng.uniform(0, 2, 6).astype(np.float32)} if weighted else {}
    flat = loss_and_gradient(head, logits, {"input_ids": np.zeros((6, 4)), "labels": labels, **weights})
    rows = {name: value.reshape(2, 3, *value.shape[1:]) for name, value in {"labels": labels, **weights}.items()}
    rows |= {"input_ids": np.zeros((2, 12)), "starts": np.zeros((2, 3), np.int32)}
    packed = loss_and_gradient(head, logits.reshape(2, 3, *shape[1:]), rows)
    np.testing.assert_allclose(packed[0], flat[0], rtol=1e-6)
    np.testing.assert_allclose(packed[1], flat[1].reshape(2, 3, *shape[1:]), rtol=1e-5, atol=1e-7)
    assert packed[2] == pytest.approx(flat[2])


@pytest.mark.parity
@pytest.mark.parametrize("labels", [1, 3])
def test_transformers_trains_on_a_multi_label_folder_with_the_same_loss(tmp_path, labels):
    torch = pytest.importorskip("torch")
    import transformers

    model = bert(TINY, head="multi_label", num_labels=labels)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    names = {"id2label": {str(i): f"tag {i}" for i in range(labels)}}
    write_folder(tmp_path / "hf", TINY, params, head="multi_label", extra_config=names)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.problem_type == "multi_label_classification"
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {"input_ids": rng.integers(1, 32, (5, 7)), "attention_mask": np.ones((5, 7), int)}
    batch = {name: value.astype(np.int32) for name, value in batch.items()}
    batch["token_type_ids"] = np.zeros((5, 7), np.int32)
    truth = rng.integers(0, 2, (5, labels)).astype(np.float32)
    out = theirs(**{name: torch.tensor(value) for name, value in batch.items()}, labels=torch.tensor(truth))
    logits = model.apply(params, batch)["logits"]
    assert logits.shape == (5, labels)
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-6)
    batch["labels"] = truth
    terms, _ = LOSSES["multi_label"](model.apply)(params, (), batch, None)
    assert float(terms["multi_label"][0] / terms["multi_label"][1]) == pytest.approx(out.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("head", "labels"), [("multi_label", 0), ("classification", 1), ("regression", 2)])
def test_a_width_that_does_not_suit_the_head(head, labels):
    with pytest.raises(UserError, match=f"num_labels = {labels} does not suit head = '{head}'"):
        bert(TINY, head=head, num_labels=labels)
