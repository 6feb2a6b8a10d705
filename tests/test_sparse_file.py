"""Our sparse form: what goes in comes out bit by bit, and what lies is refused before it is decoded."""

import io
import json
import pickle
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from own_tasks import write_model
from safetensors import safe_open
from test_hostile import limits

from jaxprune.cli import EXIT_USER, main
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.export.source import Source
from jaxprune.export.sparse import sparse_arrays
from jaxprune.export.values import stored_as
from jaxprune.models.bert import BERT
from jaxprune.models.sparse_file import SPARSE_WEIGHTS, SparseFileError, read
from jaxprune.models.weights import read_masks, read_weights, write_safetensors

FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def write(folder: Path, tensors, masks, *, dtype="stored", coded=False, config="{}") -> Path:
    source = Source("x", folder, ModelConfig(), BERT, tensors, masks, "", "")
    made, metadata = sparse_arrays(source, dtype=dtype, coded=coded)
    write_safetensors(folder / SPARSE_WEIGHTS, made, metadata, {})
    (folder / "config.json").write_text(config)
    return folder / SPARSE_WEIGHTS


@st.composite
def matrices(draw):
    """A tensor of any shape, density and type, and its mask; kept weights may be 0 or -0."""
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, max_side=19))
    values = draw(arrays.arrays(np.float32, shape, elements=st.floats(-100, 100, width=16)))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < density
    return np.where(mask, values, np.float32(0)).astype(FLOATS[draw(st.sampled_from([*FLOATS]))]), mask


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pair=matrices(),
    dtype=st.sampled_from(["stored", *FLOATS, "int8"]),
    coded=st.booleans(),
    with_mask=st.booleans(),
)
def test_round_trips(tmp_path, pair, dtype, coded, with_mask):
    array, mask = pair
    write(
        tmp_path,
        {"a.weight": array, "b.bias": array[:1]},
        {"a.weight": mask} if with_mask else {},
        dtype=dtype,
        coded=coded,
    )
    back = read_weights(tmp_path)[1]
    if dtype == "int8" and array.ndim > 1:
        # Independent of how it is written: no value is further off than half of its row's step.
        step = np.abs(array.astype(np.float64)).max(-1, keepdims=True, initial=0) / 127
        error = np.abs(back["a.weight"].astype(np.float64) - array.astype(np.float64))
        assert (error <= step * 0.5 * (1 + 1e-5)).all() and (back["a.weight"][~mask] == 0).all()
    else:
        wanted = array.astype(FLOATS.get(dtype, array.dtype))
        assert back["a.weight"].dtype == wanted.dtype and back["a.weight"].tobytes() == wanted.tobytes()
        assert back["b.bias"].tobytes() == wanted[:1].tobytes()
    masks = read_masks(tmp_path)
    assert (masks["a.weight"] == mask).all() if with_mask else masks is None
    with safe_open(tmp_path / SPARSE_WEIGHTS, "np") as file:  # any reader of safetensors opens it
        assert file.metadata()["format"] == "jaxprune-sparse-1"
    packed = read(tmp_path)[0]["a.weight"]
    if array.ndim == 2:
        ids = np.random.default_rng(0).integers(0, len(array), (2, 3))
        assert (packed.rows(ids) == packed.dense()[ids]).all()


def test_a_size_that_the_bits_give(tmp_path):
    """64 x 64 at 90 %: a bit per weight and the kept values; by the entropy of the mask where it is coded."""
    rng = np.random.default_rng(0)
    mask = rng.random((512, 512)) < 0.1
    array = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    kept, overhead = np.count_nonzero(mask), 700
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        bitmap = write(tmp_path, {"a": array}, {"a": mask}, dtype=dtype).stat().st_size
        scales = 4 * 512 if dtype == "int8" else 0
        assert 0 < bitmap - (mask.size / 8 + size * kept + scales) < overhead
        coded = write(tmp_path, {"a": array}, {"a": mask}, dtype=dtype, coded=True).stat().st_size
        entropy = mask.size * 0.469 / 8
        assert 0 < coded - (entropy + size * kept + scales) < overhead + 0.05 * entropy


def test_the_largest_magnitude_of_a_row_is_exact_in_int8():
    values, scales = stored_as(np.array([[1.0, -127.0], [0, 0]], np.float32), "int8")
    assert values.tolist() == [[1, -127], [0, 0]] and scales.tolist() == [1, 0]


def parts(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path: Path, change) -> None:
    """Put a changed header, and data, into a file."""
    header, data = parts(path)
    data = change(header, data) or data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def setting(*keys, to):
    """A change of one value of the header; of `__metadata__`, JSON in JSON, `packed` by name."""

    def change(header, data):
        place = header
        if keys[0] == "packed":
            packed = json.loads(header["__metadata__"]["packed"]) | {keys[1]: to}
            header["__metadata__"]["packed"] = json.dumps(packed)
            return
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def flipped(header, data):
    at = header["a.weight.mask"]["data_offsets"][0]
    return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]


