"""`jaxprune prune`: a Hugging Face directory in, one out, with only the smallest weights changed."""

import json

import ml_dtypes
import numpy as np
import pytest
from make_bert_golden import CASES, FIXTURES
from safetensors.numpy import load_file, save_file

from jaxprune.cli import main

CONFIG = CASES["gelu"]["config"]
FILES = {"vocab.txt": b"[PAD]\n[UNK]\n", "tokenizer_config.json": b'{"do_lower_case": true}', "tokenizer.json": b"{}"}


@pytest.fixture
def source(tmp_path):
    """A whole tiny checkpoint with its tokenizer; equal weights and negative zeros among the values."""
    place = tmp_path / "src"
    place.mkdir()
    tensors = load_file(FIXTURES / "bert_golden_gelu.safetensors")
    query = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[query][:4] = 0.05
    tensors[query][4] = -0.0
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_text(json.dumps({"model_type": "bert", "note": "kept", **CONFIG}))
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    return place


def is_prunable(name):
    """The paper's set, under Hugging Face's names."""
    parts = name.split(".")
    if not name.endswith(".weight") or "LayerNorm" in name:
        return False
    return "layer" in parts or name.endswith(("word_embeddings.weight", "pooler.dense.weight"))


def groups(names, scope):
    """Tensor names that share one threshold."""
    if scope == "matrix":
        return [[name] for name in names]
    if scope == "global":
        return [names]
    layers = {}
    for name in names:
        layer = name.split("layer.")[1].split(".")[0] if "layer." in name else name
        layers.setdefault(layer, []).append(name)
    return [*layers.values()]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("scope", ["global", "matrix", "layer"])
