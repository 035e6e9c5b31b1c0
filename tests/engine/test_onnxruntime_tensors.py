"""ONNX Runtime on torch tensors, on a CPU: the embedded engine's networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import g4seg_trt
from g4seg_engine.errors import EngineError, RunnerInputError
from g4seg_engine.manifest import load_engine
from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner
from g4seg_engine.onnxruntime_tensors import OnnxRuntimeTensorRunner
from g4seg_engine.spec import BATCH, NETWORKS, NetworkSpec
from g4seg_engine.tensors import open_tensor_runner

TINY = Path(g4seg_trt.__file__).parent / "assets" / "tiny"
MANIFEST = load_engine(TINY)


def graph(network: str) -> Path:
    return TINY / MANIFEST.networks[network].files[0].file


def tensors_of(spec: NetworkSpec, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    made = {}
    for tensor in (*spec.inputs, *spec.outputs):
        shape = [batch if size == BATCH else int(size) for size in tensor.shape]
        drawn = torch.rand(shape, generator=generator)
        made[tensor.name] = drawn if tensor.dtype == "float32" else (drawn * 200).long()
    return made


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_numpy_runner_computes(network: str, batch: int) -> None:
    spec = MANIFEST.spec(network)
    batch = min(batch, spec.max_batch)
    runner = open_tensor_runner(TINY, network, "onnxruntime", None, MANIFEST, device="cpu")
    tensors = tensors_of(spec, batch)
    enqueue = runner.bind(tensors)
    for turn in range(2):  # the same binding, with other values in the same place
        for tensor in spec.inputs:
            if turn and tensor.dtype == "float32":
                tensors[tensor.name].mul_(0.5)
        enqueue()
        with OnnxRuntimeRunner(graph(network), spec) as plain:
            expected = plain.run({tensor.name: tensors[tensor.name].numpy() for tensor in spec.inputs})
        for name, values in expected.items():
            assert np.array_equal(tensors[name].numpy(), values)
    runner.close()
    runner.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("latent"), "missing latent"),
        (lambda t: t.pop("image"), "vae_decoder: image is not bound"),
        (lambda t: t.update(latent=t["latent"].double()), "input latent has dtype float64"),
        (lambda t: t.update(latent=t["latent"][:, :2]), "input latent has shape"),
        (lambda t: t.update(image=t["image"][:1]), r"image is float32 \[1, 3, 64, 64\], expected"),
        (lambda t: t.update(image=t["image"].mT), "contiguous: False"),
        (lambda t: t.update(latent=t["latent"].to("meta")), "is on meta"),
    ],
)
def test_what_does_not_fit_is_not_bound(change: Any, message: str) -> None:
    spec = MANIFEST.spec("vae_decoder")
    tensors = tensors_of(spec, 2)
    change(tensors)
    with pytest.raises(RunnerInputError, match=message):
        OnnxRuntimeTensorRunner(graph("vae_decoder"), spec, None, device="cpu").bind(tensors)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            "Failed to allocate memory for requested buffer of size 9",
            r"out of memory at batch size 4: try --batch-size 2",
        ),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", r"out of memory at batch size 4: try --batch-size 2"),
        ("something else\nmore", r"vae_decoder: onnxruntime failed: something else$"),
    ],
)
def test_failures_while_running(failure: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = MANIFEST.spec("vae_decoder")
    runner = OnnxRuntimeTensorRunner(graph("vae_decoder"), spec, None, device="cpu")
    session = runner._runner(4).session

    class Failing:
        def io_binding(self) -> Any:
            return session.io_binding()

        def run_with_iobinding(self, *_arguments: Any) -> None:
            raise RuntimeError(failure)

    monkeypatch.setattr(runner._runner(4), "session", Failing())
    with pytest.raises(EngineError, match=message):
        runner.bind(tensors_of(spec, 4))()


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(EngineError, match="unknown backend 'abacus': choose from onnxruntime, tensorrt"):
        open_tensor_runner(TINY, "unet", "abacus", None, MANIFEST)
