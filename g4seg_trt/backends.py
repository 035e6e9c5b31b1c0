"""Which backends run the networks on which devices, and the chain for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from g4seg_engine.manifest import Manifest
from g4seg_trt.chain import Chain, HostChain
from g4seg_trt.errors import ConfigError, MissingExtraError

BACKENDS: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("cpu", "cuda"), "tensorrt": ("cuda",)}
"""The devices of each backend, the default first."""


def open_chain(
    directory: Path,
    manifest: Manifest,
    *,
    backend: str = "onnxruntime",
    device: str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Chain:
    """Open the networks of a checked engine directory.

    Args:
        directory: the engine directory.
        manifest: its manifest.
        backend: a key of BACKENDS.
        device: "cpu", "cuda" or "cuda:1" and so on; None for the backend's first.
        batch_size: (image, class) pairs in one run; None for 1 on a CPU and the largest that was built on a GPU. More
            than was built is split.
        threads: CPU threads, or None for the backend's choice.

    Raises:
        ConfigError: for an unknown backend or device, or a batch size that is not allowed.
        EngineError: if a network cannot be opened, or the engine does not fit this machine.
        MissingExtraError: if the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}, allowed: {', '.join(BACKENDS)}")
    device = BACKENDS[backend][0] if device is None else device
    kind, _, number = device.partition(":")
    if kind not in BACKENDS[backend] or (number and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"device is {device!r}, allowed with backend {backend}: {', '.join(BACKENDS[backend])}")
    if kind == "cpu":
        return HostChain.open(
            directory,
            manifest,
            backend=backend,
            device=device,
            batch_size=1 if batch_size is None else batch_size,
            threads=threads,
        )
    try:
        from g4seg_trt.torch_chain import TorchChain
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError.for_package("torch", "tensorrt" if backend == "tensorrt" else "gpu") from error
    return TorchChain.open(directory, manifest, backend=backend, device=device, batch_size=batch_size, threads=threads)
