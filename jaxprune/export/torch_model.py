"""The model in transformers, for the exporters that start from torch."""

import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.config.encoder_part import encoder_part
from jaxprune.config.sections import ModelConfig
from jaxprune.errors import UserError
from jaxprune.export.source import Source
from jaxprune.models.config_json import read_json
from jaxprune.models.folder import write_masked
from jaxprune.models.other_files import CONFIG

OUTPUTS = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")
OUTPUTS += ("last_hidden_state", "pooler_output")
_HEADS = ("MaskedLM", "NextSentencePrediction", "TokenClassification", "QuestionAnswering")
"""Of transformers, beside those that are ours."""


class TorchModel(NamedTuple):
    """A module in float32 that takes tensors of `inputs` in that order and returns those of `outputs`."""

    module: Any
    inputs: dict[str, Any]
    """Name -> an int64 example (2, 8), the second text padded."""
    outputs: list[str]


@contextmanager
def quiet() -> Iterator[None]:
    """A block whose warnings are the exporters' to each other."""
    import logging

    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def torch_model(source: Source) -> TorchModel:
    """The model of a source with the head that its config.json names, or without one.

    UserError for what transformers computes otherwise than we do, and for a head whose weights are not there.
    """
    if source.model.sublayer_relu:
        raise UserError(
            f"{source.name}: sublayer_relu is true, which transformers does not compute; export hf or sparse"
        )
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    record = source.record
    named = _class_named(source, transformers)
    more: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    if named == record.classes["similarity"] and "pooler" in " ".join(dict(record.tensors)):
        more["add_pooling_layer"] = any("pooler.dense" in name for name in source.tensors)
    with tempfile.TemporaryDirectory() as folder, quiet():
        dense = Path(folder) / "hf"
        write_masked(source.name, dense, {}, revision=source.revision or None, variant=source.variant)
        kind = getattr(transformers, named)
        shape = source.model
        kind = with_own_widths(kind, shape) if shape.head_dim or not shape.even else kind
        model, loading = kind.from_pretrained(encoder_part(dense), output_loading_info=True, **more)
    if lacking := sorted(loading["missing_keys"]):
        raise UserError(
            f"{source.name}: by config.json it is a {named}, but its weights lack {', '.join(lacking):.200}; name "
            f"{record.classes['similarity']} in its architectures for the encoder alone"
        )
    model = model.eval()
    ids = torch.arange(3, 19).reshape(2, 8) % source.model.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if record.next_sentence:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    with torch.no_grad():
        result = model(**inputs)
    outputs = [name for name in OUTPUTS if result.get(name) is not None]

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *tensors):
            result = self.model(**dict(zip(inputs, tensors, strict=True)))
            return tuple(result[name] for name in outputs)

    return TorchModel(Outputs().eval(), inputs, outputs)


def _class_named(source: Source, transformers: Any) -> str:
    """The class of transformers that config.json names, or the encoder's where it names none.

    UserError for one that is no head on this encoder, or takes other inputs.
    """
    encoder = source.record.classes["similarity"]
    named = read_json(encoder_part(source.folder) / CONFIG).get("architectures") or [encoder]
    family = encoder.removesuffix("Model")
    known = {encoder, *source.record.classes.values(), *(f"{family}For{head}" for head in _HEADS)}
    if isinstance(named, list) and named[0] in known and hasattr(transformers, named[0]):
        return named[0]
    raise UserError(
        f"{source.name}: config.json names architectures {named!r:.100}, a head that is not known here; export hf or "
        f"sparse, or name {encoder} for the encoder alone"
    )


def with_own_widths(kind: Any, cfg: ModelConfig) -> Any:
    """A class of transformers for models that heads were taken out of, or whose layers differ in heads and neurons.

    transformers computes the width of a head from the number of heads, but how many there are from the matrices.
    """
    import torch

    class Own(kind):
        def __init__(self, config, *args, **kwargs):
            config.num_attention_heads = config.hidden_size // cfg.head_width
            super().__init__(config, *args, **kwargs)
            for name, part in [*self.named_modules()]:
                if not (matched := re.search(r"\.layer\.(\d+)\.(.+)", f".{name}")):
                    continue
                layer, role = cfg.with_layers([int(matched[1])]), matched[2]
                heads, n_in, n_out = layer.num_attention_heads * cfg.head_width, cfg.hidden_size, cfg.hidden_size
                if re.fullmatch(r"attention\.(self\.(query|key|value)|[qkv]_lin)", role):
                    n_out = heads
                elif role in ("attention.output.dense", "attention.out_lin"):
                    n_in = heads
                elif role in ("intermediate.dense", "ffn.lin1"):
                    n_out = layer.intermediate_size
                elif role in ("output.dense", "ffn.lin2"):
                    n_in = layer.intermediate_size
                else:
                    continue
                if (n_in, n_out) != (part.in_features, part.out_features):
                    self.set_submodule(name, torch.nn.Linear(n_in, n_out))

    return Own
