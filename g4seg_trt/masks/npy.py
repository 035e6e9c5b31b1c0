"""Format "npy": one class in a .npy file, an array [H,W]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from g4seg_trt.errors import InputError
from g4seg_trt.masks.array import as_probability, as_stored, check_count, open_npy, write_npy
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import one_class

NAME = "npy"


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the mask of the one class that `naming` names.

    Raises:
        MaskError: if the file is missing, damaged or pickled, or holds no probability (`array.as_probability`).
        ClassNameError: without exactly one name.
    """
    array = open_npy(path)
    if array.ndim == 2:
        check_count(1, (array.shape[0], array.shape[1]), str(path), naming.size)
    return one_class(as_probability(array, str(path)), naming, str(path), {NAME: array.dtype})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the one map in the dtype that it came in; bool and integers hold 1 from 0.5.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_npy(path, as_stored(masks.probabilities[0], masks.origin.get(NAME, np.float32)))


def recognise(path: Path) -> str | None:
    """What tells that this is an array of one class, or None."""
    try:
        array = open_npy(path)
    except InputError:
        return None
    if array.ndim != 2 or array.dtype.kind not in "fbiu":
        return None
    return f"an array [{array.shape[0]}, {array.shape[1]}] of {array.dtype}"
