"""The trials that need torch: torch itself on the GPU, and on top of it ONNX Runtime on CUDA, or TensorRT."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.errors import first_line
from g4seg_engine.manifest import load_engine, write_manifest
from g4seg_engine.tensorrt_builder import build_tensorrt
from g4seg_trt.diagnosis.packages import package_problems
from g4seg_trt.diagnosis.trial import (
    GPU_EXTRA,
    UnusableError,
    refine_sample,
    require,
    require_gpu,
)
from g4seg_trt.errors import EngineError
from g4seg_trt.refiner import engine_directory

_CUDA_PROVIDER = "CUDAExecutionProvider"
_SIDE = 256


def run(backend: str, facts: dict[str, Any]) -> None:
    """Try torch, and on top of it the backend.

    Args:
        backend: "torch", "onnxruntime" or "tensorrt"; its package is known to be importable.
        facts: takes the CUDA version that torch was built for, or None.

    Raises:
        UnusableError: it does not work.
        G4SegError: likewise; the message says what to do.
    """
    facts["torch_cuda"] = torch.version.cuda
    require_gpu()
    cuda_device()
    _try_torch()
    if backend == "onnxruntime":
        _try_onnxruntime()
    elif backend == "tensorrt":
        _try_tensorrt()


def _try_torch() -> None:
    values = torch.linspace(-1, 1, _SIDE * _SIDE).reshape(_SIDE, _SIDE)
    try:
        product = (values.cuda() @ values.cuda()).cpu()
    except RuntimeError as error:
        remedy = "install a build of PyTorch that fits the driver and the GPU, see pytorch.org/get-started"
        raise UnusableError(f"PyTorch {torch.__version__} fails on the GPU: {first_line(error)}", remedy) from error
    # The GPU may multiply with fewer digits (TF32).
    if not torch.allclose(product, values @ values, rtol=1e-2, atol=1e-2):
        raise UnusableError("PyTorch computes nonsense on the GPU", "update the NVIDIA driver, and test the GPU")


def _try_onnxruntime() -> None:
    onnxruntime = require("onnxruntime", GPU_EXTRA)
    if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
        remedy = f"pip uninstall -y onnxruntime, then {GPU_EXTRA}"
        reason = f"onnxruntime {onnxruntime.__version__} is a build without CUDA"
        raise UnusableError(reason, (package_problems() or [remedy])[0])
    try:
        refine_sample("onnxruntime", "cuda")
    except EngineError as error:
        remedy = "install the CUDA and cuDNN libraries that it needs: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        raise UnusableError(str(error), remedy) from error


def _try_tensorrt() -> None:
    """Compile the embedded engine for this GPU, since plans cannot be brought along, and refine with it."""
    source = engine_directory("tiny")
    with TemporaryDirectory(prefix="g4seg-") as folder:
        directory = Path(folder) / "tiny"
        shutil.copytree(source, directory)
        manifest = load_engine(directory)
        artefacts = build_tensorrt(
            directory,
            manifest,
            batch_sizes=(1,),
            workspace_gb=None,
            optimization_level=0,  # whether it works, not how fast
            timing_cache=None,
            progress=False,
        )
        write_manifest(directory, replace(manifest, artefacts=artefacts))
        refine_sample("tensorrt", "cuda", directory)
