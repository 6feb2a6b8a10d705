"""The similarity head: vectors and cosines against transformers and torch, in rows of one or several examples."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from make_bert_golden import randomize
from test_architectures import DISTINCT, QUICK, config
from test_parity import assert_same_gradients, loss_and_gradients, relative

from jaxprune.models import ARCHITECTURES
from jaxprune.models.folder import read_folder, write_folder
from jaxprune.models.losses import LOSSES, similarity_loss
from jaxprune.models.pooling import pair_cosines
from jaxprune.models.tensors import params_from_tensors, params_to_tensors

LENGTHS = (5, 9, 3, 4, 8, 2)
PAIRS = 3
KINDS = pytest.mark.parametrize("pooling", ["mean", "cls"])


@cache
def examples():
    """Token ids of three pairs, one with the padding's id among its own, which RoBERTa does not count."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 40, length).astype(np.int32) for length in LENGTHS]
    ids[1][4] = 0
    return ids


def padded():
    """An example per row."""
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids, types = np.zeros((2, *mask.shape), np.int32)
    for row, example in enumerate(examples()):
        ids[row, : len(example)] = example
        types[row, len(example) // 2 : len(example)] = 1
    return {"input_ids": ids, "attention_mask": mask.astype(np.int32), "token_type_ids": types}


def packed(slots=4, length=22):
    """Two pairs in the first row, one in the second, behind which two of four slots are free."""
    names = ("input_ids", "segment_ids", "position_ids", "token_type_ids")
    batch = {name: np.zeros((2, length), np.int32) for name in names}
    starts = np.zeros((2, slots), np.int32)
    ends = [0, 0]
    for number, example in enumerate(examples()):
        row, slot = divmod(number, slots)
        place = slice(ends[row], ends[row] + len(example))
        values = (example, slot + 1, np.arange(len(example)), np.arange(len(example)) >= len(example) // 2)
        for name, value in zip(names, values, strict=True):
            batch[name][row, place] = value
        starts[row, slot] = ends[row]
        ends[row] = place.stop
    return batch | {"starts": starts, "attention_mask": (batch["segment_ids"] > 0).astype(np.int32)}


LABELS = np.array([0.9, -0.2, 0.4], np.float32)
CLASSES = np.array([0, 1, 2, 1, 0, 2], np.int32)


def in_slots(values, width):
    """`values` in two rows of `width` slots, and which slots they fill."""
    out, real = np.zeros((2, width), values.dtype), np.zeros((2, width), np.float32)
    out.flat[: len(values)], real.flat[: len(values)] = values, 1
    return {"labels": out, "example_weights": real}


@cache
def drawn(name, head):
    record = ARCHITECTURES[name]
    cfg = config(record, 1).model_copy(update={"initializer_range": 0.3, "max_position_embeddings": 16})
    init = record.build(cfg, head=head, num_labels=3 if head == "classification" else 0).init
    return cfg, jax.jit(init, compiler_options=QUICK)(jax.random.key(1))


# --- rows that hold several examples --------------------------------------------------------------------------------


@DISTINCT
def test_rows_that_hold_several_examples_give_the_same_losses_and_gradients(record):
    """Of a classifier and of sentence vectors; positions start anew, attention stays within an example."""
    heads = {"classification": (CLASSES, 4), "similarity": (LABELS, 2)}

    @partial(jax.jit, compiler_options=QUICK)
    def run(params, batches):
        results = {}
        for head, batch in batches.items():
            cfg, labels = drawn(record.name, head)[0], 3 if head == "classification" else 0
            loss_fn = LOSSES[head](record.build(cfg, head=head, num_labels=labels).apply)
            results[head] = loss_and_gradients(loss_fn, params[head], batch)
        return results

    params = {head: drawn(record.name, head)[1] for head in heads}
    plain = run(params, {head: padded() | {"labels": labels} for head, (labels, _) in heads.items()})
    several = run(params, {head: packed() | in_slots(*slots) for head, slots in heads.items()})
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), several, plain)
    for losses, gradients in plain.values():
        assert losses and max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-2


@KINDS
def test_vectors_of_rows_that_hold_several_examples(pooling):
    """Not normalised, of free slots 0 (mean) or never read (cls); of an odd number there are no cosines."""
    record, (cfg, params) = ARCHITECTURES["bert"], drawn("bert", "similarity")
    apply = jax.jit(record.build(cfg, head="similarity", pooling=pooling).apply, compiler_options=QUICK)
    one, several = apply(params, padded()), apply(params, packed())
    assert one["embeddings"].shape == (6, 16) and several["embeddings"].shape == (2, 4, 16)
    assert one["embeddings"].dtype == jnp.float32
    assert (one["logits"].shape, several["logits"].shape) == ((PAIRS,), (2, 2))
    np.testing.assert_allclose(several["embeddings"].reshape(8, 16)[:6], one["embeddings"], rtol=1e-5, atol=1e-5)
    if pooling == "mean":
        np.testing.assert_array_equal(several["embeddings"][1, 2:], 0)
    assert not np.allclose(np.linalg.norm(one["embeddings"], axis=1), 1, atol=0.1)
    odd = apply(params, {name: array[:5] for name, array in padded().items()})
    np.testing.assert_allclose(odd["embeddings"], one["embeddings"][:5], rtol=1e-6, atol=1e-6)
    assert set(odd) == {"embeddings"}


def test_a_mesh_with_explicit_axes_gives_the_same_loss_and_gradients():
    cfg, params = drawn("bert", "similarity")
    loss_fn = similarity_loss(ARCHITECTURES["bert"].build(cfg, head="similarity").apply)
    batch = {name: np.tile(array, (4, 1))[:16] for name, array in padded().items()}
    batch["labels"] = np.linspace(-1, 1, 8, dtype=np.float32)
    run = jax.jit(partial(loss_and_gradients, loss_fn), compiler_options=QUICK)
    alone = run(params, batch)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        ours = run(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), split)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), jax.device_get(ours), alone)


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@DISTINCT
@KINDS
def test_parity_with_transformers_and_torch(record, pooling, tmp_path):
    """transformers' bare encoder, pooled by hand: vectors, cosines, loss and gradients; and it loads what we write."""
    torch = pytest.importorskip("torch")
    import transformers

    cfg = drawn(record.name, "similarity")[0]
    shape = transformers.AutoConfig.for_model(record.name, **record.config_to_hf(cfg), attn_implementation="eager")
    model = transformers.AutoModel.from_config(shape).eval()
    randomize(model, seed=5)
    batch = padded()
    batch["input_ids"][1, 4] = 7  # torch gives the padding's row no gradient
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if record.name == "bert" else ()))
    last = model(**{name: torch.from_numpy(batch[name]).long() for name in names}).last_hidden_state
    mask = torch.from_numpy(batch["attention_mask"]).float()[..., None]
    vectors = last[:, 0] if pooling == "cls" else (last * mask).sum(1) / mask.sum(1)
    cosines = torch.nn.functional.cosine_similarity(vectors[0::2], vectors[1::2])
    loss = torch.nn.functional.mse_loss(cosines, torch.from_numpy(LABELS))
    loss.backward()

    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    params, fresh = params_from_tensors(record, tensors, cfg, head="similarity")
    assert fresh == () and "pooler" not in params
    apply = record.build(cfg, head="similarity", pooling=pooling).apply
    loss_fn = similarity_loss(apply)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, b: (apply(p, b), *loss_and_gradients(loss_fn, p, b)), compiler_options=QUICK)
        ours, losses, grads = run(params, batch | {"labels": LABELS})
    assert relative(ours["embeddings"], vectors.detach().numpy()) < 1e-4
    assert relative(ours["logits"], cosines.detach().numpy()) < 1e-4
    assert relative(losses["similarity"], loss.detach().numpy()) < 1e-4
    gradients = {name: value.grad for name, value in model.named_parameters() if "pooler" not in name}
    theirs = {f"{record.prefix}{name}": gradient.numpy() for name, gradient in gradients.items()}
    assert_same_gradients(params_to_tensors(record, grads), theirs)

    if pooling == "cls":
        return
    write_folder(tmp_path / "ours", cfg, params, head="similarity")
    again, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    read = dict(again.named_parameters())
    for name, value in tensors.items():
        assert "pooler" in name or read[name].detach().numpy().tobytes() == value.tobytes(), name
    folder = read_folder(tmp_path / "ours", head="similarity")
    assert folder.model == cfg and folder.fresh == ()
    jax.tree.map(np.testing.assert_array_equal, folder.params, params)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [record.classes["similarity"]]


# --- the loss alone -------------------------------------------------------------------------------------------------


def test_cosines_and_their_loss_in_numpy():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3, 4, 7)).astype(np.float32)
    vectors[2, 3] = 0.0
    a, b = vectors[:, 0::2].astype(np.float64), vectors[:, 1::2].astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    expected = np.divide((a * b).sum(-1), norms, out=np.zeros((3, 2)), where=norms > 0)
    cosines = pair_cosines(jnp.asarray(vectors))
    np.testing.assert_allclose(cosines, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pair_cosines(jnp.asarray(vectors[0])), expected[0], rtol=1e-5)

    labels, weights = rng.uniform(-1, 1, (3, 2)).astype(np.float32), np.array([[1, 0], [1, 1], [1, 0]], np.float32)
    loss_fn = similarity_loss(lambda params, batch, key=None: {"logits": pair_cosines(params)})
    batch = {"labels": jnp.asarray(labels), "example_weights": jnp.asarray(weights)}
    terms, metrics = loss_fn(jnp.asarray(vectors), (), batch)
    error = expected - labels
    np.testing.assert_allclose(terms["similarity"], ((weights * error**2).sum(), 4), rtol=1e-5)
    np.testing.assert_allclose(metrics["absolute_error"], ((weights * np.abs(error)).sum(), 4), rtol=1e-5)
    everywhere = loss_fn(jnp.asarray(vectors), (), {"labels": jnp.asarray(labels)})[0]["similarity"]
    np.testing.assert_allclose(everywhere, ((error**2).sum(), 6), rtol=1e-5)
    slopes = jax.grad(lambda v: loss_fn(v, (), batch)[0]["similarity"][0])(jnp.asarray(vectors))
    assert np.isfinite(slopes).all() and not slopes[2, 2:].any() and slopes[1].all()


def test_it_has_the_encoder_s_params_alone():
    for record in ARCHITECTURES.values():
        paths = flatten_dict(drawn(record.name, "similarity")[1], sep="/")
        assert {path.split("/")[0] for path in paths} == {"embeddings", "encoder"}
