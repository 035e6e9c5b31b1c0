"""MATLAB files of version 5 (save -v6 or -v7, scipy's savemat): matrices of real numbers, and nothing else.

A file is a header of 128 bytes and an element for each variable: a tag (type, length) and a matrix of elements
again, its flags, shape, name and numbers, or such an element packed by zlib. What a file says about its length is
held against what it has before anything is unpacked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal, NoReturn

import numpy as np

from g4seg_trt.arrays import Array
from g4seg_trt.errors import MaskError

Order = Literal["<", ">"]

MAGIC = b"MATLAB 5.0 MAT-file"
TEXT = 116
"""Bytes of text that a file begins with."""

_HEADER = 128
_VERSION = 0x0100
_ORDERS: Mapping[bytes, Order] = {b"IM": "<", b"MI": ">"}
_HEAD = 512
"""Bytes of a matrix that hold all but its numbers."""

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4")
_NUMBERS = {**dict(enumerate(_INTEGERS, start=1)), 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = dict(enumerate(("f8", "f4", *_INTEGERS, "i8", "u8"), start=6))
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse"}
_COMPLEX = 0x0800


@dataclass(frozen=True)
class Variable:
    """A matrix in a file, its numbers unread.

    Attributes:
        name: what the file calls it.
        shape: (rows, columns).
        dtype: of its numbers, in the machine's byte order.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    _order: Order
    _data: memoryview
    _packed: bool
    _begin: int  # of the numbers, in the unpacked element
    _length: int  # of the unpacked element

    def values(self, what: str) -> Array:
        """The numbers, [rows, columns]; raises MaskError if they are not what the file says."""
        raw = _unpacked(self._data, self._length, what) if self._packed else self._data
        kind, start, length, end = _element(raw, self._begin, self._order, what)
        if kind not in _NUMBERS:
            _damaged(what, f"numbers of the unknown type {kind}")
        stored = np.dtype(_NUMBERS[kind]).newbyteorder(self._order)
        if length != self.shape[0] * self.shape[1] * stored.itemsize or end != self._length:
            _damaged(what, f"{length} bytes for a matrix {list(self.shape)}")
        if self.dtype.kind != "f" and not np.can_cast(stored, self.dtype):
            _damaged(what, f"{self.dtype} numbers stored as {stored.name}")
        flat = np.frombuffer(raw[start : start + length], stored)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is no probability
            return flat.reshape(self.shape[::-1]).T.astype(self.dtype)


def variables(data: bytes, what: str) -> list[Variable]:
    """The matrices of a file, in its order, the numbers unread.

    Args:
        data: the file's content.
        what: its name, for the message.

    Raises:
        MaskError: if it is no such file, is damaged, or holds anything but matrices of real numbers.
    """
    if data.startswith(b"MATLAB 7.3"):
        raise MaskError(f"{what}: a MATLAB 7.3 file, which is not read: save it with -v7")
    order = _ORDERS.get(data[_HEADER - 2 : _HEADER])
    if not data.startswith(MAGIC) or order is None or struct.unpack_from(f"{order}H", data, 124) != (_VERSION,):
        raise MaskError(f"{what}: not a MATLAB file of version 5 (save -v7, savemat)")
    found: list[Variable] = []
    at = _HEADER
    while at < len(data):
        if len(data) - at < 8:
            _damaged(what, "cut off")
        kind, length = struct.unpack_from(f"{order}II", data, at)
        begin = at + 8 if kind == _COMPRESSED else at
        end = at + 8 + length
        if end > len(data):
            _damaged(what, "cut off")
        if kind not in (_MATRIX, _COMPRESSED):
            _damaged(what, f"an element of type {kind}, expected matrices")
        found.append(_variable(memoryview(data)[begin:end], kind == _COMPRESSED, order, what))
        at = end
    return found


def text_of(data: bytes) -> bytes:
    """What a file begins with, TEXT bytes."""
    return data[:TEXT]


