"""Attention as ONNX's own operator: one node for each layer, which computes what the products do."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from g4seg_engine.manifest import Manifest, NetworkRecord, load_engine
from g4seg_engine.spec import ModelDims, NetworkSpec, network_specs
from g4seg_export.architectures import fill_random
from g4seg_export.attention import inject
from g4seg_export.engine import _export_one, export_engine
from g4seg_export.examples import example_inputs
from g4seg_export.graph_check import check_half_graph, element_types
from g4seg_export.networks import Unet
from g4seg_export.onnx_export import ATTENTION_OPSET, OPSET, export_network
from g4seg_export.parity import compare_outputs, reference_outputs
from g4seg_export.precision import float32_products, set_precision

DIMS = ModelDims(square=16, latent_factor=2, latent_channels=4, text_length=77, text_width=24, feature_width=10, grid=4)

CASES = {
    "dense": ("dense", "fp32", False),
    "folded": ("folded", "fp32", False),
    "dense half upcast": ("dense", "fp16", True),
    "folded half": ("folded", "fp16", False),
}


def small_unet(upcast: bool) -> Any:
    """One layer of self- and one of cross-attention, two heads of 4."""
    library: Any = diffusers
    unet = library.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        use_linear_projection=True,
        norm_num_groups=4,
        upcast_attention=upcast,
    )
    fill_random(unet, 1)
    return unet.eval()


@pytest.fixture(scope="module", params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    alphas: NDArray[np.float64],
) -> SimpleNamespace:
    """A small UNet's graph with the operator, and what float32 torch makes with the products."""
    form, precision, upcast = CASES[request.param]
    spec = network_specs(DIMS, precision=precision)["unet"]
    examples = [example_inputs(spec, batch=batch, seed=batch, vocabulary=258, timesteps=1000) for batch in (2, 3)]
    unet = small_unet(upcast)
    network = Unet(unet, alphas, "v_prediction").eval()
    with inject(unet, form):
        expected = reference_outputs(network, spec, examples)
    with inject(unet, form, "operator"):
        operated = reference_outputs(network, spec, examples)
        set_precision(network, precision)
        path = tmp_path_factory.mktemp("graph") / "unet.onnx"
        export_network(network, spec, examples[0], path, opset=ATTENTION_OPSET)
        islands = float32_products(network)
    return SimpleNamespace(
        form=form,
        precision=precision,
        upcast=upcast,
        spec=spec,
        examples=examples,
        expected=expected,
        operated=operated,
        path=path,
        islands=islands,
        layers=len(unet.attn_processors),
    )


def test_operator_and_products_agree(exported: SimpleNamespace) -> None:
    for products, operator in zip(exported.expected, exported.operated, strict=True):
        difference = np.abs(products["denoised"] - operator["denoised"]).max()
        assert difference < 1e-5 * np.abs(products["denoised"]).max()
    figures = compare_outputs(exported.path, exported.spec, exported.examples, exported.expected)
    assert figures["batches"] == [2, 3]
    assert figures["relative"] < (1e-5 if exported.precision == "fp32" else exported.spec.tolerance)


def test_every_layer_is_one_node_that_tensorrt_can_read(exported: SimpleNamespace) -> None:
    onnx.checker.check_model(str(exported.path), full_check=True)
    model = onnx.load(exported.path)
    assert model.opset_import[0].version == ATTENTION_OPSET
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(nodes) == exported.layers
    assert not any(node.op_type == "Softmax" for node in model.graph.node)
    types = element_types(model.graph)
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.value_info
    }
    full = exported.precision == "fp32" or exported.upcast
    for node in nodes:
        # TensorRT takes one output and no softmax_precision.
        assert len(node.output) == 1
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert "softmax_precision" not in attributes
        width, keys = shapes[node.input[0]][3], shapes[node.input[1]][2]
        original = shapes[node.input[2]][3]
        assert attributes["scale"] == pytest.approx(original**-0.5)
        assert width == original + (exported.form == "folded")
        assert {types[name] for name in node.input} == {TensorProto.FLOAT if full else TensorProto.FLOAT16}
        assert len(node.input) == (4 if exported.form == "dense" else 3)
        if exported.form == "dense":
            assert shapes[node.input[3]][1:] == [1, shapes[node.input[0]][2], keys]


def test_half_graphs_are_checked(exported: SimpleNamespace) -> None:
    if exported.precision == "fp32":
        pytest.skip("float32 graphs have no islands")
    counts = check_half_graph(exported.path, "unet", exported.precision, exported.islands)
    assert counts["float32_products"] == (exported.layers if exported.upcast else 0)
    operators = Counter(node.op_type for node in onnx.load(exported.path).graph.node)
    products = sum(operators[kind] for kind in ("Attention", "Conv", "Gemm", "MatMul"))
    assert sum(counts.values()) == products


def test_an_engine_records_its_attention(
    tmp_path: Path, model_folder: Path, engine: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, ready = engine
    export_one = _export_one

    def export_unet(source: Any, spec: NetworkSpec, folder: Path, options: Any) -> NetworkRecord:
        """Only the UNet is exported; the others are those of an engine that is there."""
        if spec.name == "unet":
            return export_one(source, spec, folder, options)
        shutil.copy(directory / f"{spec.name}.onnx", folder)
        return ready.networks[spec.name]

    monkeypatch.setattr("g4seg_export.engine._export_one", export_unet)
    output = tmp_path / "engine"
    manifest = export_engine(str(model_folder), output, attention="operator", progress=False)
    assert load_engine(output) == manifest
    assert manifest.injection.attention == "operator"
    assert manifest.build_command.endswith("--overwrite --attention operator")
    opsets = {name: network.opset for name, network in manifest.networks.items()}
    assert opsets == {**dict.fromkeys(opsets, OPSET), "unet": ATTENTION_OPSET}
    assert manifest.networks["unet"].parity["relative"] < 1e-5
    operators = Counter(node.op_type for node in onnx.load(output / "unet.onnx").graph.node)
    assert operators["Attention"] == 8
    # Which ONNX Runtime and TensorRT run worse than the other.
    assert (operators["GroupNormalization"], operators["InstanceNormalization"] > 0) == (0, True)
