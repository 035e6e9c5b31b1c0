"""What the NVIDIA GPU and its driver are, and one clear line where they cannot be used.

The driver is asked first, through its own library: PyTorch's errors come late and differ from version to version.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from g4seg_engine.errors import EngineError, MissingExtraError

_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_SMI_SECONDS = 20


@dataclass(frozen=True)
class CudaDevice:
    """One GPU.

    Attributes:
        index: as PyTorch counts them, from 0.
        name: such as "NVIDIA H200".
        compute_capability: such as "9.0".
        memory: bytes of GPU memory, free or not.
        driver: version of the driver such as "570.86.15", or "" where nothing tells.
        driver_cuda: newest CUDA that the driver supports, such as "12.8".
    """

    index: int
    name: str
    compute_capability: str
    memory: int
    driver: str
    driver_cuda: str


def cuda_device(index: int | None = None) -> CudaDevice:
    """The GPU with this index, by default PyTorch's current one.

    Raises:
        MissingExtraError: PyTorch is not installed.
        EngineError: there is no driver, it is too old for PyTorch, PyTorch was built without CUDA, or there is no
            such GPU.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError.for_package("torch", "gpu") from error

    supported = driver_cuda()
    if supported is None:
        raise EngineError("no NVIDIA driver was found: install it, until nvidia-smi lists the GPU")
    shown = ".".join(map(str, supported))
    if torch.version.cuda is None:
        raise EngineError(
            f"PyTorch {torch.__version__} was built without CUDA: install a build for CUDA {shown} or older"
        )
    # Within one major version of CUDA an older driver will do.
    if supported[0] < int(torch.version.cuda.split(".")[0]):
        raise EngineError(
            f"the NVIDIA driver {driver_version()} is too old: it supports CUDA {shown}, and PyTorch "
            f"{torch.__version__} needs CUDA {torch.version.cuda}; update the driver"
        )
    count = torch.cuda.device_count()
    if count == 0:
        raise EngineError("the NVIDIA driver sees no GPU: check nvidia-smi and the variable CUDA_VISIBLE_DEVICES")
    if index is not None and not 0 <= index < count:
        raise EngineError(f"there is no GPU {index}: PyTorch sees {count}, counted from 0")
    try:
        index = torch.cuda.current_device() if index is None else index
        properties = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        raise EngineError(f"the GPU cannot be used: {str(error).splitlines()[0]}") from error
    return CudaDevice(
        index=index,
        name=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory=properties.total_memory,
        driver=driver_version(),
        driver_cuda=shown,
    )


def driver_cuda() -> tuple[int, int] | None:
    """Newest CUDA that the driver supports, (major, minor); None without a driver. Needs neither GPU nor PyTorch."""
    try:
        library = ctypes.CDLL(_DRIVER_LIBRARY)
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


@lru_cache(maxsize=1)
def driver_version() -> str:
    """Version of the driver such as "570.86.15", or "" where nothing tells."""
    try:
        # nvidia-smi is often missing in a container; the kernel module's file is there then.
        words = _DRIVER_FILE.read_text(encoding="ascii", errors="replace")
    except OSError:
        words = _ask_smi()
    found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", words)
    return found.group() if found else ""


def _ask_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
