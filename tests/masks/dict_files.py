"""What the tests of pickled formats share: a class table, files as other programs write them, and hostile ones."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from g4seg_trt.class_table import ClassEntry, ClassTable

Array = npt.NDArray[Any]

TABLE = ClassTable("twenty", tuple(ClassEntry(n, f"class{n}", f"class {n}") for n in range(1, 21)), background=True)


def save_old(path: Path, value: object, protocol: int = 2) -> None:
    """numpy.save of an older numpy: another protocol, and the functions' names of numpy 1."""
    array = np.empty((), dtype=object)
    array[()] = value
    pickled = pickle.dumps(array, protocol)
    old = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"cnumpy.core.multiarray\n" in old
    save_raw(path, old)


def save(path: Path, value: object) -> None:
    """numpy.save of an object."""
    array = np.empty((), dtype=object)
    array[()] = value
    np.save(path, array)


def save_raw(path: Path, pickled: bytes) -> None:
    """A .npy file of one object with this pickle in it."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(file.getvalue() + pickled)


def load(path: Path) -> dict[Any, Any]:
    """As all scripts of the formats read their files."""
    found: dict[Any, Any] = np.load(path, allow_pickle=True).item()
    return found


def maps(count: int, height: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Maps of some classes, [count,height,width] in [0,1]."""
    return np.random.default_rng(seed).random((count, height, width), np.float32)


class Call:
    """Pickles as a call of whatever it is given."""

    def __init__(self, called: object, *arguments: object) -> None:
        self._reduced = (called, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def makes_folder(folder: Path) -> Call:
    """An object whose unpickling makes a folder."""
    return Call(eval, f"__import__('os').mkdir({str(folder)!r})")
