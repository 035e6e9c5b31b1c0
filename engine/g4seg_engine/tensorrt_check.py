"""What TensorRT made of a graph, read from its engine inspector: precision, size and fused attention.

Pure functions on the inspector's JSON (detailed profiling verbosity). A layer of it names its tensors with their
formats, such as "Half" or "Row major linear FP16 format", its kernel, and in "Metadata" the ONNX nodes that went
into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g4seg_engine.errors import EngineError

MIN_HALF_SHARE = 0.9
"""Smallest share of convolutions and matrix products of a half graph that must work on half tensors."""

MAX_GROWTH = {"fp32": 2.5, "fp16": 1.5, "bf16": 1.5}
"""Largest plan for its ONNX weights, by precision. Weights of a float32 graph may be stored as float16."""

SIZE_SLACK = 64 * 2**20
"""Bytes that a plan may hold besides weights: kernels, mostly."""

_ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\]")
_FUSED = re.compile(r"(?<![a-z])f?mha(?![a-z])|flash_?attention")
_FORMATS = (
    ("bf16", re.compile(r"bf16|bfloat")),
    ("fp16", re.compile(r"half|fp16")),
    ("fp32", re.compile(r"float|fp32")),
)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: as the inspector gives it.
        kernel: name of the tactic, or "".
        nodes: names of the ONNX nodes that it computes.
        inputs: precision of each input, "" for integers and the like.
        outputs: the same of each output.
    """

    name: str
    kernel: str
    nodes: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """How many attention blocks there are, how many became one fused kernel each, and the names of the others.

    `unfused` is empty where the inspector does not tell which they are.
    """

    total: int
    fused: int
    unfused: tuple[str, ...]


def parse_layers(information: str, where: str) -> tuple[Layer, ...]:
    """The layers in the inspector's JSON.

    Args:
        information: of the whole engine.
        where: what was built, for messages.

    Raises:
        EngineError: it is not JSON, has no layers, or only their names.
    """
    try:
        # The bindings may hand out control characters as they are: they separate the node names.
        data = json.loads(information, strict=False)
        layers = data["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{where}: TensorRT's engine inspector gave no layers") from error
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        raise EngineError(f"{where}: TensorRT's engine inspector gave no details of its layers")
    return tuple(_layer(layer) for layer in layers)


def node_names(metadata: str) -> frozenset[str]:
    """The ONNX nodes named in the metadata of a layer, of a network or of an engine."""
    return frozenset(_ONNX_NAME.findall(metadata))


def half_share(layers: Iterable[Layer], products: Iterable[str], precision: str) -> float:
    """Share of convolutions and matrix products that read or write tensors of this precision.

    Not of all layers: norms and softmax of a half graph are float32 on purpose. Where no layer names a product, all
    layers count.

    Args:
        layers: of the engine.
        products: names of the ONNX nodes that are convolutions or matrix products.
        precision: "fp16" or "bf16".

    Returns:
        0 to 1; 0 where there is no float tensor at all.
    """
    wanted = frozenset(products)
    floats = [layer for layer in layers if any((*layer.inputs, *layer.outputs))]
    counted = [layer for layer in floats if layer.nodes & wanted] or floats
    return sum(precision in (*layer.inputs, *layer.outputs) for layer in counted) / max(1, len(counted))


def output_share(layers: Iterable[Layer], precision: str) -> float:
    """Share of this precision among all float outputs of all layers: a figure to report, 0 to 1."""
    outputs = [output for layer in layers for output in layer.outputs if output]
    return outputs.count(precision) / max(1, len(outputs))


def attention_blocks(layers: Iterable[Layer], softmaxes: Sequence[str]) -> Attention:
    """Which attention blocks became one kernel.

    Args:
        layers: of the engine.
        softmaxes: names of the graph's softmax nodes: one for each attention block.
    """
    fused = [layer for layer in layers if _FUSED.search(f"{layer.name} {layer.kernel}".lower())]
    named = frozenset[str]().union(*(layer.nodes for layer in fused))
    if fused and not named & frozenset(softmaxes):
        return Attention(len(softmaxes), min(len(fused), len(softmaxes)), ())
    unfused = tuple(name for name in softmaxes if name not in named)
    return Attention(len(softmaxes), len(softmaxes) - len(unfused), unfused)


def check_precision(where: str, share: float, precision: str) -> None:
    """Refuse a half engine that computes in float32: the commonest accident, and silent.

    Raises:
        EngineError: below MIN_HALF_SHARE.
    """
    if share < MIN_HALF_SHARE:
        raise EngineError(
            f"{where}: only {share:.0%} of its convolutions and matrix products work in {precision}, expected "
            f"{MIN_HALF_SHARE:.0%} or more: the ONNX graph is not {precision}; export it again"
        )


def check_size(where: str, plan_bytes: int, weight_bytes: int, precision: str) -> None:
    """Refuse a plan that is much larger than the weights it was built from.

    Args:
        where: what was built, for messages.
        plan_bytes: size of the plan.
        weight_bytes: size of the ONNX graph with its external data.
        precision: of the graph, a key of MAX_GROWTH.

    Raises:
        EngineError: it is.
    """
    if plan_bytes > MAX_GROWTH[precision] * weight_bytes + SIZE_SLACK:
        raise EngineError(
            f"{where}: the plan has {plan_bytes / 1e6:.0f} MB for {weight_bytes / 1e6:.0f} MB of {precision} weights: "
            "TensorRT stored them in a wider type; report it with the TensorRT version"
        )


def _layer(data: Mapping[str, Any]) -> Layer:
    return Layer(
        name=str(data.get("Name", "")),
        kernel=str(data.get("TacticName", "")),
        nodes=node_names(str(data.get("Metadata", ""))),
        inputs=_precisions(data.get("Inputs")),
        outputs=_precisions(data.get("Outputs")),
    )


def _precisions(tensors: object) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    formats = (str(tensor.get("Format/Datatype", "")).lower() for tensor in tensors if isinstance(tensor, dict))
    return tuple(next((name for name, pattern in _FORMATS if pattern.search(text)), "") for text in formats)
