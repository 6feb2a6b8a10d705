"""OpenVINO's IR, converted from the ONNX form; int8 weights through NNCF."""

import json
import logging
import sys
import tempfile
from pathlib import Path

from jaxprune.export.extras import needed
from jaxprune.export.source import FEWEST_ZEROS, Source, share_gone
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
    """The least share of zeros, from FEWEST_ZEROS on, among the pruned matrices of a source; 1 where there is none."""
    shares = map(share_gone, source.pruned().values())
    return min((share for share in shares if share >= FEWEST_ZEROS), default=1.0)
