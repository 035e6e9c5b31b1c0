"""Coarse masks in, refined masks out: one module with a reader and a writer for each file format.

`detect` tells which format a file has, `formats` lists them; a further format is one more module and one more line
there. Below are the formats of g4seg-refine's own outputs and of masks that are given one by one, found by suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from g4seg_trt.arrays import Floats
from g4seg_trt.errors import MaskError, OutputError
from g4seg_trt.masks.array import UNNAMED, as_probability, npz_names, read_npy, read_npz, write_npz
from g4seg_trt.masks.png import IGNORE, label_colours, read_index_png, read_png, write_label_png, write_png

__all__ = [
    "IGNORE",
    "NAMED_READERS",
    "PROBABILITY_SUFFIXES",
    "SINGLE_READERS",
    "as_probability",
    "check_probability_path",
    "label_colours",
    "npz_names",
    "pick",
    "probability_suffix",
    "read_index_png",
    "read_mask",
    "read_masks",
    "write_label_png",
    "write_probabilities",
]

PROBABILITY_SUFFIXES = (".png", ".npz")
"""Of the files that `write_probabilities` writes."""

SINGLE_READERS: Mapping[str, Callable[[Path], Floats]] = {".png": read_png, ".npy": read_npy}
"""Formats that hold one class without its name."""

NAMED_READERS: Mapping[str, Callable[[Path], dict[str, Floats]]] = {".npz": read_npz}
"""Formats that hold several classes with their names."""


def read_mask(path: Path, class_name: str) -> Floats:
    """Read the coarse mask of one class.

    Args:
        path: a file of any format. In a format with names the array called `class_name` is taken, or
            the only one if numpy named it for want of a name.
        class_name: the class whose mask is wanted.

    Returns:
        float32 [H,W] in [0,1].

    Raises:
        MaskError: if the file cannot be read as a probability or holds no such class.
    """
    single = SINGLE_READERS.get(path.suffix.lower())
    if single is not None:
        return single(path)
    return pick(read_masks(path), class_name, path)


def pick(masks: Mapping[str, Floats], class_name: str, path: Path) -> Floats:
    """The mask of `class_name` among those read from `path`, or the only one if unnamed; else MaskError."""
    if class_name in masks:
        return masks[class_name]
    if list(masks) == [UNNAMED]:
        return masks[UNNAMED]
    raise MaskError(f"{path}: no class {class_name!r}, it holds {', '.join(masks)}")


def read_masks(path: Path) -> dict[str, Floats]:
    """Read every class of a file in a format with names.

    Returns:
        class name -> float32 [H,W] in [0,1].

    Raises:
        MaskError: if the file's format is unknown or has no names, or it cannot be read as probabilities.
    """
    named = NAMED_READERS.get(path.suffix.lower())
    if named is None:
        known = ", ".join([*SINGLE_READERS, *NAMED_READERS])
        raise MaskError(f"{path}: no mask format has the suffix {path.suffix!r}, allowed: {known}")
    return named(path)


def probability_suffix(classes: int) -> str:
    """The suffix of the file that `write_probabilities` writes in a folder run for this many classes."""
    return ".png" if classes == 1 else ".npz"


def write_probabilities(path: Path, probabilities: Mapping[str, Floats]) -> None:
    """Write refined probabilities, atomically: .png (16-bit, one class) or .npz (key = class name).

    Raises:
        OutputError: if the suffix is another, a .png is to hold several classes, or writing fails.
    """
    check_probability_path(path, len(probabilities))
    if path.suffix.lower() == ".png":
        write_png(path, next(iter(probabilities.values())))
    else:
        write_npz(path, probabilities)


def check_probability_path(path: Path, classes: int) -> None:
    """Check that `path` can name the probabilities of this many classes; raises OutputError."""
    suffix = path.suffix.lower()
    if suffix not in PROBABILITY_SUFFIXES:
        raise OutputError(f"cannot write {path}: probabilities are written as .png (one class) or .npz")
    if suffix == ".png" and classes != 1:
        raise OutputError(f"cannot write {path}: a .png holds one class, not {classes}; use .npz")
