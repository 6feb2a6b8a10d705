"""Folders of tiny models, made by transformers as users make them."""

import json
import os
import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxprune.models import architecture_named
from jaxprune.models.folder import read_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}


def tiny_model(kind="BertForPreTraining", dtype="float32", seed=0, **config):
    """A model of transformers with random weights."""
    torch.manual_seed(seed)
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**SIZES | config)).to(getattr(torch, dtype)).eval()
    model.config.dtype = getattr(torch, dtype)
    return model


def arrays_of(model):
    """{name: values} of the state of a torch model, float32."""
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def encoder_output(folder, cls=None, **arguments):
    """What transformers' encoder of a folder gives for fixed ids."""
    model = (cls or transformers.AutoModel).from_pretrained(folder, **arguments).eval()
    ids = torch.arange(12).reshape(2, 6) + 5
    with torch.no_grad():
        return (getattr(model, "base_model", model))(input_ids=ids).last_hidden_state.float().numpy()


def drawn_masks(folder, seed=0, variant="", share=0.6):
    """Masks as `prune` makes them: drawn where the architecture prunes, None elsewhere."""
    rng = np.random.default_rng(seed)
    read = read_folder(folder, head=None, variant=variant)
    prunable = re.compile("|".join(architecture_named(read.model.architecture).prunable))
    flat = flatten_dict(read.params, sep="/")
    leaves = {path: rng.random(w.shape) < share if prunable.fullmatch(path) else None for path, w in flat.items()}
    return unflatten_dict(leaves, sep="/")


def bits(array):
    return array.dtype.name, array.shape, array.tobytes()


def state(model, **changes):
    """What `save_pretrained` saves: tied matrices once; changed names (or None: left out)."""
    copies = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in copies}
    return {name: tensor for name, tensor in (kept | changes).items() if tensor is not None}


def save_safetensors(model, folder, tensors):
    from safetensors.torch import save_file as save

    model.config.save_pretrained(folder)
    save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def save_pickles(model, folder, shards=1, **arguments):
    model.config.save_pretrained(folder)
    tensors = state(model)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **arguments)
        return
    where = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: tensor for index, (key, tensor) in enumerate(tensors.items()) if index % shards == number}
        torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


def write_files(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def contents(folder):
    """{name: bytes} of the files below a folder."""
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


def content(path):
    """The bytes of a file; of masks without what they say of where they come from, which may differ."""
    whole = path.read_bytes()
    if path.name != "masks.safetensors":
        return whole
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"].pop("origin", None)
    return json.dumps(header).encode() + whole[end:]
