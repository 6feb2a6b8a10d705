"""OpenVINO's IR, converted from the ONNX form; int8 weights through NNCF."""

import json
import logging
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxprune.export.extras import needed
from jaxprune.export.source import Source
from jaxprune.models.folder import copy_with_config

MODEL = "openvino_model.xml"
PROPERTIES = "openvino_properties.json"
SPARSE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write `openvino_model.xml` and `.bin` into the directory `target`, with the source's other files.

    int8: symmetric weights, a scale per output, so that zeros stay zeros. `openvino_properties.json` holds what to give
    to `compile_model`: from which share of zeros the CPU plugin keeps int8 matrices packed, on chips with AMX.
    UserError without the extra.
    """
    from jaxprune.export import onnx
    from jaxprune.export.torch_model import quiet

    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore (it would tell its makers of each export)
    openvino, nncf = needed("openvino", "openvino", "nncf", "onnx", "onnxscript", "torch")[:2]
    inner = copy_with_config(source.folder, target, source.tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        onnx.export(source, Path(folder) / onnx.MODEL)
        model = openvino.convert_model(Path(folder) / onnx.MODEL)
        if dtype == "int8":
            logging.getLogger("nncf").setLevel(logging.ERROR)
            with quiet():
                model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        openvino.save_model(model, inner / MODEL, compress_to_fp16=False)
    properties = {SPARSE: round(sparsest(source), 4)} if dtype == "int8" else {}
    (inner / PROPERTIES).write_text(json.dumps(properties, indent=2) + "\n")


def sparsest(source: Source) -> float:
    """The least share of zeros among the pruned matrices of a source, 1 where there are none."""
    kept = (source.kept(name) for name in source.tensors)
    shares = (1 - np.count_nonzero(mask) / mask.size for mask in kept if mask is not None)
    return min(filter(None, shares), default=1.0)
