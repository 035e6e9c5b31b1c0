"""Writes the pickles that `pickles` reads.

The pickle module would write what the numpy of the day calls its own functions, and numpy 2's names mean
nothing to numpy before 1.26; and torch's storages carry an address of the process. This writes the names that
every numpy knows (numpy 2 keeps them for old files), and the same bytes for the same data, in protocol 4
(Python 3.4).
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from g4seg_trt.arrays import Array
from g4seg_trt.masks.tensors import Storage, Tensor

_PROTOCOL = b"\x80\x04"
_STOP = b"."


class Sink(Protocol):
    """Where bytes go: a file, or a hash."""

    def write(self, data: bytes, /) -> object:
        """Takes the next bytes."""


def write_npy_dict(file: Sink, value: Mapping[Any, Any]) -> None:
    """What numpy.save does with a dict: read with numpy.load(path, allow_pickle=True).item()."""
    npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    array = np.empty((), dtype=object)
    array[()] = value
    file.write(_PROTOCOL)
    _write(file, array)
    file.write(_STOP)


def write_pickled_list(file: Sink, values: Iterable[object]) -> None:
    """A pickled list, value by value: none is kept."""
    file.write(_PROTOCOL + b"](")
    for value in values:
        _write(file, value)
    file.write(b"e" + _STOP)


def digest(value: object) -> str:
    """sha256 of a value, of what it holds and how: of the bytes that are written for it."""
    sink = _HashSink()
    _write(sink, value)
    return sink.found.hexdigest()


class _HashSink:
    def __init__(self) -> None:
        self.found = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self.found.update(data)


def _write(file: Sink, value: Any) -> None:
    """The opcodes that push `value`; TypeError for a type that no reader of masks gives."""
    match value:
        case None | True | False:
            file.write({None: b"N", True: b"\x88", False: b"\x89"}[value])
        case np.generic():
            _call(file, "numpy.core.multiarray", "scalar", value.dtype, value.tobytes())
        case int():
            file.write(b"I%d\n" % value)
        case float():
            file.write(b"G" + struct.pack(">d", value))
        case str():
            raw = value.encode("utf-8", "surrogatepass")
            file.write(b"\x8d" + struct.pack("<Q", len(raw)) + raw)
        case bytes():
            file.write(b"\x8e" + struct.pack("<Q", len(value)))
            file.write(value)
        case bytearray():
            _call(file, "builtins", "bytearray", bytes(value))
        case OrderedDict():
            _call(file, "collections", "OrderedDict")
            _write_items(file, value)
        case dict():
            file.write(b"}")
            _write_items(file, value)
        case list() | tuple():
            file.write(b"(")
            for item in value:
                _write(file, item)
            file.write(b"l" if isinstance(value, list) else b"t")
        case set() | frozenset():
            # Sorted by what they look like: a set has no order of its own, and the bytes are to be the same.
            _call(file, "builtins", type(value).__name__, sorted(value, key=repr))
        case np.ndarray():
            _write_array(file, value)
        case np.dtype():
            _write_dtype(file, value)
        case Tensor():
            hooks: OrderedDict[Any, Any] = OrderedDict()
            view = (value.offset, value.size, value.stride)
            _call(file, "torch._utils", "_rebuild_tensor_v2", value.storage, *view, False, hooks)
        case Storage():
            _call(file, "torch.storage", "_load_from_bytes", value.data)
        case _:
            raise TypeError(f"no pickle of masks holds a {type(value).__name__}")


def _write_items(file: Sink, values: Mapping[Any, Any]) -> None:
    file.write(b"(")
    for key, value in values.items():
        _write(file, key)
        _write(file, value)
    file.write(b"u")


def _global(file: Sink, module: str, name: str) -> None:
    file.write(f"c{module}\n{name}\n".encode("ascii"))


def _call(file: Sink, module: str, name: str, *arguments: object) -> None:
    _global(file, module, name)
    _write(file, arguments)
    file.write(b"R")


def _write_dtype(file: Sink, dtype: np.dtype[Any]) -> None:
    _call(file, "numpy", "dtype", dtype.str[1:], False, True)
    order = "|" if dtype.byteorder == "|" else dtype.str[0]
    text = dtype.kind in "SU"
    sizes = (dtype.itemsize, dtype.alignment) if text else (-1, -1)
    _write(file, (3, order, None, None, None, *sizes, 63 if dtype.hasobject else 8 if dtype.kind == "U" else 0))
    file.write(b"b")


def _write_array(file: Sink, array: Array) -> None:
    _global(file, "numpy.core.multiarray", "_reconstruct")
    file.write(b"(")
    _global(file, "numpy", "ndarray")
    _write(file, (0,))
    _write(file, b"b")
    file.write(b"tR")
    raw = array.reshape(-1).tolist() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
    _write(file, (1, array.shape, array.dtype, False, raw))
    file.write(b"b")
