"""Probability arrays: one class in a .npy file, named classes in a .npz file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.errors import MaskError
from g4seg_trt.inputs import check_masks

_BROKEN_FILE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for damaged, encrypted and pickled files; numpy parses headers as Python."""


def read_npy(path: Path) -> Floats:
    """Read a .npy file.

    Returns:
        float32 [H,W] in [0,1].

    Raises:
        MaskError: if the file is missing, damaged or pickled, or holds no probability (`as_probability`).
    """
    try:
        # A mapped file cannot make a damaged header allocate more than the file holds.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_FILE as error:
        raise MaskError(f"{path}: not a .npy array, or damaged ({reason(error)})") from error
    if not isinstance(array, np.ndarray):
        raise MaskError(f"{path}: an archive of arrays, name it .npz")
    return as_probability(array, str(path))


def npz_names(path: Path) -> tuple[str, ...]:
    """The class names of a .npz file, in the file's order; raises MaskError if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_FILE as error:
        raise MaskError(f"{path}: not a .npz archive, or damaged ({reason(error)})") from error


def read_npz(path: Path) -> dict[str, Floats]:
    """Read a .npz file: key = class name, value = its probability.

    Returns:
        class name -> float32 [H,W] in [0,1], in the file's order.

    Raises:
        MaskError: if the file is missing, damaged, pickled or empty, or an array is not a probability
            (`as_probability`).
    """
    arrays: dict[str, Floats] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                key = name.removesuffix(".npy")
                with archive.open(name) as member:
                    array = npy.read_array(member, allow_pickle=False)
                arrays[key] = as_probability(array, f"{path}, class {key!r}")
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_FILE as error:
        raise MaskError(f"{path}: not a .npz archive, or damaged ({reason(error)})") from error
    if not arrays:
        raise MaskError(f"{path}: holds no array, expected one [height, width] probability for each class name")
    return arrays


def write_npz(path: Path, probabilities: Mapping[str, Floats]) -> None:
    """Write named probabilities as a compressed .npz file, atomically. The same input gives the same bytes.

    Args:
        path: where to.
        probabilities: class name -> float [H,W] in [0,1]. Any name will do, also "file".

    Raises:
        OutputError: if the file cannot be written.
    """
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, probability in probabilities.items():
            # A ZipInfo of one's own carries no clock time.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.ascontiguousarray(probability, dtype=np.float32), allow_pickle=False)


def as_probability(array: Array, what: str) -> Floats:
    """Check that an array is a probability and return it as float32.

    Args:
        array: floating point, bool, or integers that are all 0 or 1; [H,W] with values in [0,1].
        what: names the array in the message.

    Returns:
        float32 [H,W] in [0,1], a copy.

    Raises:
        MaskError: naming the shape, dtype or value that is wrong.
    """
    if array.size == 0:
        raise MaskError(f"mask of {what!r} has shape {list(array.shape)}: it holds no pixel")
    height, width = array.shape if array.ndim == 2 else (0, 0)
    return check_masks({what: array}, (height, width))[what]
