"""The NVIDIA GPUs as the driver itself tells, where torch need not be installed or may not be able to use them."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

from g4seg_engine.cuda_device import CudaDevice, driver_cuda, driver_version

_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76
_TEXT_BYTES = 256


@dataclass(frozen=True)
class Gpus:
    """What the driver tells.

    Attributes:
        devices: the GPUs that this process may use, in CUDA's order.
        driver: version of the driver, "" where it is not told.
        driver_cuda: newest CUDA that the driver supports, such as "12.8", or "".
        problem: why there is no GPU to use, or "".
        remedy: what to do about it, or "".
    """

    devices: tuple[CudaDevice, ...] = ()
    driver: str = ""
    driver_cuda: str = ""
    problem: str = ""
    remedy: str = ""


def read_gpus() -> Gpus:
    """Ask the driver; whatever is missing is a fact, not an error."""
    supported = driver_cuda()
    if supported is None:
        return Gpus(
            problem="no NVIDIA driver was found",
            remedy="it needs an NVIDIA GPU and its driver; in a container, start it with --gpus all",
        )
    driver, newest = driver_version(), ".".join(map(str, supported))
    library = ctypes.CDLL(_DRIVER_LIBRARY)
    code = library.cuInit(0)
    if code not in (0, _NO_DEVICE):
        problem = f"the NVIDIA driver does not start: {_error_name(library, code)}"
        return Gpus((), driver, newest, problem, "reboot, or install the driver again")
    count = ctypes.c_int()
    if code == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return Gpus((), driver, newest, "the NVIDIA driver sees no GPU", _look_for_devices())
    devices = tuple(_device(library, index, driver, newest) for index in range(count.value))
    return Gpus(devices, driver, newest)


def _look_for_devices() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "see whether nvidia-smi lists it; in a container, start it with --gpus all"
    return f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it, or name a GPU that is there"


def _device(library: ctypes.CDLL, index: int, driver: str, newest: str) -> CudaDevice:
    handle = ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(handle), index)
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    library.cuDeviceGetName(name, _TEXT_BYTES, handle)
    memory = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        capability.append(str(value.value))
    return CudaDevice(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=".".join(capability),
        memory=memory.value,
        driver=driver,
        driver_cuda=newest,
    )


def _error_name(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(name)) != 0 or name.value is None:
        return f"error {code}"
    return f"{name.value.decode(errors='replace')} ({code})"
