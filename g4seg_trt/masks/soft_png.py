"""Format "png": one class in a grey PNG, 0/255 or soft, of 1, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

from g4seg_trt.errors import InputError
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import one_class
from g4seg_trt.masks.png import GreyLayout, read_grey, write_grey
from g4seg_trt.masks.png_kind import png_kind

NAME = "png"


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the mask of the one class that `naming` names.

    Raises:
        MaskError: if the file cannot be read as a probability (`png.read_png`).
        ClassNameError: without exactly one name.
    """
    probability, layout = read_grey(path)
    return one_class(probability, naming, str(path), {NAME: layout})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the one map in the mode and depth that it came in: 0 and 255 as 0 and 255 (255 from 0.5), soft as soft.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_grey(path, masks.probabilities[0], masks.origin.get(NAME, GreyLayout()))


def recognise(path: Path) -> str | None:
    """What tells that this is the grey PNG of one class, or None."""
    try:
        kind = png_kind(path, Naming())
    except InputError:
        return None
    return kind.evidence if kind.name == NAME else None