def behind_the_row(header, data):
    end = header["a.weight.mask"]["data_offsets"][1]
    return data[: end - 1] + bytes([data[end - 1] | 1]) + data[end:]


def renamed(name):
    def change(header, data):
        header[name] = header.pop("b.bias")

    return change


LIES = {
    "a shape that the mask does not have": setting("packed", "a.weight", to=[5, 17]),
    "a shape as large as the world": setting("packed", "a.weight", to=[1 << 60, 12]),
    "rows without columns": setting("packed", "a.weight", to=[1 << 60, 0]),
    "a shape that is none": setting("packed", "a.weight", to=[True, 12.0]),
    "a packed tensor that is not there": setting("packed", "c.weight", to=[5, 12]),
    "a tensor that is packed and whole": setting("packed", "b.bias", to=[12]),
    "a bit that no value belongs to": flipped,
    "a bit behind the end of a row": behind_the_row,
    "an overlap": setting("b.bias", "data_offsets", to=[0, 48]),
    "a gap": setting("b.bias", "data_offsets", to=[1 << 40, (1 << 40) + 48]),
    "an end before its beginning": setting("b.bias", "data_offsets", to=[48, 0]),
    "offsets that are none": setting("b.bias", "data_offsets", to=["0", None]),
    "a whole tensor's shape": setting("b.bias", "shape", to=[1 << 50]),
    "a type that is none": setting("b.bias", "dtype", to="PICKLE"),
    "an entry that is none": setting("b.bias", to=[]),
    "a name that climbs": renamed("../../b.bias"),
    "a name that is absolute": renamed("/etc/passwd"),
    "another format": setting("__metadata__", "format", to="jaxprune-sparse-9"),
    "no metadata": setting("__metadata__", to=None),
    "an unknown coding": setting("__metadata__", "mask_coding", to="zip"),
    "a copy of nothing": setting("__metadata__", "copies", to='{"x": "y"}'),
    "a copy of a list": setting("__metadata__", "copies", to='{"x": [1]}'),
    "a copy with a name that climbs": setting("__metadata__", "copies", to='{"../../x": "a.weight"}'),
    "many copies of one tensor": setting("__metadata__", "copies", to='{"x": "a.weight", "y": "a.weight"}'),
    "a copy of a copy": setting("__metadata__", "copies", to='{"x": "a.weight", "y": "x"}'),
    "a copy of another shape than config.json says": setting(
        "__metadata__", "copies", to='{"pooler.dense.weight": "a.weight"}'
    ),
    "numbers of 4,000 digits without end": setting("b.bias", "shape", to=[10**4000] * 1200),
    "a packed shape of 4,000 digits": setting("packed", "a.weight", to=[10**4000] * 1200),
    "more axes than there are": setting("b.bias", "shape", to=[1] * 11 + [12] + [1] * 60),
    "a number of 5,000 digits": setting("__metadata__", "packed", to='{"a": [' + "9" * 5000 + "]}"),
    "a deep list": setting("__metadata__", "packed", to="[" * 100_000),
}


@pytest.fixture
def honest(tmp_path):
    mask = np.arange(60).reshape(5, 12) % 3 == 0
    array = np.where(mask, np.arange(60.0).reshape(5, 12) + 1, 0).astype(np.float32)
    tensors = {"a.weight": array, "b.bias": np.ones(12, np.float32)}
    return write(tmp_path, tensors, {"a.weight": mask}, config='{"hidden_size": 12}')


@pytest.mark.parametrize("lie", [*LIES])
def test_lies_are_refused(honest, lie):
    read(honest)
    rewrite(honest, LIES[lie])
    with limits(), pytest.raises(SparseFileError) as error:
        read(honest)
    assert str(honest) in str(error.value) and len(str(error.value)) < 1000 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a.scales"), "has a tensor a.scales, whose name is a part of a; rename it"),
        (("a", "../../x"), r"a tensor is called '../../x'; a name has letters"),
        (("a", "my tensor"), r"a tensor is called 'my tensor'; a name has letters"),
    ],
)
def test_what_would_not_come_back_is_not_written(tmp_path, names, said):
    tensors = {name: np.ones((3, 4), np.int8 if name == "a" else np.float32) for name in names}
    with pytest.raises(UserError, match=said):
        write(tmp_path, tensors, {})


