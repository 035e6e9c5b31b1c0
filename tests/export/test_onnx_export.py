"""Exported graphs on ONNX Runtime: parity at several batch sizes, zero weight, tidy and repeatable files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from g4seg_engine.spec import ModelDims, NetworkSpec, TensorSpec, network_specs
from g4seg_export import onnx_export
from g4seg_export.attention import inject
from g4seg_export.errors import ParityError
from g4seg_export.examples import example_inputs
from g4seg_export.networks import Unet
from g4seg_export.onnx_export import export_network, release_weights, round_to_half
from g4seg_export.parity import compare, compare_outputs, reference_outputs

DIMS = ModelDims(square=16, latent_factor=2, latent_channels=4, text_length=77, text_width=24, feature_width=10, grid=4)
UNET = network_specs(DIMS)["unet"]
SMALL = NetworkSpec(
    name="small",
    inputs=(TensorSpec("x", "float32", ("B", 40)),),
    outputs=(TensorSpec("y", "float32", ("B", 30)),),
    min_batch=1,
    max_batch=8,
    tolerance=1e-5,
)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(40, 50)
        self.second = torch.nn.Linear(50, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.relu(self.first(x)))
        return result


def unet_example(batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    return example_inputs(UNET, batch=batch, seed=seed, vocabulary=258, timesteps=1000)


def small_example(batch: int) -> dict[str, NDArray[Any]]:
    return example_inputs(SMALL, batch=batch, seed=batch, vocabulary=2, timesteps=10)


@pytest.fixture(scope="session")
def unet_graph(
    tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., Any], alphas: NDArray[np.float64]
) -> tuple[Path, list[dict[str, NDArray[Any]]], list[dict[str, NDArray[Any]]]]:
    """The folded UNet as a graph, with examples of batch 1, 2 and 5 and what torch makes of them.

    torch runs the dense form, so that parity also says that the two forms are one.
    """
    unet = make_unet(upcast_attention=True)
    path = tmp_path_factory.mktemp("graph") / "unet.onnx"
    examples = [unet_example(batch) for batch in (1, 2, 5)]
    module = Unet(unet, alphas, "v_prediction").eval()
    with inject(unet, "folded"):
        export_network(module, UNET, unet_example(2), path)
    with inject(unet, "dense"):
        return path, examples, reference_outputs(module, UNET, examples)


@pytest.fixture(scope="session")
def small_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    export_network(Small().eval(), SMALL, small_example(2), path)
    return path


def test_the_folded_graph_equals_the_dense_model_at_every_batch(unet_graph: Any) -> None:
    path, examples, expected = unet_graph
    figures = compare_outputs(path, UNET, examples, expected)
    assert figures["batches"] == [1, 2, 5]
    assert figures["relative"] < 1e-5
    assert figures["cosine"] > 0.999999


def test_zero_weight_equals_an_empty_mask_bit_for_bit(unet_graph: Any) -> None:
    session = ort.InferenceSession(str(unet_graph[0]), providers=["CPUExecutionProvider"])
    inputs = unet_example(2)
    no_weight = session.run(None, {**inputs, "emi_weight": np.zeros_like(inputs["emi_weight"])})[0]
    no_mask = session.run(
        None,
        {
            **inputs,
            "mask": np.zeros_like(inputs["mask"]),
            "token_mask": np.zeros_like(inputs["token_mask"]),
        },
    )[0]
    injected = session.run(None, inputs)[0]
    assert no_weight.tobytes() == no_mask.tobytes()
    assert np.abs(injected - no_weight).max() > 1e-3


def test_self_and_cross_weights_act_separately(unet_graph: Any) -> None:
    session = ort.InferenceSession(str(unet_graph[0]), providers=["CPUExecutionProvider"])
    inputs = unet_example(1)

    def run(weights: tuple[float, float], **changes: NDArray[Any]) -> NDArray[Any]:
        weight = np.array([weights], dtype=np.float32)
        output: NDArray[Any] = session.run(None, {**inputs, "emi_weight": weight, **changes})[0]
        return output

    no_tokens = {"token_mask": np.zeros_like(inputs["token_mask"])}
    assert np.array_equal(run((2.0, 0.0)), run((2.0, 0.0), **no_tokens))
    assert not np.array_equal(run((0.0, 2.0)), run((0.0, 2.0), **no_tokens))
    assert np.array_equal(run((0.0, 2.0), **no_tokens), run((0.0, 0.0)))


def test_graphs_carry_no_traces_of_the_machine(unet_graph: Any) -> None:
    content = unet_graph[0].read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content
    model = onnx.load(unet_graph[0])
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert model.opset_import[0].version == onnx_export.OPSET


def test_exporting_twice_gives_the_same_bytes(small_graph: Path, tmp_path: Path) -> None:
    again = tmp_path / "small.onnx"
    export_network(Small().eval(), SMALL, small_example(2), again)
    assert again.read_bytes() == small_graph.read_bytes()


def test_a_tampered_weight_is_found(small_graph: Path, tmp_path: Path) -> None:
    model = onnx.load(small_graph)
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] += 1.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    tampered = tmp_path / "small.onnx"
    onnx.save(model, tampered)
    with pytest.raises(ParityError, match=r"small: .*output y at batch 1: relative difference .*allowed 1e-05"):
        compare(tampered, SMALL, Small().eval(), small_example(1))


def test_every_mismatch_of_the_signature_is_listed(small_graph: Path) -> None:
    spec = NetworkSpec(
        name="small",
        inputs=(TensorSpec("x", "int64", ("B", 41)), TensorSpec("z", "float32", ("B",))),
        outputs=(TensorSpec("w", "float32", ("B", 30)),),
        min_batch=1,
        max_batch=8,
        tolerance=1e-5,
    )
    with pytest.raises(ParityError) as caught:
        compare_outputs(small_graph, spec, [], [])
    assert caught.value.mismatches == (
        "input x has axes ['B', 40], expected ['B', 41]",
        "input x is tensor(float), expected tensor(int64)",
        "input z is missing",
        "output w is missing",
        "output y is not in the spec",
    )


def test_values_that_are_not_finite_are_found(small_graph: Path) -> None:
    broken = Small().eval()
    with torch.no_grad():
        broken.second.bias[0] = torch.nan
    with pytest.raises(ParityError, match="not finite"):
        compare(small_graph, SMALL, broken, small_example(1))


def test_half_weights_are_stored_half_and_computed_in_float32(small_graph: Path, tmp_path: Path) -> None:
    module = Small().eval()
    path = tmp_path / "small.onnx"
    round_to_half(module)
    export_network(module, SMALL, small_example(2), path, half_weights=True)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 2}
    assert types == {onnx.TensorProto.FLOAT16}
    assert path.stat().st_size < 0.6 * small_graph.stat().st_size
    assert compare(path, SMALL, module, small_example(1), small_example(3))["relative"] < 1e-6
    with pytest.raises(ParityError):
        # The rounding itself is far above the tolerance: parity must be taken against the rounded module.
        compare(path, SMALL, Small().eval(), small_example(1))


def test_a_weight_that_half_cannot_hold_stays_float32(tmp_path: Path) -> None:
    module = Small().eval()
    path = tmp_path / "small.onnx"
    export_network(module, SMALL, small_example(2), path, half_weights=True)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 2}
    assert types == {onnx.TensorProto.FLOAT}


def test_large_weights_go_to_a_file_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_BYTES", 1000)
    module = Small().eval()
    files = export_network(module, SMALL, small_example(2), tmp_path / "small.onnx")
    assert [file.name for file in files] == ["small.onnx", "small.onnx.data"]
    assert files[0].stat().st_size < files[1].stat().st_size
    assert compare(files[0], SMALL, module, small_example(1))["relative"] < 1e-6


def test_an_exported_module_can_give_its_memory_back(small_graph: Path, tmp_path: Path) -> None:
    module = Small().eval()
    module.register_buffer("index", torch.arange(5000))
    kept = [*module.parameters(), *module.buffers()]
    files = export_network(module, SMALL, small_example(2), tmp_path / "small.onnx")
    release_weights(module)
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept) == 0
    assert files[0].read_bytes() == small_graph.read_bytes()
