"""An architecture beside transformers' torch model of the same weights: outputs, losses, gradients, files.

`model` is transformers', of random weights; `cfg` ours of the same shape. Errors are as in `test_parity.py`.
"""

import json
from functools import partial

import jax
import numpy as np
from make_bert_golden import as_torch, make_batch
from test_parity import QUICK, TOLERANCE, assert_same_gradients, loss_and_gradients, relative

from jaxprune.models.folder import read_folder, write_folder
from jaxprune.models.losses import LOSSES
from jaxprune.models.tensors import params_from_tensors, params_to_tensors

SEGMENTS = "token_type_ids"


def batch_of(case, seed=0):
    """Without segment types and next sentences, as the data of an architecture that has neither may be."""
    return {key: x for key, x in make_batch(case, seed).items() if key not in (SEGMENTS, "next_sentence_label")}


def torch_inputs(batch):
    """The model inputs of such a batch as torch tensors."""
    inputs = as_torch(batch | {SEGMENTS: batch["input_ids"]})
    return {key: x for key, x in inputs.items() if key != SEGMENTS}


def tensors_of(model):
    """{name: values} of a torch model."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def gradients_of(record, model):
    """{name: gradient} of a torch model after `backward`, a tied matrix's under the name that our files have."""
    return {dict(record.tied).get(name, name): parameter.grad.numpy() for name, parameter in model.named_parameters()}


def assert_pretraining_parity(record, cfg, model, batch):
    """Masked-LM logits at some positions and at all, hidden states, loss and gradients."""
    import torch

    out = model(**torch_inputs(batch), output_hidden_states=True)
    rows = torch.arange(len(batch["input_ids"]))[:, None]
    some = out.logits[rows, torch.from_numpy(batch["masked_positions"]).long()]
    real = torch.from_numpy(batch["masked_weights"]) > 0
    mlm = torch.nn.functional.cross_entropy(some[real], torch.from_numpy(batch["masked_ids"]).long()[real])
    mlm.backward()

    params, fresh = params_from_tensors(record, tensors_of(model), cfg, head="pretraining")
    assert not fresh
    apply = record.build(cfg, head="pretraining").apply
    loss_fn = LOSSES["pretraining"](apply)
    with jax.default_matmul_precision("highest"):

        @partial(jax.jit, compiler_options=QUICK)
        def run(params, batch):
            whole = apply(params, {name: x for name, x in batch.items() if name != "masked_positions"})["mlm_logits"]
            return apply(params, batch, hidden_states=True), whole, *loss_and_gradients(loss_fn, params, batch)

        ours, whole, losses, grads = run(params, batch)
    assert set(ours) == {"mlm_logits", "hidden_states"} and set(losses) == {"mlm"}
    assert relative(ours["mlm_logits"], some.detach().numpy()) < TOLERANCE
    assert relative(whole, out.logits.detach().numpy()) < TOLERANCE
    assert len(ours["hidden_states"]) == cfg.num_hidden_layers + 1
    for state, theirs in zip(ours["hidden_states"], out.hidden_states, strict=True):
        assert relative(state, theirs.detach().numpy()) < TOLERANCE
    assert relative(losses["mlm"], mlm.detach().numpy()) < TOLERANCE
    assert_same_gradients(params_to_tensors(record, grads), gradients_of(record, model))


def assert_fine_tuning_parity(record, cfg, model, batch, num_labels):
    """Logits, loss and gradients of a classifier, or with `num_labels` 0 of a regression head."""
    import torch

    rng, size = np.random.default_rng(7), len(batch["input_ids"])
    labels = rng.integers(0, num_labels, size) if num_labels else rng.standard_normal(size).astype(np.float32)
    theirs = model(**torch_inputs(batch), labels=torch.from_numpy(labels))
    theirs.loss.backward()

    head = "classification" if num_labels else "regression"
    params, fresh = params_from_tensors(record, tensors_of(model), cfg, head=head, num_labels=num_labels)
    assert not fresh
    apply = record.build(cfg, head=head, num_labels=num_labels).apply
    loss_fn = LOSSES[head](apply)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, b: (apply(p, b)["logits"], *loss_and_gradients(loss_fn, p, b)), compiler_options=QUICK)
        logits, losses, grads = run(params, batch | {"labels": labels.astype(np.int32 if num_labels else np.float32)})
    assert relative(logits, theirs.logits.detach().numpy().reshape(logits.shape)) < TOLERANCE
    assert relative(losses[head], theirs.loss.detach().numpy()) < TOLERANCE
    assert_same_gradients(params_to_tensors(record, grads), gradients_of(record, model))


def assert_written_and_read_both_ways(cfg, model, folder, kind, head, num_labels):
    """transformers writes, we read, we write, transformers reads: the same class, config and bits."""
    import transformers

    model.save_pretrained(folder / "theirs")
    read = read_folder(folder / "theirs", head=head, num_labels=num_labels)
    assert (read.model, read.masks, read.fresh) == (cfg, None, ())
    raw = json.loads((folder / "theirs" / "config.json").read_text())
    write_folder(folder / "ours", read.model, read.params, head=head, extra_config=raw)
    auto = getattr(transformers, f"AutoModelFor{kind}")
    again, info = auto.from_pretrained(folder / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    assert type(again) is type(model)
    for (key, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), key
    written = json.loads((folder / "ours" / "config.json").read_text())
    assert written == raw | {"dtype": "float32"} | {
        key: written[key] for key in ("tie_word_embeddings", "problem_type") if key in written
    }
