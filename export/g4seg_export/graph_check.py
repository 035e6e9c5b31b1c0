"""Is an exported half graph half? A graph that silently stayed float32 is the commonest accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from g4seg_export.errors import ExportError

_TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
# An Attention counts as one: both of its products are of its inputs' type.
_PRODUCTS = ("Attention", "Conv", "ConvTranspose", "Gemm", "MatMul")


def check_half_graph(path: Path, network: str, precision: str, float32_products: int) -> dict[str, int]:
    """Check that every matrix product and convolution is half but the named islands, and every type is consistent.

    Args:
        path: the graph; external data is looked up beside it.
        network: its name, for messages.
        precision: "fp16" or "bf16".
        float32_products: how many products are islands in float32.

    Returns:
        "half_products" and "float32_products", how many there are.

    Raises:
        ExportError: for a graph that breaks ONNX's type rules, such as an operator that mixes float types, or
            another number of float32 products.
    """
    try:
        # By path: a graph with its weights may exceed what one message can hold.
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{network}: the {precision} graph breaks ONNX's rules: {reason}") from error
    graph = onnx.load(path, load_external_data=False).graph
    types = element_types(graph)
    found = [types.get(node.input[0]) for node in graph.node if node.op_type in _PRODUCTS]
    half, full = found.count(_TYPES[precision]), found.count(onnx.TensorProto.FLOAT)
    if full != float32_products or half + full != len(found):
        raise ExportError(
            f"{network}: {half} of {len(found)} matrix products and convolutions of the {precision} graph are half "
            f"and {full} are float32, expected {len(found) - float32_products} and {float32_products}"
        )
    return {"half_products": half, "float32_products": full}


def element_types(graph: Any) -> dict[str, int]:
    """The element type of every tensor of an onnx.GraphProto, by name."""
    values = (*graph.input, *graph.value_info, *graph.output)
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {**weights, **{value.name: value.type.tensor_type.elem_type for value in values}}
