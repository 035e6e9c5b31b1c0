"""What a pickle of masks may name, and what is done in its place: plain functions that check what they are given.

Not one of the things named is imported or called: numpy's arrays, dtypes and scalars under the names of numpy
1 and 2, a few containers, and torch's tensors, which stay unopened (`tensors.Tensor`).
"""

from __future__ import annotations

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.tensors import Storage, Tensor

ARRAY_TYPE = "numpy.ndarray"
"""Named as an argument only."""

_DIMENSIONS = 32
_DTYPE = re.compile(r"b1|i[1248]|u[1248]|f[248]|[SU][1-9]\d{0,5}|O[48]?")
_BUILTINS = ("builtins", "__builtin__")
_SCALARS = (type(None), bool, int, float, str, bytes, np.generic)


class Name:
    """A global that a pickle names: a marker, never the thing itself."""

    def __init__(self, full: str) -> None:
        self.full = full


class Dtype:
    """A numpy dtype in the making: its byte order comes with the state.

    Raises:
        ValueError: for a dtype that no mask has.
    """

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise ValueError("a numpy dtype that is not of numbers, strings or objects")
        self.final = np.dtype("O" if text[0] == "O" else text)

    def set_state(self, state: object) -> None:
        """Takes the byte order; raises ValueError for a dtype with fields or other extras."""
        match state:
            case (int(), "<" | ">" | "=" | "|" as order, None, None, None, int(), int(), int()):
                self.final = self.final.newbyteorder(order)
            case _:
                raise ValueError("a numpy dtype with fields, metadata or an unknown byte order")


class Workshop:
    """What the calls of one pickle share: arrays that wait for their state, and how much may be made.

    Args:
        size: bytes of the pickle.
        what: the file, for the message.
    """

    def __init__(self, size: int, what: str) -> None:
        self._size = size
        self._what = what
        # An honest file makes of each of its bytes about one more; objects can be named again and again.
        self._budget = (16 << 20) + 4 * size
        self._unfilled: dict[int, Array] = {}

    def spend(self, size: int) -> None:
        """Counts bytes that a call makes; raises MaskError when a small file makes much."""
        self._budget -= size
        if self._budget < 0:
            raise MaskError(f"{self._what}: makes far more of its {self._size} bytes than they hold: refused")

    def raw(self, value: object) -> bytes:
        """Raw bytes, which Python 2 wrote as strings; raises ValueError for anything else."""
        if isinstance(value, bytes):
            return value
        if not isinstance(value, (str, bytearray)):
            raise ValueError(f"a {type(value).__name__} instead of bytes")
        self.spend(len(value))
        return value.encode("latin-1") if isinstance(value, str) else bytes(value)

    def new_array(self) -> Array:
        """An array that waits for its state."""
        self.spend(128)
        array = np.zeros(0, np.uint8)
        self._unfilled[id(array)] = array
        return array

    def build(self, target: object, state: object) -> None:
        """Gives an array or a dtype its state; raises ValueError for anything else."""
        if isinstance(target, Dtype):
            target.set_state(state)
        elif id(target) in self._unfilled:
            self._fill(self._unfilled.pop(id(target)), state)
        else:
            raise ValueError(f"a state for a {type(target).__name__}")

    def finish(self) -> None:
        """Raises ValueError if an array is still without its state."""
        if self._unfilled:
            raise ValueError("an array without its state")

    def _fill(self, array: Array, state: object) -> None:
        match state:
            case (int(), tuple() as shape, Dtype() as dtype, int() as fortran, raw):
                count = _count(shape)
            case _:
                raise ValueError("an array with an unknown state")
        if not dtype.final.hasobject:
            raw = self.raw(raw)
            count *= dtype.final.itemsize
        elif type(raw) is not list:
            raise ValueError("an array of objects without a list of them")
        if len(raw) != count:
            raise ValueError(f"an array of shape {shape} and dtype {dtype.final} with {len(raw)} bytes or items")
        self.spend(len(raw))
        state = (1, shape, dtype.final, bool(fortran), raw)
        array.__setstate__(state)  # type: ignore[arg-type] # the stub asks for numpy's bool, numpy for Python's


def check_keys(values: Iterable[object]) -> None:
    """Check that values may be keys of a dict: numbers, strings, or short tuples of these; raises ValueError.

    Hashing anything deeper could end the interpreter: tuples hash one another without a limit. And of many keys with
    one hash each is compared with all others: whole numbers have their own up to Python's modulus, and of tuples of a
    few small numbers hardly two share one (the hashes of strings nobody can foresee).
    """
    for value in values:
        if type(value) is tuple:
            fits = len(value) <= 4 and all(
                part is None or isinstance(part, (str, bytes)) or (isinstance(part, int) and abs(part) < 1 << 16)
                for part in value
            )
        else:
            fits = isinstance(value, _SCALARS)
        if not fits:
            raise ValueError(f"a {type(value).__name__} as a key")
        if isinstance(value, (int, np.integer)) and abs(int(value)) >= sys.hash_info.modulus:
            raise ValueError("a whole number as a key that no class index or image has")


def _count(shape: tuple[Any, ...]) -> int:
    """How many elements an array of this shape has."""
    if len(shape) > _DIMENSIONS or any(type(side) is not int or not 0 <= side < 1 << 62 for side in shape):
        raise ValueError("an array whose shape is not a few numbers from 0 on")
    return math.prod(shape)


def _dtype(shop: Workshop, text: object, align: object = False, copy: object = True) -> Dtype:
    shop.spend(64)
    if not isinstance(align, int) or not isinstance(copy, int):
        raise ValueError("a numpy dtype that numpy does not write")
    return Dtype(text)


def _array(shop: Workshop, kind: object, shape: object, code: object) -> Array:
    if not isinstance(kind, Name) or kind.full != ARRAY_TYPE or shape != (0,) or code not in (b"b", "b"):
        raise ValueError("an array that numpy does not write")
    return shop.new_array()


def _scalar(shop: Workshop, dtype: object, value: object) -> Any:
    if not isinstance(dtype, Dtype) or dtype.final.hasobject:
        raise ValueError("a numpy scalar without a plain dtype")
    raw = shop.raw(value)
    shop.spend(len(raw) + 32)
    if len(raw) != dtype.final.itemsize:
        raise ValueError(f"a numpy scalar of dtype {dtype.final} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype.final)[0]


def _from_buffer(
    shop: Workshop, value: object, dtype: object, shape: object, order: object, axes: object = None
) -> Array:
    if not isinstance(dtype, Dtype) or dtype.final.hasobject or not isinstance(shape, tuple):
        raise ValueError("an array of a buffer without a plain dtype")
    raw = shop.raw(value)
    shop.spend(128)
    if len(raw) != _count(shape) * dtype.final.itemsize:
        raise ValueError(f"an array of shape {shape} and dtype {dtype.final} with {len(raw)} bytes")
    flat = np.frombuffer(raw, dtype.final)
    match order, axes:
        case "C", None:
            return flat.reshape(shape)
        case "F", None:
            return flat.reshape(shape, order="F")
        case "K", tuple() if sorted(axes) == list(range(len(shape))):
            return flat.reshape(shape).transpose(axes)
    raise ValueError("an array of a buffer in an unknown order")


def _encode(shop: Workshop, text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes that are not written as Latin-1")
    return shop.raw(text)


def _bytes(_: Workshop) -> bytes:
    return b""


def _bytearray(shop: Workshop, value: object = b"", encoding: object = "latin-1") -> bytearray:
    raw = _encode(shop, value, encoding) if isinstance(value, str) else shop.raw(value)
    shop.spend(len(raw))
    return bytearray(raw)


def _items(shop: Workshop, values: object) -> list[Any] | tuple[Any, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"a container made of a {type(values).__name__}")
    shop.spend(64 * len(values) + 256)
    return values


def _set(shop: Workshop, values: object = ()) -> set[Any]:
    items = _items(shop, values)
    check_keys(items)
    return set(items)


def _frozenset(shop: Workshop, values: object = ()) -> frozenset[Any]:
    return frozenset(_set(shop, values))


def _ordered_dict(shop: Workshop, pairs: object = ()) -> OrderedDict[Any, Any]:
    made = OrderedDict[Any, Any]()
    for key, value in _items(shop, pairs):
        check_keys((key,))
        made[key] = value
    return made


def _size(shop: Workshop, values: object = ()) -> tuple[Any, ...]:
    return tuple(_items(shop, values))


def _storage(shop: Workshop, value: object) -> Storage:
    return Storage(shop.raw(value))


def _tensor(shop: Workshop, storage: object, offset: Any, size: object, stride: object, *rest: object) -> Tensor:
    # The rest: requires_grad, backward hooks (empty in every file), metadata (views that conjugate or negate).
    if (
        not isinstance(storage, Storage)
        or not isinstance(size, tuple)
        or not isinstance(stride, tuple)
        or any(rest[1:])
    ):
        raise ValueError("a torch tensor that is more than a view of a storage")
    shop.spend(128)
    _count(size)
    _count(stride)
    return Tensor(storage, offset, size, stride)


CALLS: Mapping[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "_codecs.encode": _encode,
    **{f"{module}.bytes": _bytes for module in _BUILTINS},
    **{f"{module}.bytearray": _bytearray for module in _BUILTINS},
    **{f"{module}.set": _set for module in _BUILTINS},
    **{f"{module}.frozenset": _frozenset for module in _BUILTINS},
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
"""Full name -> what is called in its place, with the Workshop and the arguments of the file."""
