"""Floating point operations and bytes of a network, counted from its ONNX graph.

Counted are convolutions and matrix products, a multiplication and an addition as two operations. Norms, activations,
softmax and resizing are not. What is counted is what the graph does, which is less than what the original modules do:
each upsampling convolution is exported as four 2x2 ones (see g4seg_export.upsampling). At 512 pixels SD2.1's VAE
decoder is left with 2.128 TFLOP of 2.515 and its UNet with 0.767 of 0.804; the VAE encoder keeps its 1.117.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_engine.errors import G4SegError, MissingExtraError
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import BATCH, NETWORKS
from g4seg_trt.cli.common import one_line

Shape = tuple[int, ...]

_KEPT_BYTES = 8192
"""Larger initialisers are no shapes: what they hold is dropped before shapes are inferred."""
_OPAQUE = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_OTHER_LAYERS = frozenset(
    {"ConvInteger", "DeformConv", "GRU", "LSTM", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN"}
)


@dataclass(frozen=True)
class Work:
    """What a network does in one run, or several networks and runs together.

    Attributes:
        convolution: FLOP of convolutions.
        product: FLOP of matrix products with weights.
        attention: FLOP of matrix products of two activations.
        weight_bytes: size of all constants as the graph stores them, but for tables that are only looked up in.
        activation_bytes: size of what convolutions and products with weights read and write, each tensor once for
            each of these nodes. Everything between them counts as fused into them; so do the scores of attention,
            whose queries, keys, values and result are written and read by the products around it.
    """

    convolution: float
    product: float
    attention: float
    weight_bytes: int
    activation_bytes: int

    @property
    def flop(self) -> float:
        """All floating point operations."""
        return self.convolution + self.product + self.attention

    @property
    def bytes(self) -> int:
        """All bytes that are read or written."""
        return self.weight_bytes + self.activation_bytes

    def times(self, runs: int) -> Work:
        """The work of several runs, each of which reads the weights again."""
        return Work(
            self.convolution * runs,
            self.product * runs,
            self.attention * runs,
            self.weight_bytes * runs,
            self.activation_bytes * runs,
        )

    def __add__(self, other: Work) -> Work:
        return Work(
            self.convolution + other.convolution,
            self.product + other.product,
            self.attention + other.attention,
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
        )


def engine_work(directory: Path, manifest: Manifest, batch: int) -> dict[str, Work]:
    """The work of one run of each network of an engine, by its name (see NETWORKS).

    Args:
        directory: the engine.
        manifest: the engine's.
        batch: of every network whose batch is free; vae_encoder takes one image at a time.

    Raises:
        MissingExtraError: if onnx is not installed.
        G4SegError: as `network_work`.
    """
    return {name: network_work(directory / manifest.networks[name].files[0].file, batch) for name in NETWORKS}


def network_work(path: Path, batch: int) -> Work:
    """The work of one run of a network.

    Args:
        path: the ONNX graph; external data are not read.
        batch: size of the axes that are named "B".

    Raises:
        MissingExtraError: if onnx is not installed.
        G4SegError: if a shape that matters stays unknown, or a node is of a kind whose work is not known.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError.for_package("onnx", "export") from error
    model = onnx.load(path, load_external_data=False)
    graph = _Graph(path.name, model, batch)
    convolution = product = attention = 0.0
    activation_bytes = 0
    for node in graph.nodes:
        kind = _kind(graph, node)
        if kind is None:
            continue
        flop = _FLOP[node.op_type](graph, node)
        if kind == "attention":
            attention += flop
            continue
        if kind == "convolution":
            convolution += flop
        else:
            product += flop
        activations = [name for name in (*node.input, *node.output) if name and name not in graph.constants]
        activation_bytes += sum(graph.size(node, name) for name in activations)
    return Work(convolution, product, attention, graph.weight_bytes(), activation_bytes)


