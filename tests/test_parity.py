"""Our BERT against transformers' torch BERT in float32: committed numbers, and live under the `parity` mark.

Errors are relative norms: |ours - torch| / |torch| in the 2-norm of one tensor, below 1e-4.
"""

from functools import cache, partial

import jax
import numpy as np
import pytest
from make_bert_golden import CASES, FIXTURES, as_torch, make_batch, randomize, reference
from safetensors.numpy import load_file

from jaxprune.config.sections import ModelConfig
from jaxprune.models.bert import BERT, bert
from jaxprune.models.losses import classification_loss, pretraining_loss, regression_loss
from jaxprune.models.tensors import params_from_tensors, params_to_tensors

TOLERANCE = 1e-4
QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: half the compile time, which is most of these tests' time."""
KEY_BIAS = ("attention.self.key.bias", "attention.k_lin.bias")
"""Softmax ignores a shift of all scores, so this gradient is 0 in exact arithmetic and rounding noise in float32."""


def relative(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def loss_and_gradients(loss_fn, params, batch):
    def loss(params):
        terms, _ = loss_fn(params, (), batch, None)
        losses = {name: total / count for name, (total, count) in terms.items()}
        return sum(losses.values()), losses

    (_, losses), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return losses, grads


@cache
def pretraining_run(name):
    """One compiled function per case: params, batch -> everything that the reference has."""
    cfg = ModelConfig(**CASES[name]["config"])
    apply = bert(cfg, head="pretraining").apply

    @partial(jax.jit, compiler_options=QUICK)
    def run(params, batch):
        out = apply(params, batch, hidden_states=True)
        whole = apply(params, {name: x for name, x in batch.items() if name != "masked_positions"})
        losses, grads = loss_and_gradients(pretraining_loss(apply), params, batch)
        outputs = {
            "mlm_logits": out["mlm_logits"],
            "all_mlm_logits": whole["mlm_logits"],
            "nsp_logits": out["nsp_logits"],
            "mlm_loss": losses["mlm"],
            "nsp_loss": losses["nsp"],
        }
        return outputs | {f"hidden_{i:02d}": state for i, state in enumerate(out["hidden_states"])}, grads

    return run


def assert_same_gradients(ours, theirs):
    whole = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in theirs.values()))
    assert ours.keys() == theirs.keys()
    for name, theirs_one in theirs.items():
        if name.endswith(KEY_BIAS):
            assert np.linalg.norm(ours[name]) < 1e-5 * whole, name
        else:
            assert relative(ours[name], theirs_one) < TOLERANCE, name


def assert_pretraining_parity(name, tensors, batch, expected):
    params, fresh = params_from_tensors(BERT, tensors, ModelConfig(**CASES[name]["config"]), head="pretraining")
    assert not fresh
    with jax.default_matmul_precision("highest"):
        ours, grads = pretraining_run(name)(params, batch)
    grads_hf = {key.removeprefix("grad:"): value for key, value in expected.items() if key.startswith("grad:")}
    theirs = {key: value for key, value in expected.items() if not key.startswith("grad:")}
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert relative(ours[key], value) < TOLERANCE, key
    assert_same_gradients(params_to_tensors(BERT, grads), grads_hf)


def golden(name):
    tensors = load_file(FIXTURES / f"bert_golden_{name}.safetensors")
    arrays = dict(np.load(FIXTURES / f"bert_golden_{name}.npz"))
    batch, expected = (
        {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        for prefix in ("in:", "out:")
    )
    return tensors, batch, expected


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    assert_pretraining_parity(name, *golden(name))


@pytest.mark.parametrize("name", CASES)
def test_golden_notices_a_wrong_weight(name):
    """The comparison has teeth: 1 % on one matrix of the last layer breaks it."""
    tensors, batch, expected = golden(name)
    last = f"bert.encoder.layer.{CASES[name]['config']['num_hidden_layers'] - 1}.output.dense.weight"
    tensors[last] = tensors[last] * np.float32(1.01)
    with pytest.raises(AssertionError):
        assert_pretraining_parity(name, tensors, batch, expected)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_live_pretraining(name):
    pytest.importorskip("torch")
    assert_pretraining_parity(name, *reference(CASES[name], seed=100))


@pytest.mark.parity
@pytest.mark.parametrize(
    "name,head,num_labels", [("gelu", "classification", 3), ("gelu_new", "regression", 0), ("padded", "regression", 0)]
)
def test_live_fine_tuning(name, head, num_labels):
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification

    case, rng = CASES[name], np.random.default_rng(7)
    config = BertConfig(**case["config"], num_labels=num_labels or 1, attn_implementation="eager")
    model = BertForSequenceClassification(config).eval()
    randomize(model, seed=7)
    batch = make_batch(case, seed=7)
    B = case["batch"]
    labels = rng.integers(0, num_labels, B) if num_labels else rng.standard_normal(B).astype(np.float32)
    theirs = model(**as_torch(batch), labels=torch.from_numpy(labels))
    theirs.loss.backward()

    cfg = ModelConfig(**case["config"])
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    params, fresh = params_from_tensors(BERT, tensors, cfg, head=head, num_labels=num_labels)
    assert not fresh
    apply = bert(cfg, head=head, num_labels=num_labels).apply
    make_loss = classification_loss if num_labels else regression_loss
    loss_fn = make_loss(apply)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, b: (apply(p, b)["logits"], *loss_and_gradients(loss_fn, p, b)), compiler_options=QUICK)
        logits, losses, grads = run(params, batch | {"labels": labels.astype(np.int32 if num_labels else np.float32)})
    assert relative(logits, theirs.logits.detach().numpy().reshape(logits.shape)) < TOLERANCE
    assert relative(losses[head], theirs.loss.detach().numpy()) < TOLERANCE
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert_same_gradients(params_to_tensors(BERT, grads), gradients)
