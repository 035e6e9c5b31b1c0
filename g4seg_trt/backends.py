"""Which backends run the networks on which devices, the fastest of them, and the chain for each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from g4seg_engine import codec
from g4seg_engine.cuda_device import cuda_device, driver_cuda
from g4seg_engine.manifest import Manifest
from g4seg_engine.processor import cpu_precisions
from g4seg_engine.tensorrt_artefact import BACKEND as TENSORRT
from g4seg_engine.tensorrt_artefact import difference
from g4seg_engine.version import VERSION
from g4seg_trt.chain import Chain, HostChain
from g4seg_trt.errors import ConfigError, EngineError, MissingExtraError

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu",),
    "tensorrt": ("cuda",),
}
"""The devices of each backend, the default first."""

AUTO = "auto"
"""The fastest backend that is installed and accurate enough; see `choose`."""

SMALL_ENGINE = 128 * 2**20
"""Engines of fewer bytes run as fast on onnxruntime, which is ready seconds earlier."""


@dataclass(frozen=True)
class Execution:
    """How an engine runs.

    Attributes:
        backend: a key of BACKENDS.
        device: "cpu", "cuda" or "cuda:1" and so on.
        compute_precision: what the backend computes in: "fp32", "fp16" or "bf16".
        reason: why it was chosen; "" where it was asked for.
    """

    backend: str
    device: str
    compute_precision: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.compute_precision}"


def fingerprint_of(manifest: Manifest | None, execution: Execution | None) -> dict[str, str]:
    """What results depend on beside inputs and settings.

    Batch size, threads and the number of workers stay out: they say how a result is computed, not what it is. It may
    differ by them in what rounding leaves to the order of a sum.

    Args:
        manifest: of the engine, None without one.
        execution: what runs it, where (the kind of device, not which of them) and in which precision; None as above.
    """
    content = None if manifest is None else codec.dump(manifest).encode("utf-8")
    return {
        "version": VERSION,
        "engine manifest sha256": "" if content is None else hashlib.sha256(content).hexdigest(),
        "backend": "" if execution is None else execution.backend,
        "device": "" if execution is None else execution.device.partition(":")[0],
        "compute precision": "" if execution is None else execution.compute_precision,
    }


def choose(manifest: Manifest, backend: str, device: str | None, compute_precision: str | None) -> Execution:
    """What runs an engine here.

    "auto" takes, of what is installed and fits: TensorRT's plans, ONNX Runtime on a GPU, OpenVINO, ONNX Runtime.
    OpenVINO computes in bfloat16 where the processor has instructions for it: the labels of the embedded engine's
    scenes then agree with float32's in more than 99.9 % of all pixels (``python -m g4seg_bench.accuracy``).

    Args:
        manifest: of the engine.
        backend: a key of BACKENDS, or "auto".
        device: "cpu", "cuda" or "cuda:1" and so on; None for the backend's first, with "auto" for any.
        compute_precision: "fp32" or "bf16" with openvino; None for the faster that this processor can do.

    Raises:
        ConfigError: for an unknown backend or device, or a compute precision that cannot be chosen.
    """
    precision = manifest.networks["unet"].precision
    if backend == AUTO:
        return _automatic(manifest, device, compute_precision)
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}, allowed: {', '.join((AUTO, *BACKENDS))}")
    device = BACKENDS[backend][0] if device is None else device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII) or device.partition(":")[0] not in BACKENDS[backend]:
        raise ConfigError(f"device is {device!r}, allowed with backend {backend}: {', '.join(BACKENDS[backend])}")
    if backend == "openvino":
        return Execution(backend, device, compute_precision or cpu_precisions()[-1])
    if compute_precision is not None:
        raise ConfigError(
            f"compute precision is {compute_precision!r}, allowed with backend {backend}: none, it computes in the "
            "engine's own precision"
        )
    return Execution(backend, device, precision)


def open_chain(
    directory: Path,
    manifest: Manifest,
    execution: Execution,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    low_memory: bool = False,
    cache: bool = True,
) -> Chain:
    """Open the networks of a checked engine directory.

    Args:
        directory: the engine directory.
        manifest: its manifest.
        execution: from `choose`.
        batch_size: (image, class) pairs in one run; None for 1 on a CPU and the largest that was built on a GPU. More
            than was built is split.
        threads: CPU threads, or None for the backend's choice.
        low_memory: keep one network open at a time (on a CPU).
        cache: keep what makes the next start shorter in the engine directory (on a CPU).

    Raises:
        ConfigError: for a batch size that is not allowed, or low memory on a GPU.
        EngineError: if a network cannot be opened, or the engine does not fit this machine.
        MissingExtraError: if the backend is not installed.
    """
    backend, device = execution.backend, execution.device
    if device == "cpu":
        return HostChain.open(
            directory,
            manifest,
            backend=backend,
            device=device,
            batch_size=1 if batch_size is None else batch_size,
            threads=threads,
            compute_precision=execution.compute_precision if backend == "openvino" else None,
            low_memory=low_memory,
            cache=cache,
        )
    if low_memory:
        raise ConfigError(f"low memory is asked for on the device {device}, allowed: on a CPU")
    try:
        from g4seg_trt.torch_chain import TorchChain
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError.for_package("torch", "tensorrt" if backend == TENSORRT else "gpu") from error
    return TorchChain.open(directory, manifest, backend=backend, device=device, batch_size=batch_size, threads=threads)


def _automatic(manifest: Manifest, device: str | None, compute_precision: str | None) -> Execution:
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):
        raise ConfigError(f"device is {device!r}, allowed: cpu, cuda")
    if device not in (None, "cpu") and compute_precision is not None:
        raise ConfigError(
            f"compute precision is {compute_precision!r}, allowed on the device {device}: none, it computes in the "
            "engine's own precision"
        )
    found: Execution | None = None
    if device != "cpu" and compute_precision is None:
        found = _on_gpu(manifest, device or "cuda")
    if found is None and device not in (None, "cpu"):
        raise ConfigError(
            f"device is {device!r}, and no backend runs this engine there; g4seg-engine doctor says what is missing"
        )
    return found or _on_cpu(manifest, compute_precision)


def _on_gpu(manifest: Manifest, device: str) -> Execution | None:
    if driver_cuda() is None or find_spec("torch") is None:
        return None
    try:
        number = device.partition(":")[2]
        gpu = cuda_device(int(number) if number else None)
    except EngineError:
        return None
    precision = manifest.networks["unet"].precision
    plans = [artefact for artefact in manifest.artefacts if artefact.backend == TENSORRT]
    if plans and find_spec("tensorrt") is not None and find_spec("polygraphy") is not None:
        from g4seg_engine.tensorrt_api import import_tensorrt

        version: str = import_tensorrt().__version__
        if all(difference(manifest, plan, version, gpu) is None for plan in plans):
            return Execution(TENSORRT, device, precision, f"its plans were built for this {gpu.name}")
    if find_spec("onnxruntime") is not None:
        from g4seg_engine.onnxruntime_runner import CUDA_PROVIDER, import_onnxruntime

        if CUDA_PROVIDER in import_onnxruntime().get_available_providers():
            return Execution("onnxruntime", device, precision, f"there is a GPU ({gpu.name}), and no plans that fit it")
    return None


def _on_cpu(manifest: Manifest, compute_precision: str | None) -> Execution:
    has_openvino, has_onnxruntime = (find_spec(name) is not None for name in ("openvino", "onnxruntime"))
    plain = Execution("onnxruntime", "cpu", manifest.networks["unet"].precision)
    if compute_precision is None:
        if not has_openvino:
            return replace(plain, reason="openvino, which is faster on a CPU, is not installed")
        if has_onnxruntime and sum(file.bytes for file in manifest.files()) < SMALL_ENGINE:
            return replace(plain, reason="small networks are open sooner with it")
    chosen = compute_precision or cpu_precisions()[-1]
    fastest = "it is the fastest on a CPU"
    why = {
        "bf16": "this processor multiplies bfloat16, and labels agree with float32's",
        "fp32": fastest if "bf16" in cpu_precisions() else "this processor has no bfloat16 instructions",
    }
    return Execution("openvino", "cpu", chosen, why.get(chosen, ""))
