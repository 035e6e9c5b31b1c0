"""Half engines: graphs that are half where they should be, float32 on the islands, and what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner
from g4seg_engine.runner import open_runner
from g4seg_engine.spec import NETWORKS, ModelDims, network_specs
from g4seg_export.attention import inject
from g4seg_export.engine import export_engine
from g4seg_export.errors import ExportError, ParityError
from g4seg_export.examples import example_inputs
from g4seg_export.graph_check import check_half_graph, element_types
from g4seg_export.networks import Unet, load_network
from g4seg_export.onnx_export import export_network
from g4seg_export.parity import compare_outputs, compare_rounded, reference_outputs
from g4seg_export.precision import float32_products, set_io, set_precision
from g4seg_export.sources import load_source

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def half_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Any:
    """The directory of a half engine and its manifest; bfloat16 with float16 inputs and outputs."""
    output = tmp_path_factory.mktemp("engines") / request.param
    io_dtype = "float16" if request.param == "bf16" else "float32"
    manifest = export_engine(
        str(model_folder), output, precision=request.param, io_dtype=io_dtype, dense_mode="csa", progress=False
    )
    return output, manifest


def test_half_engines_are_complete_and_say_what_they_are(half_engine: tuple[Path, Manifest]) -> None:
    directory, written = half_engine
    manifest = load_engine(directory, verify=True)
    assert manifest == written
    precision = manifest.networks["unet"].precision
    assert {network.precision for network in manifest.networks.values()} == {precision}
    assert manifest.io_dtype == ("float16" if precision == "bf16" else "float32")
    options = " --precision fp16" if precision == "fp16" else " --precision bf16 --io float16"
    assert manifest.build_command.endswith(f"--overwrite{options}")
    specs = network_specs(manifest.dims, precision=precision, io_dtype=manifest.io_dtype)
    for name, network in manifest.networks.items():
        assert 0 < network.parity["relative"] < specs[name].tolerance, name
        assert network.parity["float32_products"] == 0, name
        assert network.parity["half_products"] > 0, name
        # No runtime here executes bfloat16: the figures must not claim that the graph ran.
        assert network.parity.get("compared") == ("module" if precision == "bf16" else None), name
    assert 0.0 <= manifest.networks["image_encoder"].parity["matches"] <= 1.0


def test_weights_are_stored_half(half_engine: tuple[Path, Manifest]) -> None:
    directory, manifest = half_engine
    for name, network in manifest.networks.items():
        stored: Counter[int] = Counter()
        for tensor in onnx.load(directory / f"{name}.onnx").graph.initializer:
            if tensor.data_type != TensorProto.INT64:
                stored[tensor.data_type] += int(np.prod(tensor.dims))
        # What is left in float32 are norms, and in this miniature those weigh something; the UNet also has the
        # 2 x 1000 entries of its alpha-bar table.
        full = stored[TensorProto.FLOAT] - (2000 if name == "unet" else 0)
        assert full < 0.1 * stored[HALF_TYPES[network.precision]], name


def test_statistics_are_float32_and_types_never_mix(half_engine: tuple[Path, Manifest]) -> None:
    directory, manifest = half_engine
    seen: Counter[str] = Counter()
    for name, network in manifest.networks.items():
        path = directory / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path).graph
        types = element_types(graph)
        for node in graph.node:
            inputs = {types[value] for value in node.input if value} & {TensorProto.FLOAT, *HALF_TYPES.values()}
            assert len(inputs) < 2, f"{name}: {node.op_type} mixes float types"
            if node.op_type in ("Softmax", "InstanceNormalization", "LayerNormalization", "Sin", "Cos", "ReduceL2"):
                assert inputs == {TensorProto.FLOAT}, f"{name}: {node.op_type}"
                seen[node.op_type] += 1
            elif node.op_type in ("Conv", "Gemm", "MatMul"):
                assert inputs == {HALF_TYPES[network.precision]}, f"{name}: {node.op_type}"
        assert "GroupNormalization" not in {node.op_type for node in graph.node}
    assert set(seen) == {"Softmax", "InstanceNormalization", "LayerNormalization", "Sin", "Cos", "ReduceL2"}


def test_a_bfloat16_graph_computes_what_its_module_does(
    half_engine: tuple[Path, Manifest], model_folder: Path, tmp_path: Path
) -> None:
    """Read with every bfloat16 as float32, the graph runs on ONNX Runtime: its wiring and weights are right."""
    directory, manifest = half_engine
    if manifest.networks["unet"].precision != "bf16":
        pytest.skip("float16 graphs run as they are")
    source = load_source(str(model_folder))
    for name, spec in network_specs(manifest.dims, io_dtype="float16").items():
        widened = tmp_path / f"{name}.onnx"
        onnx.save(widen(onnx.load(directory / f"{name}.onnx")), widened)
        example = example_inputs(spec, batch=min(3, spec.max_batch), seed=7, vocabulary=258, timesteps=1000)
        session = ort.InferenceSession(str(widened), providers=["CPUExecutionProvider"])
        actual = session.run(None, example)[0]
        with load_network(source, name, "folded", "csa") as network:
            expected = reference_outputs(network, spec, [example])[0][spec.outputs[0].name]
        # Only the rounding of the weights to eight bits is left, and of the output to float16.
        assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max(), name


def widen(model: Any) -> Any:
    """The model with every bfloat16 tensor and Cast made float32."""
    bfloat, full = TensorProto.BFLOAT16, TensorProto.FLOAT
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == bfloat:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == bfloat:
            value.type.tensor_type.elem_type = full
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == bfloat:
                attribute.i = full
            elif attribute.name == "value" and attribute.t.data_type == bfloat:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    return model


def test_the_runner_takes_and_gives_float32_around_a_float16_graph(half_engine: tuple[Path, Manifest]) -> None:
    directory, manifest = half_engine
    if manifest.networks["unet"].precision != "fp16":
        pytest.skip("onnxruntime's CPU has no bfloat16")
    image = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    with open_runner(directory, "image_encoder", manifest=manifest, threads=1) as runner:
        features = runner.run({"image": image})["features"]
    assert features.dtype == np.float32
    # The unit norm is taken in float32: a half one would be off by 5e-4.
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-6)


def test_upcast_attention_scores_in_float32_between_float16_edges(
    tmp_path: Path, make_unet: Callable[..., Any], alphas: NDArray[np.float64]
) -> None:
    dims = ModelDims(16, 2, 4, 77, 24, 10, 4)
    spec = network_specs(dims, precision="fp16", io_dtype="float16")["unet"]
    examples = [example_inputs(spec, batch=batch, seed=batch, vocabulary=258, timesteps=1000) for batch in (2, 3)]
    unet = make_unet(upcast_attention=True)
    network = Unet(unet, alphas, "v_prediction").eval()
    with inject(unet, "folded"):
        expected = reference_outputs(network, spec, examples)
        set_precision(network, "fp16")
        set_io(network, "float16")
        files = export_network(network, spec, examples[0], tmp_path / "unet.onnx")
        islands = float32_products(network)
    counts = check_half_graph(files[0], "unet", "fp16", islands)
    assert counts["float32_products"] == len(unet.attn_processors)
    assert counts["half_products"] > 3 * counts["float32_products"]
    assert compare_outputs(files[0], spec, examples, expected)["batches"] == [2, 3]
    with OnnxRuntimeRunner(files[0], spec, threads=1) as runner:
        assert runner.run(examples[1])["denoised"].dtype == np.float16


def write_product(path: Path, kind: int, other: int) -> Path:
    """A graph of one matrix product of type `kind` plus a tensor of type `other`."""
    values = [helper.make_tensor_value_info(name, kind, [2, 2]) for name in ("x", "w", "p", "y")]
    values[3] = helper.make_tensor_value_info("y", other, [2, 2])
    addend = numpy_helper.from_array(np.zeros((2, 2), helper.tensor_dtype_to_np_dtype(other)), "c")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "c"], ["y"])]
    graph = helper.make_graph(nodes, "toy", values[:2], values[3:], [addend], value_info=values[2:3])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_graph_that_stayed_float32_is_refused(tmp_path: Path) -> None:
    path = write_product(tmp_path / "toy.onnx", TensorProto.FLOAT, TensorProto.FLOAT)
    with pytest.raises(ExportError, match=r"toy: 0 of 1 matrix products .*half and 1 are float32, expected 1 and 0"):
        check_half_graph(path, "toy", "fp16", 0)
    assert check_half_graph(path, "toy", "fp16", 1) == {"half_products": 0, "float32_products": 1}
    path = write_product(tmp_path / "toy.onnx", TensorProto.FLOAT16, TensorProto.FLOAT16)
    assert check_half_graph(path, "toy", "fp16", 0) == {"half_products": 1, "float32_products": 0}
    with pytest.raises(ExportError, match="of the bf16 graph are half"):
        check_half_graph(path, "toy", "bf16", 0)


def test_a_graph_that_mixes_float_types_is_refused(tmp_path: Path) -> None:
    path = write_product(tmp_path / "toy.onnx", TensorProto.FLOAT16, TensorProto.FLOAT)
    with pytest.raises(ExportError, match="toy: the fp16 graph breaks ONNX's rules") as caught:
        check_half_graph(path, "toy", "fp16", 0)
    assert "\n" not in str(caught.value)


def test_a_rounded_module_is_held_against_the_signature_of_its_graph(half_engine: tuple[Path, Manifest]) -> None:
    directory, manifest = half_engine
    wrong = "float32" if manifest.io_dtype == "float16" else "float16"
    spec = network_specs(manifest.dims, io_dtype=wrong)["vae_decoder"]
    with pytest.raises(ParityError) as caught:
        compare_rounded(directory / "vae_decoder.onnx", spec, [], [], [])
    kinds = {"float32": "tensor(float)", "float16": "tensor(float16)"}
    assert caught.value.mismatches == (
        f"input latent is {kinds[manifest.io_dtype]}, expected {kinds[wrong]}",
        f"output image is {kinds[manifest.io_dtype]}, expected {kinds[wrong]}",
    )


def test_every_network_has_a_half_graph(half_engine: tuple[Path, Manifest]) -> None:
    assert set(half_engine[1].networks) == set(NETWORKS)