class _Graph:
    """A graph with the shape of every tensor, and which tensors are constant.

    Args:
        name: for messages.
        model: an onnx.ModelProto, which is changed.
        batch: size of the axes that are named BATCH.
    """

    def __init__(self, name: str, model: Any, batch: int) -> None:
        import onnx
        import onnx.inliner

        self._name = name
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._types: dict[str, int] = {}
        self._shapes: dict[str, Shape | None] = {}
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for tensor in model.graph.initializer:
            self._types[tensor.name] = tensor.data_type
            self._shapes[tensor.name] = tuple(tensor.dims)
        self.nodes = model.graph.node
        self.constants = self._find_constants()
        self._refuse_unknown()
        try:
            inferred = onnx.shape_inference.infer_shapes(_lightened(model, batch), data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise G4SegError(f"{name}: the shapes cannot be inferred: {one_line(str(error))}") from error
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor_type = value.type.tensor_type
            self._types[value.name] = tensor_type.elem_type
            sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor_type.shape.dim]
            known = tensor_type.HasField("shape") and None not in sizes
            self._shapes[value.name] = tuple(int(size) for size in sizes if size is not None) if known else None

    def shape(self, node: Any, tensor: str) -> Shape:
        """The shape of an input or output of a node."""
        shape = self._shapes.get(tensor)
        if shape is None:
            raise G4SegError(
                f"{self.describe(node)}: the shape of {tensor} is not known, so its work cannot be counted"
            )
        return shape

    def size(self, node: Any, tensor: str) -> int:
        """Bytes of an input or output of a node."""
        return math.prod(self.shape(node, tensor)) * _width(self._types[tensor])

    def weight_bytes(self) -> int:
        """Bytes of all constants but those that are only looked up in."""
        read = {name for node in self.nodes if node.op_type != "Gather" for name in node.input}
        return sum(
            math.prod(tensor.dims) * _width(tensor.data_type)
            for name, tensor in self.initializers.items()
            if name in read
        )

    def describe(self, node: Any) -> str:
        """A node, for messages."""
        return f"{self._name}: node {node.name or node.output[0]} ({node.op_type})"

    def _refuse_unknown(self) -> None:
        """Raise G4SegError for a node that may do work which is not counted here."""
        for node in self.nodes:
            if node.domain not in ("", "ai.onnx") or node.op_type in _OPAQUE | _OTHER_LAYERS:
                operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                raise G4SegError(f"{self.describe(node)}: the work of operator {operator} is not known")

    def _find_constants(self) -> frozenset[str]:
        """Initialisers, and what follows from them alone, such as a weight that is dequantised or transposed."""
        found = set(self.initializers)
        for node in self.nodes:
            if all(name in found for name in node.input if name):
                found.update(node.output)
        return frozenset(found)


def _lightened(model: Any, batch: int) -> Any:
    """The model with the batch filled in, without stale shapes and without the values of large initialisers."""
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > _KEPT_BYTES:
            tensor.ClearField("raw_data")
    for value in (*model.graph.input, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == BATCH:
                size.dim_value = batch
    return model


def _kind(graph: _Graph, node: Any) -> str | None:
    """ "convolution", "product" or "attention"; None for a node that is not counted."""
    if node.op_type not in _FLOP or node.output[0] in graph.constants:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return "convolution"
    if node.op_type == "Attention" or not any(name in graph.constants for name in node.input[:2]):
        return "attention"
    return "product"


def _conv(graph: _Graph, node: Any) -> float:
    # A weight is [outputs, inputs / groups, *kernel]: each output value takes one channel's kernel.
    return 2.0 * math.prod(graph.shape(node, node.output[0])) * math.prod(graph.shape(node, node.input[1])[1:])


def _conv_transpose(graph: _Graph, node: Any) -> float:
    # A weight is [inputs, outputs / groups, *kernel]: each input value is spread by one channel's kernel.
    return 2.0 * math.prod(graph.shape(node, node.input[0])) * math.prod(graph.shape(node, node.input[1])[1:])


def _gemm(graph: _Graph, node: Any) -> float:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = graph.shape(node, node.input[0])[0 if transposed else 1]
    return 2.0 * math.prod(graph.shape(node, node.output[0])) * inner


def _matmul(graph: _Graph, node: Any) -> float:
    return 2.0 * math.prod(graph.shape(node, node.output[0])) * graph.shape(node, node.input[0])[-1]


def _einsum(graph: _Graph, node: Any) -> float:
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise G4SegError(f"{graph.describe(node)}: the work of the equation {equation} is not known")
    shapes = (graph.shape(node, name) for name in node.input)
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return 2.0 * math.prod(sizes.values())


def _attention(graph: _Graph, node: Any) -> float:
    # Q is [B,L,heads x width] or [B,heads,L,width], K and V likewise; the result has V's width and Q's heads.
    keys = graph.shape(node, node.input[1])[-2]
    if len(node.input) > 4 and node.input[4]:
        keys += graph.shape(node, node.input[4])[-2]
    ends = (node.input[0], node.output[0])
    return sum(2.0 * keys * math.prod(graph.shape(node, name)) for name in ends)


_FLOP: Mapping[str, Callable[[_Graph, Any], float]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
}


def _width(data_type: int) -> int:
    """Bytes of one element; 4-bit types count as one byte."""
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
