"""`jaxprune prune --calibration`: criteria that read texts first."""

import jax
import numpy as np
import pytest
from own_tasks import WORDS, write_encoder, write_model
from safetensors.numpy import load_file

from jaxprune.cli import main
from jaxprune.experiments.calibration import read_texts
from jaxprune.experiments.weights import read_weights
from jaxprune.models.bert import bert
from jaxprune.models.folder import read_folder

TABLES = ("word_embeddings", "pooler")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT with a masked-LM head, half of its encoder pruned."""
    return write_model(tmp_path_factory.mktemp("calibration") / "model", "pretraining")


@pytest.fixture(scope="module")
def texts(model):
    """A file of texts, some lines of it empty."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(20)]
    (model.parent / "texts.txt").write_text("\n\n".join(lines) + "\n")
    return model.parent / "texts.txt"


def hidden(folder, texts):
    """The last hidden states of the texts' tokens."""
    read = read_folder(folder, head="similarity")
    held = read_texts(str(texts), 20, read_weights(str(folder)), str(folder))
    seen = (np.arange(held.ids.shape[1]) < held.lengths[:, None]).astype(np.int32)
    batch = {"input_ids": held.ids, "token_type_ids": np.zeros_like(held.ids), "attention_mask": seen}
    out = jax.jit(lambda p, b: bert(read.model, head="similarity").apply(p, b, hidden_states=True))(read.params, batch)
    return np.asarray(out["hidden_states"][-1])[seen > 0]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs", "obert", "fisher"])
def test_what_is_pruned_is_counted_and_what_stays_is_compensated(model, texts, tmp_path, caplog, criterion):
    argv = ["prune", model, tmp_path / "out", "--sparsity", "0.7", "--criterion", criterion]
    argv += [] if criterion == "magnitude" else ["--calibration", texts, "--texts", 16, "--rounds", 2]
    with caplog.at_level("INFO"):
        assert main([*map(str, argv)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    watched = criterion in ("wanda", "obs")
    for name, new in after.items():
        matrix = "layer." in name and name.endswith("weight") and "LayerNorm" not in name
        if not matrix and (watched or not any(word in name for word in TABLES) or name.endswith("bias")):
            np.testing.assert_array_equal(new, before[name])
        elif matrix:
            assert np.count_nonzero(new) == round(0.3 * new.size) and not new[before[name] == 0].any()
            same = new[new != 0] == before[name][new != 0]
            assert same.all() if criterion in ("magnitude", "wanda", "fisher") else same.mean() < 0.5
    if watched:
        assert f"--criterion {criterion} sees no inputs of" in caplog.text and "word_embeddings" in caplog.text


def test_compensated_outputs_are_nearer(model, texts, tmp_path):
    only = ["--include", "encoder/.*kernel", "--sparsity", "0.7"]
    whole, lost = hidden(model, texts), {}
    for criterion in ("magnitude", "wanda", "obs"):
        more = [] if criterion == "magnitude" else ["--calibration", str(texts)]
        assert main(["prune", str(model), str(tmp_path / criterion), *only, "--criterion", criterion, *more]) == 0
        lost[criterion] = np.square(hidden(tmp_path / criterion, texts) - whole).mean()
    assert lost["obs"] < 0.8 * lost["wanda"] and lost["obs"] < 0.8 * lost["magnitude"]


def test_inputs_are_what_layers_read(model):
    """Those of a layer's queries, keys, values are the hidden states before it, and the products are its outputs."""
    read = read_folder(model, head="similarity")
    batch = {name: np.ones((2, 8), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")}
    out = bert(read.model, head="similarity").apply(read.params, batch, hidden_states=True, inputs=True)
    layers = read.model.num_hidden_layers
    assert len(out["inputs"]) == 6 * layers
    for i in range(layers):
        for name in ("query", "key", "value"):
            got = out["inputs"][f"encoder/layer_{i:02d}/attention/{name}/kernel"]
            np.testing.assert_array_equal(got, out["hidden_states"][i])
    layer = read.params["encoder"]["layer_00"]
    before = out["inputs"]["encoder/layer_00/intermediate/kernel"]
    want = jax.nn.gelu(
        before @ layer["intermediate"]["kernel"] + layer["intermediate"]["bias"][None, None], approximate=False
    )
    np.testing.assert_allclose(out["inputs"]["encoder/layer_00/output/kernel"], want, atol=1e-5)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--criterion", "obs"], "--criterion = obs: its scores come from"),
        (["--criterion", "movement", "--calibration", "TEXTS"], "--criterion movement: nothing moves in one shot"),
        (["--criterion", "wandaa"], "fisher, obert, wanda, obs; the nearest is 'wanda'"),
        (["--rounds", "2"], "--rounds 2: without --calibration FILE they are one; leave it out"),
        (["--calibration", "TEXTS"], "--criterion magnitude looks at weights alone; leave it out"),
        (["--criterion", "obs", "--calibration", "nowhere.txt"], "--calibration nowhere.txt: no such file"),
        (["--criterion", "obs", "--calibration", "EMPTY"], "has no text; give a file with one per line"),
        (["--criterion", "obs", "--calibration", "TEXTS", "--rounds", "0"], "--rounds 0 --texts 256: give 1 or more"),
        (["--criterion", "obert", "--calibration", "TEXTS"], "has no mlm/"),
        (
            ["--criterion", "obs", "--calibration", "TEXTS", "--structure", "heads"],
            "sees no inputs of encoder/layer_00/",
        ),
        (
            ["--criterion", "wanda", "--calibration", "TEXTS", "--include", "embeddings/word_embeddings/embedding"],
            "--criterion wanda looks at what goes into a matrix of the encoder; leave it out, or use magnitude",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(texts, tmp_path, capsys, argv, line):
    source = write_encoder(tmp_path / "encoder")
    (tmp_path / "empty.txt").write_text("\n \n")
    files = {"TEXTS": str(texts), "EMPTY": str(tmp_path / "empty.txt")}
    argv = [files.get(word, word) for word in argv]
    assert main(["prune", str(source), str(tmp_path / "out"), "--sparsity", "0.7", *argv]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_training_shows_no_inputs(tiny, tmp_path, capsys):
    config = tiny.pretrain_yaml(tmp_path / "c.yaml", prune={"criterion": "wanda", "begin": 2})
    assert main(["pretrain", str(config), "--workdir", str(tmp_path / "run")]) == 2
    assert "prune.criterion = wanda looks at inputs, which training does not show" in capsys.readouterr().err
