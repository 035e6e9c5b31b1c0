from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine.errors import EngineError, EngineIncompleteError, RunnerInputError
from g4seg_engine.runner import check_inputs, open_runner, output_arrays
from g4seg_engine.spec import BATCH, NETWORKS, ModelDims, NetworkSpec, network_specs

DIMS = ModelDims(square=16, latent_factor=4, latent_channels=2, text_length=5, text_width=3, feature_width=2, grid=4)
SPECS = network_specs(DIMS)


def make_inputs(spec: NetworkSpec, batch: int) -> dict[str, Any]:
    return {
        tensor.name: np.zeros([batch if size == BATCH else int(size) for size in tensor.shape], tensor.dtype)
        for tensor in spec.inputs
    }


def message(spec: NetworkSpec, inputs: dict[str, Any]) -> str:
    with pytest.raises(RunnerInputError) as caught:
        check_inputs(spec, inputs)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{spec.name}: input")
    return str(caught.value)


@given(network=st.sampled_from(NETWORKS), batch=st.integers(1, 64))
@settings(deadline=None)
def test_right_inputs_pass(network: str, batch: int) -> None:
    spec = SPECS[network]
    expected = 1 if network == "vae_encoder" else batch
    assert check_inputs(spec, make_inputs(spec, batch)) == expected


@given(data=st.data(), network=st.sampled_from(NETWORKS))
@settings(deadline=None)
def test_a_wrong_shape_is_named(data: st.DataObject, network: str) -> None:
    spec = SPECS[network]
    inputs = make_inputs(spec, 2)
    tensor = data.draw(st.sampled_from(spec.inputs))
    shape = list(inputs[tensor.name].shape)
    fixed = [axis for axis, size in enumerate(tensor.shape) if size != BATCH]
    kind = data.draw(st.sampled_from(["more axes", "fewer axes", *(["another size"] * bool(fixed))]))
    if kind == "more axes":
        shape.insert(data.draw(st.integers(0, len(shape))), 1)
    elif kind == "fewer axes":
        shape.pop()
    else:
        shape[data.draw(st.sampled_from(fixed))] += data.draw(st.sampled_from([-1, 1]))
    inputs[tensor.name] = np.zeros(shape, tensor.dtype)
    text = message(spec, inputs)
    assert f"input {tensor.name} has shape [{', '.join(map(str, shape))}], expected [" in text


@given(
    network=st.sampled_from(NETWORKS),
    dtype=st.sampled_from(["float16", "float64", "int32", "uint8", "bool", ">f4", ">i8", "object"]),
)
def test_a_wrong_dtype_is_named(network: str, dtype: str) -> None:
    spec = SPECS[network]
    inputs = make_inputs(spec, 1)
    name = spec.inputs[-1].name
    inputs[name] = inputs[name].astype(dtype)
    assert message(spec, inputs) == (
        f"{network}: input {name} has dtype {np.dtype(dtype)}, expected {spec.inputs[-1].dtype}"
    )


@given(data=st.data(), network=st.sampled_from(NETWORKS))
def test_missing_and_unknown_names_are_listed(data: st.DataObject, network: str) -> None:
    spec = SPECS[network]
    names = [tensor.name for tensor in spec.inputs]
    inputs = make_inputs(spec, 1)
    gone = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    less = {name: array for name, array in inputs.items() if name not in gone}
    ordered = ", ".join(name for name in names if name in gone)
    assert message(spec, less) == f"{network}: inputs missing {ordered}; expected {', '.join(names)}"
    more = {**inputs, "bias": np.zeros(1)}
    assert message(spec, more) == f"{network}: inputs unknown bias; expected {', '.join(names)}"


def test_every_input_has_the_same_batch() -> None:
    spec = SPECS["unet"]
    inputs = make_inputs(spec, 2) | {"mask": np.zeros((3, 1, 4, 4), np.float32)}
    assert "inputs differ in batch size: latent 2, noise 2" in message(spec, inputs)
    assert "mask 3" in message(spec, inputs)


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_the_batch_range_is_kept(batch: int) -> None:
    spec = replace(SPECS["unet"], min_batch=2, max_batch=3)
    assert message(spec, make_inputs(spec, batch)) == (f"unet: inputs have batch size {batch}, expected 2 to 3")
    assert check_inputs(spec, make_inputs(spec, 3)) == 3


@pytest.mark.parametrize("value", [None, [[1, 2, 3, 4, 5]], 1.0, "text"])
def test_what_is_no_array_is_named(value: Any) -> None:
    text = message(SPECS["text_encoder"], {"input_ids": value})
    kind = type(value).__name__
    assert text == f"text_encoder: input input_ids is a {kind}, expected an array: input_ids int64 [B, 5]"


def test_tensors_of_torch_are_checked_alike() -> None:
    # torch prints its dtypes with its name in front; this stands for one without importing torch.
    class Int64:
        def __str__(self) -> str:
            return "torch.int64"

    tensor = SimpleNamespace(dtype=Int64(), shape=(7, 5))
    assert check_inputs(SPECS["text_encoder"], {"input_ids": tensor}) == 7
    tensor.shape = (7, 6)
    assert "shape [7, 6], expected [B, 5]" in message(SPECS["text_encoder"], {"input_ids": tensor})


def test_output_arrays_follow_the_spec() -> None:
    arrays = output_arrays(SPECS["image_encoder"], 3)
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "features": (np.dtype("float32"), (3, 2, 4, 4))
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("unet", "tensorrt"), "unknown backend 'tensorrt': choose from onnxruntime, openvino"),
        (("unet", "onnxruntime", "cuda"), "backend onnxruntime has no device 'cuda': choose from cpu"),
        (("vae",), "unknown network 'vae': this engine has .*unet"),
    ],
)
def test_what_cannot_be_opened_is_named(engine: Path, arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(EngineError, match=text):
        open_runner(engine, *arguments)


def test_opening_checks_the_directory_first(engine: Path) -> None:
    (engine / "tokenizer.json").unlink()
    with pytest.raises(EngineIncompleteError, match=r"tokenizer\.json is missing"):
        open_runner(engine, "unet")
