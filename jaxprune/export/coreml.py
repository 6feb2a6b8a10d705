"""Core ML: an ML program whose pruned matrices are bit masks and values."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.config.encoder_part import encoder_part
from jaxprune.errors import UserError
from jaxprune.export.extras import needed
from jaxprune.export.source import Source
from jaxprune.models import portable_encoder
from jaxprune.models.config_json import read_json
from jaxprune.models.folder import copy_with_config
from jaxprune.models.other_files import CONFIG

log = logging.getLogger("jaxprune")

MODEL = "model.mlpackage"
LENGTH = 128
"""Tokens of the one text that the program takes, fewer where the model does; padding by `attention_mask`."""
SPARSE_ABOVE = 0.1
"""Zeros above which a matrix is packed."""


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write `model.mlpackage` into the directory `target`, with the source's other files.

    Of int32 `input_ids` and `attention_mask` it gives the last hidden states (1, LENGTH, D), and the `logits` of a
    model that was fine-tuned for a task; another head is left out, which is said. `OpThresholdPrunerConfig` packs the
    matrices. UserError without the extra, and for a type of model that is not pruned by value.
    """
    coremltools, packing, torch = needed("coreml", "coremltools", "coremltools.optimize.coreml", "torch")
    from jaxprune.export.torch_model import quiet

    config = read_json(encoder_part(source.folder) / CONFIG)
    held: dict[str, Any] = {
        name: torch.from_numpy(np.array(array, np.float32))
        for name, array in portable_encoder.named(source.tensors).items()
    }

    names = str((config.get("architectures") or [""])[0])
    classifies = names.endswith("ForSequenceClassification")
    if not classifies and not names.endswith("Model"):
        log.info("%s: the head of a %s is left out", source.name, names or "model of no class")
    outputs = ["last_hidden_state", *(["logits"] if classifies else [])]

    class Encoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            hidden = portable_encoder.encode(held, config, input_ids, attention_mask, torch)
            return (hidden, portable_encoder.class_logits(hidden, held, torch)) if classifies else hidden

    shape = (1, min(LENGTH, source.record.max_tokens(source.model)))
    ids = torch.ones(shape, dtype=torch.int32)
    inputs = [
        coremltools.TensorType(name=name, shape=shape, dtype=np.int32) for name in ("input_ids", "attention_mask")
    ]
    with quiet():
        try:
            model = coremltools.convert(
                torch.jit.trace(Encoder().eval(), (ids, torch.ones_like(ids))),
                inputs=inputs,
                outputs=[coremltools.TensorType(name=name) for name in outputs],
                compute_precision=getattr(coremltools.precision, dtype.upper()),
                minimum_deployment_target=coremltools.target.iOS18,
                skip_model_load=True,
            )
        except (NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{source.name}: coremltools does not convert it with this torch ({reason:.200})"
            ) from error
        pruner = packing.OpThresholdPrunerConfig(
            threshold=1e-12, minimum_sparsity_percentile=SPARSE_ABOVE, weight_threshold=1024
        )
        model = packing.prune_weights(model, packing.OptimizationConfig(global_config=pruner))
    model.save(str(copy_with_config(source.folder, target, source.tensors.values()) / MODEL))
