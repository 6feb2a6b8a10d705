"""ONNX, through torch's exporter; int8 through onnxruntime's own quantiser."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.export.extras import needed
from jaxprune.export.source import Source
from jaxprune.models.folder import copy_with_config

MODEL = "model.onnx"
SPARSE_ABOVE = 2 / 3
"""Zeros above which ONNX's sparse form, 8 bytes of position beside 4 of value, is smaller than the dense one."""


def write(source: Source, target: Path, *, dtype: str, coded: bool) -> None:
    """Write `model.onnx` into the directory `target`, with the source's other files.

    float32: matrices of more than two thirds zeros are `sparse_initializer`s. int8: weights by tensor, activations as
    they come (`quantize_dynamic`); unsigned, since sums of signed ones overflow on CPUs without VNNI, without a word.
    UserError without the extra.
    """
    from jaxprune.export.torch_model import quiet

    onnx, quantization, *_ = needed("onnx", "onnx", "onnxruntime.quantization", "onnxscript", "torch")
    inner = copy_with_config(source.folder, target, source.tensors.values())
    export(source, inner / MODEL)
    if dtype == "int8":
        dense = (inner / MODEL).rename(inner / "dense.onnx")
        with quiet():
            quantization.quantize_dynamic(dense, inner / MODEL, weight_type=quantization.QuantType.QUInt8)
        dense.unlink()
        return
    model = onnx.load(inner / MODEL)
    make_sparse(model.graph)
    onnx.save(model, inner / MODEL)


def export(source: Source, path: Path) -> None:
    """Write the model in float32, dense, for any number and length of texts."""
    import onnx
    import torch

    from jaxprune.export.torch_model import quiet, torch_model

    model = torch_model(source)
    length = torch.export.Dim("length", max=source.record.max_tokens(source.model))
    axes = ({0: torch.export.Dim("batch"), 1: length},) * len(model.inputs)
    with quiet():
        program = torch.onnx.export(
            model.module,
            (*model.inputs.values(),),
            input_names=[*model.inputs],
            output_names=model.outputs,
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for node in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del node.metadata_props[:]  # where in torch's and transformers' source it comes from
    onnx.save(proto, path)


def make_sparse(graph: Any) -> None:
    """Turn the float initializers of an ONNX graph that have zeros enough into sparse ones."""
    from onnx import helper, numpy_helper

    for tensor in [*graph.initializer]:
        array = numpy_helper.to_array(tensor)
        if array.ndim != 2 or array.dtype != np.float32 or (array == 0).mean() <= SPARSE_ABOVE:
            continue
        at = np.flatnonzero(array)
        values = numpy_helper.from_array(array.reshape(-1)[at], tensor.name)
        indices = numpy_helper.from_array(at.astype(np.int64), f"{tensor.name}_indices")
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, array.shape))
        graph.initializer.remove(tensor)