def test_a_config_may_hold_the_sizes_of_another_architecture_too(tmp_path):
    config = {"model_type": "distilbert", "intermediate_size": 99, "hidden_dim": 16, "hidden_size": 98, "dim": 12}
    tensors = {"distilbert.transformer.layer.0.ffn.lin1.weight": np.ones((16, 12), np.float32)}
    read(write(tmp_path, tensors, {}, config=json.dumps(config)))
    with pytest.raises(SparseFileError, match=r"asks for \[99, 98\]"):
        read(write(tmp_path, tensors, {}, config=json.dumps(config | {"model_type": "bert"})))


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e38])
def test_scales_that_give_no_numbers_are_refused(tmp_path, scale):
    path = write(tmp_path, {"a": np.ones((3, 4), np.float32)}, {}, dtype="int8")
    read(path)
    content = path.read_bytes()
    honest_scale = np.float32(1 / 127).tobytes()
    assert content.count(honest_scale) == 3
    path.write_bytes(content.replace(honest_scale, np.float32(scale).tobytes(), 1))
    with pytest.raises(SparseFileError, match="its scales are no numbers, or above"):
        read(path)


def test_cut_and_padded_files_are_refused(honest):
    content = honest.read_bytes()
    for cut in (0, 4, 8, 100, len(content) - 1):
        honest.write_bytes(content[:cut])
        with pytest.raises(SparseFileError):
            read(honest)
    honest.write_bytes(content + b"x")
    with pytest.raises(SparseFileError, match="bytes of data, and there are"):
        read(honest)


def test_a_pickle_a_zip_and_noise_are_refused(honest):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(1 << 20))
    for content in (pickle.dumps(np.zeros(9)), packed.getvalue(), b"\xff" * 99, bytes(99)):
        honest.write_bytes(content)
        with pytest.raises(SparseFileError):
            read(honest)


def test_a_name_that_stands_twice_is_refused(honest):
    header, data = parts(honest)
    text = json.dumps(header).replace('"a.weight.mask"', '"b.bias"').encode()
    honest.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(SparseFileError, match="stands twice"):
        read(honest)


@pytest.mark.parametrize("ratio", [1000, 8], ids=["a bomb", "as far as it goes"])
def test_a_coded_mask_cannot_ask_for_much(tmp_path, ratio):
    """A few kilobytes of DEFLATE can say a thousand times as many zeros; ours are refused above eight times."""
    columns = 1 << 31 if ratio == 1000 else 1 << 17
    strategy = zlib.Z_DEFAULT_STRATEGY if ratio == 1000 else zlib.Z_HUFFMAN_ONLY
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    coded = stream.compress(bytes(columns // 8)) + stream.flush()
    arrays = {"a.mask": np.frombuffer(coded, np.uint8), "a.values": np.zeros(0, np.float32)}
    metadata = {"format": "jaxprune-sparse-1", "packed": json.dumps({"a": [1, columns]}), "mask_coding": "deflate"}
    write_safetensors(tmp_path / SPARSE_WEIGHTS, arrays, metadata, {})
    (tmp_path / "config.json").write_text("{}")
    with limits():
        if ratio == 8:
            assert not read(tmp_path)[0]["a"].dense().any()
        else:
            with pytest.raises(SparseFileError, match="cannot code a mask"):
                read(tmp_path)


@pytest.mark.parametrize(
    "coded", [b"", b"\x07", zlib.compress(bytes(99))[2:-4] + b"behind", bytes(40)], ids=["none", "bad", "long", "noise"]
)
def test_a_damaged_coded_mask_is_refused(tmp_path, coded):
    arrays = {"a.mask": np.frombuffer(coded, np.uint8), "a.values": np.zeros(0, np.float32)}
    metadata = {"format": "jaxprune-sparse-1", "packed": json.dumps({"a": [9, 8]}), "mask_coding": "deflate"}
    write_safetensors(tmp_path / SPARSE_WEIGHTS, arrays, metadata, {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SparseFileError):
        read(tmp_path)


CONFIGS = {
    "another width": lambda config: json.dumps(config | {"hidden_size": 64}),
    "another vocabulary": lambda config: json.dumps(config | {"vocab_size": 1 << 60}),
    "no object": lambda config: "[]",
    "no JSON": lambda config: "{",
}


@pytest.mark.parametrize("wrong", [*CONFIGS])
def test_shapes_are_those_of_the_config(tmp_path, capsys, wrong):
    """And a command says so in one line, ends with 2 and writes nothing."""
    source, exported = write_model(tmp_path / "source", "similarity"), tmp_path / "exported"
    assert main(["export", str(source), str(exported), "--format", "sparse"]) == 0
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(CONFIGS[wrong](config))
    with limits(), pytest.raises(SparseFileError, match="config.json"):
        read(exported)
    capsys.readouterr()
    assert main(["export", str(exported), str(tmp_path / "out"), "--format", "hf"]) == EXIT_USER
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"source", "exported"}
