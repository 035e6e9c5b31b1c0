"""Group norms by channel, against float64 and against what OpenVINO makes of the graphs otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine.manifest import load_engine
from g4seg_engine.openvino_norms import norm_by_channel
from g4seg_engine.openvino_runner import shared_core
from g4seg_trt.refiner import EMBEDDED

openvino = pytest.importorskip("openvino", reason="needs the extra openvino")

from openvino import opset13 as op  # noqa: E402

TINY = EMBEDDED["tiny"]
MANIFEST = load_engine(TINY)


def group_norm(shape: tuple[int, int, int, int], groups: int, *, scale: float = 1.0, shift: float = 0.0) -> Any:
    """A model of one group norm, written as ONNX's frontend writes it."""
    x = op.parameter(shape, np.float32, name="x")
    flat = op.reshape(x, np.array([shape[0], groups, -1]), False)
    normed = op.mvn(flat, np.array([2]), True, 1e-5, "INSIDE_SQRT")
    factors = (np.full((1, groups, 1), value, np.float32) for value in (scale, shift))
    back = op.add(op.multiply(normed, next(factors)), next(factors))
    return openvino.Model([op.reshape(back, np.array(shape), False)], [x], "norm")


def run(model: Any, values: Any) -> Any:
    compiled = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return next(iter(compiled([values]).values()))


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    each=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    centre=st.sampled_from([0.0, 3.0, -40.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_it_is_a_group_norm(
    batch: int, groups: int, each: int, height: int, width: int, centre: float, seed: int
) -> None:
    shape = (batch, groups * each, height, width)
    values = (np.random.default_rng(seed).standard_normal(shape) + centre).astype(np.float32)
    model = group_norm(shape, groups)
    assert norm_by_channel(model) == 1
    assert "MVN" not in kinds(model)
    flat = values.reshape(batch, groups, -1).astype(np.float64)
    expected = (flat - flat.mean(axis=2, keepdims=True)) / np.sqrt(flat.var(axis=2, keepdims=True) + 1e-5)
    expected = expected.reshape(shape)
    np.testing.assert_allclose(run(model, values), expected, atol=2e-3 if centre else 2e-5)


@pytest.mark.parametrize("factors", [{"scale": 2.0}, {"shift": 0.5}])
def test_norms_with_factors_of_their_own_stay(factors: dict[str, float]) -> None:
    model = group_norm((1, 8, 5, 4), 2, **factors)
    assert norm_by_channel(model) == 0
    assert "MVN" in kinds(model)


@pytest.mark.parametrize("network", ["vae_encoder", "vae_decoder", "unet"])
def test_the_networks_compute_the_same(network: str) -> None:
    core, path = shared_core(), Path(TINY / MANIFEST.networks[network].files[0].file)
    spec = MANIFEST.spec(network)
    shapes = {tensor.name: [2 if isinstance(size, str) else size for size in tensor.shape] for tensor in spec.inputs}
    generator = np.random.default_rng(0)
    values = {
        tensor.name: generator.integers(1, 99, shapes[tensor.name])
        if tensor.dtype == "int64"
        else generator.random(shapes[tensor.name], dtype=np.float32)
        for tensor in spec.inputs
    }
    outputs = []
    for rewritten in (False, True):
        model = core.read_model(path)
        model.reshape(shapes)
        before = kinds(model).count("MVN")
        if rewritten:
            count = norm_by_channel(model)
            assert count >= 11
            assert kinds(model).count("MVN") == before - count
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs.append(next(iter(compiled(values).values())))
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-5 * np.abs(outputs[0]).max()
