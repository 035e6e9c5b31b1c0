"""The GPU benchmark without a GPU: what it says, and its measuring on CPU tensors in a GPU's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from g4seg_bench import gpu, gpu_sides
from g4seg_export.eager import EagerPipeline
from g4seg_trt.refiner import EMBEDDED
from g4seg_trt.torch_chain import TorchChain


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_no_gpu_is_one_line_after_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    err = capsys.readouterr().err
    assert "onnxruntime-gpu is not installed: without it no ONNX Runtime on CUDA" in err
    assert "no NVIDIA driver was found" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that asks for the GPU gets the CPU."""
    opened, eager = TorchChain.open.__func__, EagerPipeline.__init__  # type: ignore[attr-defined]

    def open_on_cpu(cls: Any, /, *arguments: Any, backend: str, **options: Any) -> TorchChain:
        if backend == "tensorrt":
            raise RuntimeError("no TensorRT here\nmore lines")
        chain: TorchChain = opened(cls, *arguments, **{**options, "backend": backend, "device": "cpu"})
        return chain

    def eager_on_cpu(self: Any, *arguments: Any, **options: Any) -> None:
        eager(self, *arguments, **{**options, "device": "cpu", "dtype": torch.float32})

    def chain_on_cpu(modules: Any, manifest: Any, batch: int) -> Any:
        return whole(modules, manifest, batch, graphs=False)

    whole = gpu_sides.module_chain
    monkeypatch.setattr(TorchChain, "open", classmethod(open_on_cpu))
    monkeypatch.setattr(EagerPipeline, "__init__", eager_on_cpu)
    monkeypatch.setattr(gpu_sides, "module_chain", chain_on_cpu)
    monkeypatch.setattr(gpu_sides, "check_bound", lambda *_: 1)
    # Half convolutions take minutes on a CPU.
    monkeypatch.setattr("g4seg_export.precision.set_precision", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10, 20))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    yield


@pytest.mark.usefixtures("pretend")
@pytest.mark.slow
def test_every_side_that_works_is_measured_against_eager(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[int] = []
    found = gpu.compare(EMBEDDED["tiny"], "tiny", (1, 2), 2, lambda found: kept.append(len(found["rows"])))
    assert kept == [1, 1, 2, 3, 4, 5, 6]
    assert found["roofline_ms"] == 6.0
    assert found["not_run"] == {"tensorrt": "no TensorRT here"}
    assert [(row["side"], row["batch_size"]) for row in found["rows"]] == [
        (side, batch)
        for batch in (1, 2)
        for side in ("torch modules, CUDA graph", "onnxruntime", "onnxruntime, its own graphs")
    ]
    for row in found["rows"]:
        assert len(row["runs_ms"][row["side"]]) == len(row["runs_ms"]["eager"]) == 2
        assert row["ms"] > 0
        assert row["eager_over_side"] == pytest.approx(row["eager_ms"] / row["ms"], abs=1e-3)
        assert row["matches_differing"] == 0, "the same pixels go in"
    gpu.tell(found)
    printed = capsys.readouterr().out
    assert "| onnxruntime | 2 |" in printed
    assert "tensorrt: not run: no TensorRT here" in printed