def test_the_smallest_weights_become_zero_and_nothing_else_changes(source, tmp_path, capsys, scope, sparsity):
    target = tmp_path / "out"
    assert main(["prune", str(source), str(target), "--sparsity", str(sparsity), "--scope", scope]) == 0
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    names = [name for name in before if is_prunable(name)]
    assert len(names) == 6 * CONFIG["num_hidden_layers"] + 2
    for group in groups(names, scope):
        size = sum(before[name].size for name in group)
        old, new = (np.concatenate([t[name].reshape(-1) for name in group]) for t in (before, after))
        kept = new.view(np.uint32) != 0
        zeros = (old == 0).sum()
        assert kept.sum() == min(round((1 - sparsity) * size), size - zeros)
        assert (new.view(np.uint32)[kept] == old.view(np.uint32)[kept]).all()
        if kept.any() and not kept.all():
            assert np.abs(old[kept]).min() >= np.abs(old[~kept]).max()
    for name in before.keys() - {*names}:
        assert before[name].tobytes() == after[name].tobytes(), name
    for name in (*FILES, "config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    said = capsys.readouterr().out
    assert f"{len(names)} matrices" in said and f"wrote {target}" in said


def test_zeros_of_a_source_without_masks_are_counted(source, tmp_path, caplog):
    tensors = load_file(source / "model.safetensors")
    prunable = [tensor for name, tensor in tensors.items() if is_prunable(name)]
    zeros, size = (sum(map(count, prunable)) for count in (lambda t: int((t == 0).sum()), np.size))
    caplog.set_level("INFO", "jaxprune")
    assert main(["prune", str(source), str(tmp_path / "a"), "--sparsity", "0"]) == 0
    words = f"{source} brings no masks: {zeros:,} of {size:,} prunable weights are exactly 0 and count as pruned"
    assert zeros and f"{words} (masks: none lifts)" in caplog.messages
    for tensor in prunable:
        tensor[tensor == 0] = 1e-30
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    caplog.clear()
    assert main(["prune", str(source), str(tmp_path / "b"), "--sparsity", "0"]) == 0
    assert not caplog.messages


def test_heads_are_pruned_head_by_head(source, tmp_path):
    target = tmp_path / "out"
    assert main(["prune", str(source), str(target), "--sparsity", "0.5", "--scope", "head"]) == 0
    after = load_file(target / "model.safetensors")
    width, heads = CONFIG["hidden_size"], CONFIG["num_attention_heads"]
    for layer in range(CONFIG["num_hidden_layers"]):
        place = f"bert.encoder.layer.{layer}.attention."
        # torch keeps (out, in): a head is rows of Q, K, V and columns of the output matrix.
        parts = [after[f"{place}self.{n}.weight"].reshape(heads, -1, width) for n in ("query", "key", "value")]
        parts.append(after[f"{place}output.dense.weight"].reshape(width, heads, -1).transpose(1, 2, 0))
        together = np.concatenate(parts, axis=1).reshape(heads, -1)
        assert (np.count_nonzero(together, axis=1) == together.shape[1] // 2).all()


def test_random_scores_depend_on_the_seed(source, tmp_path):
    kept = []
    for number, seed in enumerate((3, 3, 4)):
        out = str(tmp_path / str(number))
        assert main(["prune", str(source), out, "--sparsity", "0.5", "--criterion", "random", "--seed", str(seed)]) == 0
        kept.append(load_file(tmp_path / str(number) / "model.safetensors")["bert.pooler.dense.weight"] != 0)
    assert (kept[0] == kept[1]).all() and (kept[0] != kept[2]).any()
    assert all(mask.sum() == mask.size // 2 for mask in kept)


def test_bfloat16_stays_bfloat16(source, tmp_path):
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert main(["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.75"]) == 0
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in tensors.items():
        assert after[name].dtype == ml_dtypes.bfloat16
        bits, old = after[name].view(np.uint16), tensor.view(np.uint16)
        if is_prunable(name):
            assert (bits == 0).sum() >= tensor.size - round(0.25 * tensor.size)
            assert (bits[bits != 0] == old[bits != 0]).all()
        else:
            assert bits.tobytes() == old.tobytes()


def test_pruning_again_keeps_the_zeros(source, tmp_path):
    assert main(["prune", str(source), str(tmp_path / "a"), "--sparsity", "0.5", "--criterion", "random"]) == 0
    assert main(["prune", str(tmp_path / "a"), str(tmp_path / "b"), "--sparsity", "0.7"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name in filter(is_prunable, first):
        assert not ((first[name] == 0) & (second[name] != 0)).any()
        assert np.count_nonzero(second[name]) == round(0.3 * second[name].size)


def test_less_than_is_pruned_already_is_said(source, tmp_path, caplog):
    caplog.set_level("INFO", "jaxprune")
    assert main(["prune", str(source), str(tmp_path / "a"), "--sparsity", "0.75"]) == 0
    assert not any("pruned already" in line for line in caplog.messages)
    assert main(["prune", str(tmp_path / "a"), str(tmp_path / "b"), "--sparsity", "0.5"]) == 0
    words = "75.0 % of its masked weights are pruned already; sparsity = 0.5 takes no more (masks = none lifts them)"
    assert f"{tmp_path / 'a'}: {words}" in caplog.messages
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_include_and_exclude(source, tmp_path):
    argv = ["--sparsity", "0.5", "--include", r"encoder/layer_\d+/.*/kernel", "--exclude", ".*/query/kernel"]
    assert main(["prune", str(source), str(tmp_path / "out"), *argv]) == 0
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {name for name in before if ".layer." in name and is_prunable(name) and "query" not in name}


def table(said):
    """{name of a row: (weights, kept)} of the table that was printed."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    return {name: (int(size.replace(",", "")), int(kept.replace(",", ""))) for name, size, kept, _ in rows}


def test_the_table_has_a_row_per_kind_and_three_bases(source, tmp_path, capsys):
    assert main(["prune", str(source), str(tmp_path / "a"), "--sparsity", "0.7"]) == 0
    short = table(capsys.readouterr().out)
    assert main(["prune", str(source), str(tmp_path / "b"), "--sparsity", "0.7", "--verbose"]) == 0
    long = table(capsys.readouterr().out)
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    layers = CONFIG["num_hidden_layers"]
    assert len(short) == 8 + 3 and len(long) == 6 * layers + 2 + 3
    prunable = [tensor for name, tensor in tensors.items() if is_prunable(name)]
    encoder = [tensor for name, tensor in tensors.items() if is_prunable(name) and ".layer." in name]
    rest = sum(tensor.size for name, tensor in tensors.items() if not is_prunable(name))
    for rows in (short, long):
        (total,) = (row for name, row in rows.items() if name.endswith(" matrices") and "encoder" not in name)
        size, kept = sum(t.size for t in prunable), sum(map(np.count_nonzero, prunable))
        assert total == (size, kept) and rows["all weights"] == (size + rest, kept + rest)
        assert rows["the encoder's matrices"] == (sum(t.size for t in encoder), sum(map(np.count_nonzero, encoder)))
    query = [tensor for name, tensor in tensors.items() if name.endswith("query.weight")]
    assert short[f"attention/query x {layers}"] == (sum(t.size for t in query), sum(map(np.count_nonzero, query)))
    assert long["encoder/layer_00/attention/query/kernel"] == (query[0].size, np.count_nonzero(query[0]))


def test_two_of_four_leaves_out_what_fours_do_not_divide(source, tmp_path, capsys, caplog):
    """30,522 word pieces are no multiple of 4; named by the user, they are an error."""
    tensors = load_file(source / "model.safetensors")
    assert len(tensors[WORDS]) % 4
    argv = ["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.5", "--structure", "2:4"]
    assert main([*argv, "--include", "embeddings/word_embeddings/embedding"]) == 2
    assert "do not divide axis 0 of embeddings/word_embeddings/embedding" in capsys.readouterr().err
    with caplog.at_level("INFO", "jaxprune"):
        assert main(argv) == 0
    (said,) = (text for text in caplog.messages if "left out" in text)
    assert f"--structure 2:4 does not divide embeddings/word_embeddings/embedding ({len(tensors[WORDS])} x" in said
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after[WORDS].tobytes() == tensors[WORDS].tobytes()
    for name in filter(is_prunable, after):
        if name != WORDS:
            assert (np.count_nonzero(after[name].reshape(len(after[name]), -1, 4), axis=2) <= 2).all()


def test_a_place_that_holds_something_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    for place in ("out", "out/mine", "src"):
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        assert main(["prune", str(source), str(tmp_path / place), "--sparsity", "0.5"]) == 2
        err = capsys.readouterr().err
        assert str(tmp_path / place) in err and "new directory" in err and err.count("\n") == 1
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


@pytest.fixture
def tied(source):
    """The checkpoint as older transformers saved it, with a copy of the word embeddings as the decoder."""
    tensors = load_file(source / "model.safetensors")
    tensors[DECODER] = tensors[WORDS].copy()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source


def test_a_stored_decoder_stays_the_word_embeddings(tied, tmp_path, capsys):
    """One matrix in every copy: the zeros are the same bits, and the result is read again as what it is."""
    before = load_file(tied / "model.safetensors")
    assert main(["prune", str(tied), str(tmp_path / "a"), "--sparsity", "0.7"]) == 0
    assert main(["prune", str(tmp_path / "a"), str(tmp_path / "b"), "--sparsity", "0.8"]) == 0
    for name, sparsity in (("a", 0.7), ("b", 0.8)):
        after = load_file(tmp_path / name / "model.safetensors")
        assert after.keys() == before.keys()
        assert after[WORDS].tobytes() == after[DECODER].tobytes() != before[DECODER].tobytes()
        assert np.count_nonzero(after[DECODER]) == round((1 - sparsity) * after[DECODER].size)
        assert after["cls.predictions.decoder.bias"].tobytes() == before["cls.predictions.bias"].tobytes()
        assert DECODER not in load_file(tmp_path / name / "masks.safetensors")
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / name), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["sparsity"] == pytest.approx(sparsity, abs=1e-3)
        assert len(report["matrices"]) == 6 * CONFIG["num_hidden_layers"] + 2
        (words,) = (row for row in report["matrices"] if "word_embeddings" in row["path"])
        assert words["kept"] == np.count_nonzero(after[WORDS])


@pytest.mark.parity
def test_transformers_loads_a_stored_decoder_tied(tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    assert main(["prune", str(tied), str(tmp_path / "out"), "--sparsity", "0.7"]) == 0
    model, info = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    words, decoder = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert words.data_ptr() == decoder.data_ptr()
    assert decoder.detach().numpy().tobytes() == load_file(tmp_path / "out" / "model.safetensors")[DECODER].tobytes()


def test_masks_of_the_source_hold_or_are_lifted(source, tmp_path):
    """What is pruned stays so by the masks beside the weights, not by zeros; `--masks none` lifts them."""
    assert main(["prune", str(source), str(tmp_path / "a"), "--sparsity", "0.5", "--criterion", "random"]) == 0
    first = load_file(tmp_path / "a" / "model.safetensors")
    grown = {name: np.where(w == 0, np.float32(9), w) if is_prunable(name) else w for name, w in first.items()}
    save_file(grown, tmp_path / "a" / "model.safetensors", {"format": "pt"})  # its masks are beside it
    argv = ["prune", str(tmp_path / "a"), str(tmp_path / "b"), "--sparsity", "0.6"]
    assert main(argv) == 0
    argv[2] = str(tmp_path / "c")
    assert main([*argv, "--masks", "none"]) == 0
    held, lifted = (load_file(tmp_path / name / "model.safetensors") for name in "bc")
    for name in filter(is_prunable, first):
        assert not (held[name] == 9).any()
        assert (lifted[name] == 9).sum() == round(0.4 * lifted[name].size)
        assert np.count_nonzero(held[name]) == np.count_nonzero(lifted[name]) == round(0.4 * first[name].size)


@pytest.mark.parametrize("absent", [[], ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]])
def test_nothing_left_to_prune_is_one_line(source, tmp_path, capsys, absent):
    tensors = load_file(source / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in absent}, source / "model.safetensors", {"format": "pt"})
    assert main(["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.5", "--exclude", ".*"]) == 2
    err = capsys.readouterr().err
    assert "exclude" in err and "['.*'] leaves nothing to prune" in err and not (tmp_path / "out").exists()
    assert err.count("\n") == 1


@pytest.mark.parity
def test_transformers_loads_the_result(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    assert main(["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.7"]) == 0
    model, info = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    loaded = model.state_dict()
    for name in filter(is_prunable, after):
        assert loaded[name].numpy().tobytes() == after[name].tobytes(), name
    ids = torch.arange(8)[None] + 5
    assert torch.isfinite(model(input_ids=ids).prediction_logits).all()


def test_a_variant_is_pruned_by_its_name(source, tmp_path):
    tensors = {name: array.astype(np.float16) for name, array in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.fp16.safetensors", {"format": "pt"})
    assert main(["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.5", "--variant", "fp16"]) == 0
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype for array in after.values()} == {np.dtype(np.float16)}
    for name in filter(is_prunable, after):
        assert np.count_nonzero(after[name]) == min(after[name].size // 2, np.count_nonzero(tensors[name]))
    assert not (tmp_path / "out" / "model.fp16.safetensors").exists()
