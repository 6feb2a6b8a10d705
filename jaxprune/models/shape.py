"""A model's shape from and to the keys of a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

import pydantic

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OURS = ("head_dim", "layer_heads", "layer_neurons")
"""What transformers has no key for."""
_MUST_BE = {
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "quantization_config": None,
    "position_embedding_type": "absolute",
}


def shape_from_hf(raw: Mapping[str, Any], where: str, *, architecture: str, keys: Mapping[str, str]) -> ModelConfig:
    """The shape in a `config.json`; `keys`: {field of ModelConfig: its key there}, other fields keep their defaults.

    UserError names file, key, value and remedy for what the encoders here do not compute exactly.
    """
    for key, value in _MUST_BE.items():
        if raw.get(key, value) != value:
            raise UserError(f"{where}: {key} = {raw[key]!r}; only {architecture} with {key} = {value!r} is supported")
    act = raw.get(keys["hidden_act"], "gelu")
    if act != "gelu" and act not in _TANH_GELU:
        raise UserError(f"{where}: {keys['hidden_act']} = {act!r}; supported are gelu, {', '.join(_TANH_GELU)}")
    if missing := [keys[field] for field in _REQUIRED if keys[field] not in raw]:
        raise UserError(f"{where}: has no {', '.join(missing)}; a {architecture} config.json states its shape")
    fields = {field: ModelConfig.model_fields[field].default for field in _REQUIRED}  # of those that are null
    fields |= {field: raw[key] for field, key in keys.items() if raw.get(key) is not None}
    fields |= {"architecture": architecture, "hidden_act": "gelu" if act == "gelu" else "gelu_new"}
    try:
        return ModelConfig.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        names = ".".join(keys.get(str(name), str(name)) for name in first["loc"])
        wrong = f"{names} = {first['input']!r}: " if names else ""
        raise UserError(f"{where}: {wrong}{first['msg'].removeprefix('Value error, ')}; fix the file") from None


def shape_to_hf(cfg: ModelConfig, *, keys: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `cfg` that are in `keys`, under their keys in a `config.json`; of `_OURS` those that are set."""
    return {key: getattr(cfg, field) for field, key in keys.items() if field not in _OURS or getattr(cfg, field)}
