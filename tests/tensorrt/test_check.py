"""Checks on the engine inspector's JSON, in the forms that TensorRT writes it."""

from __future__ import annotations

import json

import pytest

from g4seg_engine.errors import EngineError
from g4seg_engine.tensorrt_check import (
    SIZE_SLACK,
    attention_blocks,
    check_precision,
    check_size,
    half_share,
    output_share,
    parse_layers,
)


def layer(
    name: str, *nodes: str, inputs: tuple[str, ...] = ("Half",), outputs: tuple[str, ...] = ("Half",), kernel: str = ""
) -> dict[str, object]:
    """A layer as TensorRT's detailed inspector describes it."""
    return {
        "Name": name,
        "LayerType": "kgen",
        "Inputs": [{"Name": f"in{i}", "Dimensions": [1, 8], "Format/Datatype": text} for i, text in enumerate(inputs)],
        "Outputs": [{"Name": f"out{i}", "Dimensions": [1, 8], "Format/Datatype": t} for i, t in enumerate(outputs)],
        "TacticName": kernel,
        "StreamId": 0,
        "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def engine(*layers: dict[str, object]) -> str:
    # TensorRT separates node names by a control character, which its JSON holds as it is.
    return json.dumps({"Layers": layers, "Bindings": ["image"]}).replace("\\u001e", "\x1e")


def test_layers_are_read_with_their_nodes_and_precisions() -> None:
    text = engine(
        layer("conv", "node_conv", "node_add", inputs=("Half", "Int64"), outputs=("Float",), kernel="sm90_xmma"),
        {"Name": "wait", "LayerType": "wait", "Inputs": [], "Outputs": []},
    )
    first, second = parse_layers(text, "unet")
    assert first.nodes == {"node_conv", "node_add"}
    assert (first.inputs, first.outputs, first.kernel) == (("fp16", ""), ("fp32",), "sm90_xmma")
    assert (second.inputs, second.outputs, second.nodes) == ((), (), frozenset())


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Half", "fp16"),
        ("Half(64,1:8,...)", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format", "bf16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("Int64", ""),
        ("Bool", ""),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_every_spelling_of_a_format_is_known(text: str, precision: str) -> None:
    (only,) = parse_layers(engine(layer("a", outputs=(text,))), "unet")
    assert only.outputs == (precision,)


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"Layers": []}', '{"Layers": ["conv1", "conv2"]}', '{"Layers": 3}']
)
def test_an_inspector_without_details_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match=r"unet for batch size 2: TensorRT's engine inspector gave no"):
        parse_layers(text, "unet for batch size 2")


def test_the_share_counts_products_and_leaves_islands_out() -> None:
    layers = parse_layers(
        engine(
            layer("conv", "node_conv"),
            layer("gemm", "node_linear", outputs=("Float",)),  # writes what the float32 norm behind it reads
            layer("norm", "node_norm", inputs=("Float",), outputs=("Float",)),
            layer("softmax", "node_softmax", inputs=("Float",), outputs=("Float",)),
        ),
        "unet",
    )
    assert half_share(layers, ["node_conv", "node_linear"], "fp16") == 1.0
    assert half_share(layers, ["node_conv", "node_linear"], "bf16") == 0.0
    assert output_share(layers, "fp16") == 0.25


def test_a_silent_float32_engine_is_refused() -> None:
    full = [layer(f"conv{i}", f"node{i}", inputs=("Float",), outputs=("Float",)) for i in range(8)]
    layers = parse_layers(engine(*full, layer("cast", "node_cast", inputs=("Float",), outputs=("Half",))), "unet")
    share = half_share(layers, [f"node{i}" for i in range(8)], "fp16")
    assert share == 0.0
    with pytest.raises(EngineError, match="only 0% of its convolutions and matrix products work in fp16"):
        check_precision("unet for batch size 1", share, "fp16")


def test_nine_tenths_are_enough() -> None:
    check_precision("unet", 0.9, "bf16")
    with pytest.raises(EngineError, match="expected 90% or more"):
        check_precision("unet", 0.89, "bf16")


def test_where_no_layer_names_a_product_all_layers_count() -> None:
    layers = parse_layers(engine(layer("a"), layer("b", inputs=("Float",), outputs=("Float",))), "unet")
    assert half_share(layers, ["node_conv"], "fp16") == 0.5
    assert half_share([], ["node_conv"], "fp16") == 0.0


def test_fused_attention_is_told_from_single_kernels() -> None:
    layers = parse_layers(
        engine(
            layer("_gemm_mha_v2_myl0_4", "node_matmul_1", "node_softmax_1", "node_matmul_2"),
            layer("kgen", "node_matmul_3", "node_softmax_2", kernel="sm90_fmha_v2_flash_attention_fp16_64"),
            layer("node_softmax_3+mhat", "node_softmax_3", kernel="__myl_MaxSubExpSum"),
        ),
        "unet",
    )
    found = attention_blocks(layers, ["node_softmax_1", "node_softmax_2", "node_softmax_3"])
    assert (found.total, found.fused, found.unfused) == (3, 2, ("node_softmax_3",))


def test_fused_attention_without_node_names_is_counted() -> None:
    layers = parse_layers(engine(layer("_gemm_mha_v2_myl0_4"), layer("_gemm_mha_v2_myl0_9")), "unet")
    found = attention_blocks(layers, ["node_softmax_1", "node_softmax_2", "node_softmax_3"])
    assert (found.total, found.fused, found.unfused) == (3, 2, ())


def test_without_fused_attention_every_block_is_named() -> None:
    layers = parse_layers(engine(layer("softmax", "node_softmax_1", inputs=("Float",))), "unet")
    assert attention_blocks(layers, ["node_softmax_1"]).unfused == ("node_softmax_1",)
    assert attention_blocks(layers, []).total == 0


def test_a_plan_that_outgrows_its_weights_is_refused() -> None:
    weights = 1000 * 2**20
    check_size("unet", int(1.5 * weights), weights, "fp16")
    check_size("unet", 2 * weights, weights, "fp32")  # stored as float16, computed in float32
    with pytest.raises(EngineError, match="the plan has 2097 MB for 1049 MB of fp16 weights"):
        check_size("unet", 2 * weights, weights, "fp16")
    check_size("text_encoder", SIZE_SLACK, 100, "fp16")  # a tiny network is mostly kernels