def write(file: BinaryIO, text: bytes, matrices: Mapping[str, Array]) -> None:
    """Write matrices packed, little endian. The same input gives the same bytes.

    Args:
        file: where to.
        text: what the file begins with, MAGIC first, up to TEXT bytes.
        matrices: name -> numbers [rows, columns].
    """
    file.write(text.ljust(TEXT)[:TEXT] + bytes(8) + struct.pack("<H", _VERSION) + b"IM")
    codes = {name: code for code, name in _CLASSES.items()}
    types = {name: code for code, name in _NUMBERS.items()}
    for name, matrix in matrices.items():
        dtype = f"{matrix.dtype.kind}{matrix.dtype.itemsize}"
        body = (
            _tagged(_UINT32, struct.pack("<II", codes[dtype], 0))
            + _tagged(_INT32, struct.pack("<2i", *matrix.shape))
            + _tagged(_INT8, name.encode("ascii"))
            + _tagged(types[dtype], matrix.astype(matrix.dtype.newbyteorder("<")).tobytes("F"))
        )
        packed = zlib.compress(_tagged(_MATRIX, body))
        file.write(struct.pack("<II", _COMPRESSED, len(packed)))
        file.write(packed)


def _tagged(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _variable(data: memoryview, packed: bool, order: Order, what: str) -> Variable:
    """All of a matrix but its numbers."""
    head: bytes | memoryview = data[:_HEAD]
    if packed:
        try:
            head = zlib.decompressobj().decompress(data, _HEAD)
        except zlib.error as error:
            _damaged(what, str(error))
    kind, at, length, _ = _element(head, 0, order, what, whole=False)
    if kind != _MATRIX:
        _damaged(what, f"an element of type {kind}, expected a matrix")
    kind, start, size, at = _element(head, at, order, what)
    if (kind, size) != (_UINT32, 8):
        _damaged(what, "a matrix without flags")
    (flags,) = struct.unpack_from(f"{order}I", head, start)
    kind, start, size, at = _element(head, at, order, what)
    if kind != _INT32 or size % 4:
        _damaged(what, "a matrix without a shape")
    shape = struct.unpack_from(f"{order}{size // 4}i", head, start)
    kind, start, size, at = _element(head, at, order, what)
    if kind != _INT8:
        _damaged(what, "a matrix without a name")
    name = bytes(head[start : start + size]).decode("latin-1")
    number = flags & 0xFF
    if number not in _CLASSES or flags & _COMPLEX or len(shape) != 2 or min(shape) < 1:
        of = np.dtype(_CLASSES[number]).name if number in _CLASSES else _OTHERS.get(number, f"class {number}")
        of = f"complex {of}" if flags & _COMPLEX else of
        raise MaskError(f"{what}, {ascii(name)[:40]}: {of} {list(shape)}, expected real numbers [height, width]")
    dtype = np.dtype(_CLASSES[number])
    most = at + 8 + 8 * shape[0] * shape[1]
    if 8 + length > most:
        raise MaskError(f"{what}, {ascii(name)[:40]}: unpacks to more than {most} bytes, which it does not need")
    return Variable(name, (shape[0], shape[1]), dtype, order, data, packed, at, 8 + length)


def _element(
    raw: bytes | memoryview, at: int, order: Order, what: str, *, whole: bool = True
) -> tuple[int, int, int, int]:
    """Type, start and length of the element at a place, and where the next one is.

    Args:
        raw: what holds it.
        at: the place.
        order: "<" or ">".
        what: the file, for the message.
        whole: whether all of it has to be in `raw`.
    """
    if at + 8 > len(raw):
        _damaged(what, "cut off")
    kind, length = struct.unpack_from(f"{order}II", raw, at)
    if kind >> 16:  # up to four bytes stand in the tag itself
        kind, length = kind & 0xFFFF, kind >> 16
        start, end = at + 4, at + 8
        if length > 4:
            _damaged(what, f"a short element of {length} bytes")
    else:
        start = at + 8
        end = start + -(-length // 8) * 8
    if whole and end > len(raw):
        _damaged(what, "cut off")
    return kind, start, length, end


def _unpacked(data: memoryview, length: int, what: str) -> bytes:
    """The element of a known length that is packed here."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, length + 1)
    except zlib.error as error:
        _damaged(what, str(error))
    if len(raw) > length:
        _damaged(what, f"unpacks to more than {length} bytes")
    if len(raw) < length or not stream.eof:
        _damaged(what, "cut off")
    return raw


def _damaged(what: str, why: str) -> NoReturn:
    raise MaskError(f"{what}: a damaged MATLAB file ({why})")
