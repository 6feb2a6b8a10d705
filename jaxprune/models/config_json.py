"""`config.json` of a Hugging Face directory: read, written, and told the truth."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.files import parse_json
from jaxprune.models.architecture import Architecture
from jaxprune.models.model import Head

_MAX_BYTES = 10_000_000
_TYPE = ("dtype", "torch_dtype")
PROBLEM_TYPES: dict[str, str] = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Head -> transformers' word for what it learns."""
_LABELS = ("id2label", "label2id", "num_labels", "problem_type", "finetuning_task")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a config.json; UserError where it is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        raw = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise UserError(f"{path}: not a config.json ({error}); fetch the file again") from None
    return raw


def json_text(config: Mapping[str, Any], *, sort_keys: bool = True) -> str:
    """The content of a config.json."""
    return json.dumps(config, indent=2, sort_keys=sort_keys) + "\n"


def config_of(
    record: Architecture,
    cfg: ModelConfig,
    head: Head,
    labels: int,
    *,
    source: Mapping[str, Any],
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.json says of float32 weights: the shape and the head, then `own` keys, then those of the `source`.

    Label names of the source hold where `head` has as many; without any they are LABEL_0, ...
    """
    theirs = len(source.get("id2label") or ()) == labels > 0
    config = {key: value for key, value in source.items() if theirs or key not in _LABELS}
    config = {key: value for key, value in (config | dict(own)).items() if key not in (*_TYPE, "sublayer_relu")}
    config |= record.config_to_hf(cfg) | {"dtype": "float32", "model_type": record.name}
    config |= {"architectures": [record.classes[head]], "tie_word_embeddings": True}
    if labels:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        if len(config.get("id2label") or ()) != labels:
            config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
        config["problem_type"] = PROBLEM_TYPES[head]
    return config


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a config.json is for, in order; empty for a score.

    transformers leaves out `id2label` where it is `LABEL_0`, `LABEL_1`.
    """
    names = config.get("id2label") or {i: f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    return () if config.get("problem_type") == "regression" else ordered


def with_true_type(config: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> dict[str, Any] | None:
    """`config` with the type that most weights have, where it names one that none has; None where it is true."""
    sizes: dict[str, int] = {}
    for array in arrays:
        if array.dtype.name in ("float32", "float16", "bfloat16", "float64"):
            sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.size
    wrong = [
        key for key in _TYPE if config.get(key) is not None and str(config[key]).removeprefix("torch.") not in sizes
    ]
    return {**config, **dict.fromkeys(wrong, max(sizes, key=sizes.__getitem__))} if wrong and sizes else None
