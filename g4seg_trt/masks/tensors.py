"""Torch tensors inside pickles: kept as the bytes that the file holds, and looked into only when asked for.

A pickle made without torch.save holds a tensor as `torch._utils._rebuild_tensor_v2` of
`torch.storage._load_from_bytes`, whose bytes are in torch's first file format: five pickles (a magic number, a
version, the system, a persistent id that says what the storage is, and the list of its key), the count of elements
and the elements. These are walked here, opcode by opcode, and torch is never asked.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from g4seg_trt.arrays import Array
from g4seg_trt.errors import MaskError

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

_DTYPES = {f"torch {kind}": np.dtype(name).newbyteorder("<") for name, kind in STORAGES.items()}
_BRAIN = "torch BFloat16Storage"
"""The upper half of float32, which numpy does not have."""

# torch's first file format: a magic number and a version, each a pickle of its own.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
_LONGEST_PREFIX = 4096
"""Bytes before the count of elements, of which torch writes about 300."""

# Opcodes of the pickles before the elements, of any protocol that torch was run with.
_PUSH = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING"),
}
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NO_VALUE = {
    *("PROTO", "FRAME", "MARK", "TUPLE", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "EMPTY_DICT", "SETITEM"),
    *("SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "BINPERSID", "STOP"),
}


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
            MaskError: if the storage is damaged, of another kind, or smaller than the view.
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
    """Opens every tensor in a value, so that none that is refused here is handed on; raises as `Tensor.array`."""
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
    stream = io.BytesIO(data[:_LONGEST_PREFIX])
    stream.seek(len(MAGIC + VERSION))
    try:
        _values(stream, what)  # the system: sizes of C's types, and the byte order, which is always little
        match _values(stream, what):
            case ["storage", _Global(kind), str(key), str(), int(count), None] if type(count) is int:
                pass
            case _:
                raise MaskError(f"{what}: holds something else than one torch storage: refused")
        if _values(stream, what) != [key]:
            raise MaskError(f"{what}: a torch storage with another key than its own: refused")
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise MaskError(f"{what}: a damaged torch storage") from error
    if kind not in _DTYPES and kind != _BRAIN:
        raise MaskError(f"{what}: a {ascii(kind)[1:-1][:60]}, which no mask needs: refused")
    dtype = _DTYPES.get(kind, np.dtype("<u2"))
    begin = stream.tell() + 8
    stated = data[begin - 8 : begin]
    if count < 0 or stated != count.to_bytes(8, "little") or len(data) - begin != count * dtype.itemsize:
        raise MaskError(f"{what}: a torch storage of {count} elements in {max(len(data) - begin, 0)} bytes")
    flat: Array = np.frombuffer(data, dtype, count, begin)
    if kind == _BRAIN:
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat.astype(dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class _Global:
    """Something that a pickle names."""

    name: str


def _values(stream: io.BytesIO, what: str) -> list[Any]:
    """The values of the next pickle, in the order of the file, whatever containers they are in.

    Raises:
        MaskError: for an opcode that could do more than that.
        ValueError, IndexError, KeyError, OverflowError: if it is damaged.
    """
    values: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, given, _ in pickletools.genops(stream):
        name = opcode.name
        argument: Any = given
        if name in _PUSH:
            values.append(argument)
        elif name in _CONSTANTS:
            values.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            values.append(_Global(argument))
        elif name in ("BINGET", "LONG_BINGET"):
            values.append(memo[argument])
        elif name not in _NO_VALUE:
            raise MaskError(f"{what}: a torch storage with the pickle opcode {name}, which none needs: refused")
        if name in ("BINPUT", "LONG_BINPUT") and values:
            memo[argument] = values[-1]
    return values
