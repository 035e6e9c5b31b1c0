"""Torch tensors inside pickles: kept as the bytes that the file holds, and looked into only when asked for.

A pickle made without torch.save holds a tensor as `torch._utils._rebuild_tensor_v2` of
`torch.storage._load_from_bytes`, whose bytes are a second pickle in torch's first file format. Here those
bytes go to torch.load(weights_only=True) and nowhere else.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from g4seg_trt.arrays import Array
from g4seg_trt.atomic import reason
from g4seg_trt.errors import MaskError, MissingExtraError

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
"""numpy's name of a dtype -> torch's class of storages."""

# torch's first file format: a magic number and a version, each a pickle of its own.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
# 2.5 and older let a tar archive past weights_only (CVE-2025-32434).
_SAFE_TORCH = (2, 6)
# What torch.load raises for damaged storages.
_BROKEN_STORAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


@dataclass(frozen=True, eq=False)
class Storage:
    """What a file gives `torch.storage._load_from_bytes`."""

    data: bytes


@dataclass(frozen=True, eq=False)
class Tensor:
    """A torch tensor as a pickle has it: a view of a storage, counted in elements.

    Raises:
        ValueError: if a number of the view is negative or far too large, or size and stride differ in length.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.size, *self.stride)
        if len(self.size) != len(self.stride) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a torch tensor whose size, stride or offset is not a number from 0 on")
        if math.prod(max(side, 1) for side in self.size) >= 1 << 48:
            raise ValueError(f"a torch tensor of size {self.size}")

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """The tensor that holds a copy of `array`; MaskError for a dtype that torch's first format lacks.

        The same array gives the same bytes: torch.save would write an address of the process into them.
        """
        if array.dtype.name not in STORAGES:
            raise MaskError(f"torch storages have no dtype {array.dtype}, allowed: {', '.join(STORAGES)}")
        kind = STORAGES[array.dtype.name].encode()
        raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        count = struct.pack("<q", array.size)
        storage = (
            *(MAGIC, VERSION, b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."),
            # ("storage", torch.FloatStorage, "0", "cpu", count, None), as a persistent id
            *(b"\x80\x02(X\x07\x00\x00\x00storagectorch\n", kind, b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"),
            *(b"\x8a\x08", count, b"NtQ.\x80\x02]X\x01\x00\x00\x000a."),
            *(count, raw),
        )
        stride = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        return cls(Storage(b"".join(storage)), 0, array.shape, stride)

    def array(self, what: str) -> Array:
        """The values, a copy shaped `size`; bfloat16 becomes float32.

        Args:
            what: the file and the place in it, for the message.

        Raises:
            MaskError: if the storage is damaged, is refused by torch, or is smaller than the view.
            MissingExtraError: torch is not installed, or cannot load safely.
        """
        flat = _elements(self.storage.data, what)
        count = math.prod(self.size)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))
        if count > flat.size or (count and last >= flat.size):
            raise MaskError(f"{what}: a torch tensor of size {self.size} in a storage of {flat.size} elements")
        if not count:
            return np.zeros(self.size, flat.dtype)
        steps = tuple(step * flat.itemsize for step in self.stride)
        return as_strided(flat[self.offset :], self.size, steps).copy()


def as_array(value: object, what: str) -> Array:
    """A numpy array as it is, a torch tensor's values; raises as `Tensor.array`, MaskError for anything else."""
    if isinstance(value, Tensor):
        return value.array(what)
    if isinstance(value, np.ndarray):
        return value
    raise MaskError(f"{what}: a {type(value).__name__}, expected a numpy array or a torch tensor")


def open_tensors(value: object, what: str) -> None:
    """Opens every tensor in a value, so that nothing that torch refuses is handed on; raises as `Tensor.array`."""
    if isinstance(value, Tensor):
        value.array(what)
    elif isinstance(value, dict):
        for inner in value.values():
            open_tensors(inner, what)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            open_tensors(inner, what)
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        open_tensors(value.reshape(-1).tolist(), what)


def _elements(data: bytes, what: str) -> Array:
    """A storage's elements as one row."""
    # A storage is never one of the other containers that torch.load opens (zip, tar).
    if not data.startswith(MAGIC + VERSION):
        raise MaskError(f"{what}: a torch storage in a format that torch does not write: refused")
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(f"{what}: a torch tensor, and torch is not installed: pip install torch") from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise MissingExtraError(
            f"{what}: a torch tensor, and torch {torch.__version__} cannot load it safely: pip install 'torch>=2.6'"
        )
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise MaskError(f"{what}: a {type(storage).__name__} instead of a torch storage")
        # storage.untyped() is the public name, and warns that typed storages, which is what files hold, will go.
        flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
        elements: Array = (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()
    except _BROKEN_STORAGE as error:
        said = next(iter(reason(error).strip().splitlines()), type(error).__name__)
        raise MaskError(f"{what}: a torch storage that torch.load(weights_only=True) refuses ({said})") from error
    return elements
