"""One network to one ONNX graph: dynamo exporter, dynamic batch, no traces, large weights in an own file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from g4seg_engine.spec import BATCH, NetworkSpec
from g4seg_export.errors import ExportError

OPSET = 18
"""Here GroupNorm becomes InstanceNormalization, which ONNX Runtime runs faster than opset 21's
GroupNormalization (on CPU 1.6 times at 128x256x256), and LayerNorm is one operator."""

BF16_OPSET = 22
"""The first whose Conv takes bfloat16."""

ATTENTION_OPSET = 23
"""The first with the Attention operator."""

EXTERNAL_DATA_BYTES = 1_500_000_000
"""Weights above this go to a file beside the graph. One protobuf file cannot pass 2 GB."""

_TRACED_MAX_BATCH = 8
# Smaller tensors (norms, biases) cost nothing and keep their precision.
_HALF_MIN_ELEMENTS = 1024


def export_network(
    module: nn.Module,
    spec: NetworkSpec,
    example: Mapping[str, NDArray[np.generic]],
    path: Path,
    *,
    half_weights: bool = False,
    opset: int = OPSET,
) -> list[Path]:
    """Write `module` as an ONNX graph with the names and axes of `spec`.

    Args:
        module: its forward takes the spec's inputs in order and returns its only output.
        spec: names, shapes and the batch axis.
        example: one array per input; batch 2 or more where the batch is dynamic.
        path: of the graph; large weights go to the same name with ".data" appended.
        half_weights: store weights as float16 with a cast in the graph, wherever that loses nothing. Round
            the module first (`round_to_half`), or few weights will qualify.
        opset: ONNX opset of the graph.

    Returns:
        The files written, the graph first.

    Raises:
        ExportError: if the exporter refuses the module.
    """
    names = [tensor.name for tensor in spec.inputs]
    arguments = tuple(torch.from_numpy(example[name]) for name in names)
    # Only a bound for tracing: the library's own guards (32-bit sizes) need one. The graph takes any batch.
    batch = torch.export.Dim(BATCH, min=1, max=_TRACED_MAX_BATCH)
    shapes = tuple({axis: batch for axis, size in enumerate(tensor.shape) if size == BATCH} for tensor in spec.inputs)
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=shapes,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"{spec.name} cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
    if program is None:
        raise ExportError(f"{spec.name} cannot be exported to ONNX: the exporter returned nothing")
    model = program.model
    _strip_traces(model)
    if half_weights:
        _store_half(model.graph)
    files = _save(model, path)
    # onnxscript's pattern matchers are globals that remember nodes, and through them whole graphs.
    for value in model.graph.initializers.values():
        value.const_value = None
    return files


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round, in place, every weight that `half_weights` would store to the nearest float16 value.

    Raises:
        ExportError: if a weight exceeds float16's range.
    """
    for name, parameter in module.named_parameters():
        if parameter.dtype == torch.float32 and parameter.numel() >= _HALF_MIN_ELEMENTS:
            rounded = parameter.half().float()
            if not torch.isfinite(rounded).all():
                raise ExportError(f"weight {name} exceeds the range of half precision: export without half weights")
            parameter.copy_(rounded)


def release_weights(module: nn.Module) -> None:
    """Give the memory of an exported module's weights back at once; the module is of no use afterwards.

    Dropping the module is not enough: graphs that the exporter's libraries remember share its weights.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def _store_half(graph: ir.Graph) -> None:
    """Replace every large float32 initialiser that float16 holds exactly by a float16 one and a Cast."""
    casts = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _HALF_MIN_ELEMENTS:
            continue
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored_name = f"{name}.half"
        stored = ir.Value(
            name=stored_name,
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(half, name=stored_name),
        )
        cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], name=f"{name}.cast")
        output = cast.outputs[0]
        output.name, output.shape, output.type = f"{name}.float", value.shape, value.type
        value.replace_all_uses_with(output)
        del graph.initializers[name]
        graph.register_initializer(stored)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)


def _strip_traces(model: ir.Model) -> None:
    """Remove the exporter's notes about its own run, such as source lines and folders of this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for output in node.outputs:
                output.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
    model.metadata_props.clear()


def _save(model: ir.Model, path: Path) -> list[Path]:
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights <= EXTERNAL_DATA_BYTES:
        ir.save(model, path)
        return [path]
    data = path.with_name(f"{path.name}.data")
    ir.save(model, path, external_data=data.name)
    return [path, data]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about optional packages and renamed axes; failures still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
