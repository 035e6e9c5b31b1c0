"""Pickle files of masks, read as data: nothing that a file names is ever imported or called."""

from __future__ import annotations

import math
import struct
import tokenize
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from g4seg_trt.atomic import reason
from g4seg_trt.errors import MaskError, some
from g4seg_trt.masks.pickle_machine import Machine, Rest

# What damaged pickles and .npy headers raise; numpy parses headers as Python.
_BROKEN_PICKLE = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
)


def load_pickle(path: Path) -> object:
    """What a pickle file holds: numbers, strings, plain containers, numpy arrays and `tensors.Tensor`.

    torch.Size becomes a tuple; strings of Python 2 are read as Latin-1.

    Raises:
        MaskError: if the file is missing or damaged, or wants anything that no mask needs, named.
    """
    try:
        with path.open("rb") as file:
            return Machine(file, str(path)).run()
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_PICKLE as error:
        raise MaskError(f"{path}: not a pickle, or damaged ({reason(error)})") from error


def load_npy_dict(path: Path) -> dict[Any, Any]:
    """The dict that `numpy.save(path, {...})` wrote: one object, pickled behind the header of an array.

    Raises:
        MaskError: as `load_pickle`, and if the file is a .npy file of anything else.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _npy_header(file)
            if dtype != np.dtype(object) or math.prod(shape) != 1:
                raise MaskError(f"{path}: a .npy file of {dtype} {list(shape)}, expected a pickled dict")
            value = Machine(file, str(path)).run()
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_PICKLE as error:
        raise MaskError(f"{path}: not a .npy file with a pickled dict, or damaged ({reason(error)})") from error
    if isinstance(value, np.ndarray) and value.dtype.hasobject and value.size == 1:
        value = value.item()
    if not isinstance(value, dict):
        raise MaskError(f"{path}: a pickled {type(value).__name__}, expected a dict")
    return value


def peek_pickled_list(path: Path, opcodes: int = 1000) -> frozenset[str]:
    """Strings in the beginning of a pickled list, none if the file holds anything else; raises nothing.

    Args:
        path: the file.
        opcodes: how far to look.
    """
    try:
        with path.open("rb") as file:
            found = [(opcode.name, argument) for opcode, argument, _ in islice(Rest(file).opcodes(), opcodes)]
    except _BROKEN_PICKLE:
        return frozenset()
    names = [name for name, _ in found if name not in ("PROTO", "FRAME")]
    if names[:1] != ["EMPTY_LIST"] and names[:2] != ["MARK", "LIST"]:
        return frozenset()
    return frozenset(argument for _, argument in found if isinstance(argument, str))


def listed(entries: Iterable[object]) -> str:
    """The keys of a dict for a message, the first few of many."""
    return some((ascii(key)[:40] for key in entries), 12)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
