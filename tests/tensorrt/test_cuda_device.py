"""Facts of GPU and driver, and one line for each way in which there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from g4seg_engine import cuda_device as room
from g4seg_engine.cuda_device import CudaDevice, cuda_device, driver_cuda, driver_version
from g4seg_engine.errors import EngineError, MissingExtraError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, PyTorch for CUDA 13.0 and a driver for CUDA 13.1."""
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150_000_000_000)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    monkeypatch.setattr(room, "driver_cuda", lambda: (13, 1))
    monkeypatch.setattr(room, "driver_version", lambda: "580.65.06")
    return monkeypatch


@pytest.mark.usefixtures("gpu")
def test_the_current_gpu_is_described() -> None:
    expected = CudaDevice(1, "NVIDIA H200", "9.0", 150_000_000_000, "580.65.06", "13.1")
    assert cuda_device() == expected
    assert cuda_device(0).index == 0


def test_an_older_driver_of_the_same_major_version_will_do(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", "13.3")
    assert cuda_device().driver_cuda == "13.1"


def test_a_driver_that_is_too_old(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(room, "driver_cuda", lambda: (12, 8))
    message = r"^the NVIDIA driver 580.65.06 is too old: it supports CUDA 12.8, and PyTorch .* needs CUDA 13.0; update"
    with pytest.raises(EngineError, match=message):
        cuda_device()


def test_no_driver(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(room, "driver_cuda", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA driver was found: install it"):
        cuda_device()


def test_pytorch_without_cuda(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "cuda", None)
    with pytest.raises(EngineError, match=r"was built without CUDA: install a build for CUDA 13\.1 or older"):
        cuda_device()


def test_no_gpu_and_no_such_gpu(gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="there is no GPU 2: PyTorch sees 2"):
        cuda_device(2)
    gpu.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EngineError, match="the NVIDIA driver sees no GPU"):
        cuda_device()


def test_a_gpu_that_fails_is_one_line(gpu: pytest.MonkeyPatch) -> None:
    def fail(_index: int) -> None:
        raise RuntimeError("CUDA error: device busy\nCUDA kernel errors might be reported later")

    gpu.setattr(torch.cuda, "get_device_properties", fail)
    with pytest.raises(EngineError, match=r"^the GPU cannot be used: CUDA error: device busy$"):
        cuda_device()


def test_pytorch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"torch is not installed: pip install 'g4seg-trt\[gpu\]'"):
        cuda_device()


def test_the_drivers_cuda_is_asked_of_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(pointer: Any) -> int:
        pointer._obj.value = 12080
        return 0

    monkeypatch.setattr("ctypes.CDLL", lambda _name: SimpleNamespace(cuDriverGetVersion=answer))
    assert driver_cuda() == (12, 8)
    monkeypatch.setattr("ctypes.CDLL", lambda _name: SimpleNamespace(cuDriverGetVersion=lambda _pointer: 999))
    assert driver_cuda() is None
    monkeypatch.undo()
    monkeypatch.setattr(room, "_DRIVER_LIBRARY", "no-such-library.so.1")
    assert driver_cuda() is None


PROC = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 16 04:41:40 UTC 2025\nGCC version: 12.2.0\n"


def test_the_drivers_version_is_read_from_the_kernel_or_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(room, "_DRIVER_FILE", file)
    answers = [
        (lambda *_, **__: SimpleNamespace(returncode=0, stdout="535.104\n535.104\n"), "535.104"),
        (lambda *_, **__: SimpleNamespace(returncode=9, stdout="NVIDIA-SMI has failed"), ""),
        (raiser(FileNotFoundError("nvidia-smi")), ""),
        (raiser(subprocess.TimeoutExpired("nvidia-smi", 20)), ""),
    ]
    for run, expected in answers:
        monkeypatch.setattr("subprocess.run", run)
        driver_version.cache_clear()
        assert driver_version() == expected
    file.write_text(PROC)
    driver_version.cache_clear()
    assert driver_version() == "570.86.15"
    driver_version.cache_clear()


def raiser(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail
