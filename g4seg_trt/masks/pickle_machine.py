"""The stack machine that a pickle is a program for, reduced to what builds data.

Python's unpickler imports and calls what a file tells it to. This one walks the opcodes itself: a global is a
marker (`Name`), only markers of the table CALLS can be called, and what is called are the functions of that
table. A small file cannot make a large object: lengths are held against what the file has left, and the work
that a file may ask for grows with its size only.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO, cast

import numpy as np

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.pickle_calls import ARRAY_TYPE, CALLS, Dtype, Name, Workshop, check_keys
from g4seg_trt.masks.tensors import Storage

DEPTH = 32
"""How deep containers may nest."""

_MOST_BITS = 1024
"""Of a whole number; Python does not write those of thousands of digits."""

# These push what stands behind them.
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: Mapping[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Rest:
    """What is left of a file: asked for more than that, it gives what there is, and allocates no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = self.size = max(os.fstat(file.fileno()).st_size - file.tell(), 0)

    def opcodes(self) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
        """What stands there as a pickle: opcode, argument, position."""
        return pickletools.genops(cast(IO[bytes], self))

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        """All up to the next end of a line."""
        line = self._file.readline()
        self._left -= len(line)
        return line


class Machine:
    """Builds the object of one pickle.

    Args:
        file: a file that stands where the pickle begins.
        what: its name, for the message.
    """

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._rest = Rest(file)
        self._what = what
        self._shop = Workshop(self._rest.size, what)
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under the open marks
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """The object: numbers, strings, containers, numpy arrays and `Tensor`, nothing else.

        Raises:
            MaskError: if the pickle wants anything that no mask needs, or more than its size justifies.
            EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RecursionError, TypeError,
            ValueError, struct.error: if it is damaged.
        """
        opcodes = 0
        most = 1_000_000 + self._rest.size // 32
        for opcode, argument, _ in self._rest.opcodes():
            opcodes += 1
            if opcodes > most:
                raise MaskError(f"{self._what}: more than {most} pickle opcodes in {self._rest.size} bytes: refused")
            self._step(opcode.name, argument)
        value = self._stack.pop()
        self._shop.finish()
        self._check(value, opcodes)
        return value

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "GLOBAL":
            self._name(argument.replace(" ", ".", 1))
        elif name not in ("PROTO", "FRAME", "STOP"):
            wanted = argument if name == "INST" else f"the pickle opcode {name}"
            raise MaskError(f"{self._what} wants {ascii(wanted)[1:-1]}, which no mask needs: refused")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("an opcode without its values")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _drop_mark(self) -> None:
        self._since_mark()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _tuple(self) -> None:
        values = self._since_mark()
        self._stack.append(tuple(values))

    def _list(self) -> None:
        values = self._since_mark()
        self._stack.append(values)

    def _frozenset(self) -> None:
        values = self._since_mark()
        check_keys(values)
        self._stack.append(frozenset(values))

    def _dict(self) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set_items(values)

    def _append(self) -> None:
        self._extend(self._pop(1))

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"items for a {type(target).__name__}")
        target.extend(values)

    def _add(self) -> None:
        values = self._since_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise ValueError(f"items of a set for a {type(target).__name__}")
        check_keys(values)
        target.update(values)

    def _item(self) -> None:
        self._set_items(self._pop(2))

    def _items(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError(f"items of a dict for a {type(target).__name__}")
        check_keys(values[::2])
        target.update(zip(values[::2], values[1::2], strict=True))

    def _stack_name(self) -> None:
        module, name = self._pop(2)
        self._name(f"{module}.{name}")

    def _name(self, full: str) -> None:
        if full not in CALLS and full != ARRAY_TYPE:
            raise MaskError(f"{self._what} wants {ascii(full[:100])[1:-1]}, which no mask needs: refused")
        self._stack.append(Name(full))

    def _reduce(self) -> None:
        called, arguments = self._pop(2)
        if not isinstance(called, Name) or called.full not in CALLS or type(arguments) is not tuple:
            raise ValueError(f"a call of a {type(called).__name__}")
        self._stack.append(CALLS[called.full](self._shop, *arguments))

    def _build(self) -> None:
        (state,) = self._pop(1)
        self._shop.build(self._stack[-1], state)

    def _check(self, value: object, opcodes: int) -> None:
        """That the result is data through and through, no deeper than DEPTH, and does not multiply by sharing."""
        left = 1000 + 8 * opcodes
        pending = [(value, 0)]
        while pending:
            one, depth = pending.pop()
            if isinstance(one, (Name, Dtype, Storage)):
                raise MaskError(f"{self._what} holds a bare {type(one).__name__.lower()}, which no mask needs: refused")
            if isinstance(one, int) and one.bit_length() > _MOST_BITS:
                raise MaskError(f"{self._what} holds a whole number of {one.bit_length()} bits: refused")
            inner: list[Any] = []
            if isinstance(one, dict):
                inner = [*one.values()]
            elif isinstance(one, (list, tuple)):
                inner = [*one]
            elif isinstance(one, np.ndarray) and one.dtype.hasobject:
                inner = one.reshape(-1).tolist()
            left -= len(inner)
            if depth > DEPTH or left < 0:
                raise MaskError(f"{self._what}: containers nest deeper than {DEPTH} or repeat each other: refused")
            pending += [(item, depth + 1) for item in inner]


_STEPS: Mapping[str, Callable[[Machine], None]] = {
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_mark,
    "DUP": Machine._duplicate,
    "TUPLE": Machine._tuple,
    "LIST": Machine._list,
    "DICT": Machine._dict,
    "FROZENSET": Machine._frozenset,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "ADDITEMS": Machine._add,
    "SETITEM": Machine._item,
    "SETITEMS": Machine._items,
    "STACK_GLOBAL": Machine._stack_name,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
}
