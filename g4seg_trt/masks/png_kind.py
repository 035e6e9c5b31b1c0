"""Whether a PNG is the mask of one class or a label picture of class ids.

The rule, by what the file stores:

- a palette with colours, or colours that are all those of PASCAL VOC's label pictures: class ids;
- only 0 and the largest value: one class, unless there is a table of several classes and no class name, which a mask
  of one class would need: then class ids;
- up to 40 different values that are all ids of the table's classes: class ids;
- more than 40 grey levels that are not all ids, or fewer with some that are no usual ids (above 182, the largest of
  COCO-Stuff; in 16 bits above 4095): one class, soft;
- anything else may be either, and is an error that asks for the format.

Beside ids a label picture may have 0, 255 and, in 16 bits, 65535.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Array
from g4seg_trt.errors import MaskError, some
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.colours import ids_of_colours
from g4seg_trt.masks.png import FORMAT, grey_values, index_values
from g4seg_trt.picture import open_picture

ONE_CLASS = "png"
CLASS_IDS = "index-png"

_MOST_CLASSES = 40
_USUAL_IDS = {255: 182, 65535: 4095}
"""Largest value of a grey picture -> largest class id that data sets have."""


@dataclass(frozen=True)
class PngKind:
    """What a PNG is.

    Attributes:
        name: the format, ONE_CLASS or CLASS_IDS.
        evidence: what tells it, in words.
        certain: whether the file cannot be the other.
    """

    name: str
    evidence: str
    certain: bool


def png_kind(path: Path, naming: Naming) -> PngKind:
    """Tell which of the two a PNG is.

    Args:
        path: the file.
        naming: its table says which values may be class ids.

    Raises:
        MaskError: if the file cannot be opened, is neither, or may be either.
    """
    picture = open_picture(path, MaskError, FORMAT)
    if picture.mode == "P" and _has_coloured_palette(picture):
        return PngKind(CLASS_IDS, "a palette of colours", certain=True)
    if picture.mode in ("RGB", "RGBA"):
        pixels = np.asarray(picture)[..., :3]
        if (pixels != pixels[..., :1]).any():
            ids_of_colours(path, picture)
            return PngKind(CLASS_IDS, "the colours of PASCAL VOC", certain=True)
        if _are_voc_greys(pixels, naming):
            return PngKind(CLASS_IDS, "the colours of PASCAL VOC", certain=False)
    grey = grey_values(path, picture)
    stored = grey if picture.mode in ("LA", "RGB", "RGBA") else index_values(path, picture)
    return _grey_kind(path, grey, stored, naming)


def _grey_kind(path: Path, grey: Array, stored: Array, naming: Naming) -> PngKind:
    """Tell by the grey levels and the values stored for them, which differ with a palette or fewer than 8 bits."""
    top = 255 if grey.dtype == np.uint8 else 65535
    levels, values = _present(grey), _present(stored)
    shades = [level for level in levels if level not in (0, top)]
    ids = [value for value in values if value not in (0, 255, 65535)]
    table = naming.table
    if not shades:
        if table is not None and len(table.classes) > 1 and naming.names is None:
            evidence = f"values {some(map(str, values))} and no class name"
            return PngKind(CLASS_IDS, evidence, certain=False)
        return PngKind(ONE_CLASS, f"grey levels {some(map(str, levels))}", certain=False)
    are_ids = table is not None and {entry.id for entry in table.classes}.issuperset(ids)
    many = len(levels) > _MOST_CLASSES
    if table is not None and are_ids and not many:
        return PngKind(CLASS_IDS, f"values {some(map(str, values))}: class ids of {table.dataset}", certain=False)
    if not are_ids and (many or shades[-1] > _USUAL_IDS[top]):
        return PngKind(ONE_CLASS, f"{len(levels)} grey levels from {levels[0]} to {levels[-1]}", certain=many)
    hint = "" if table is not None else " (class ids need --dataset or --class-table)"
    raise MaskError(
        f"{path}: a grey PNG of the values {some(map(str, values))} may be a soft mask of one class or hold class "
        f"ids; say which with --format {ONE_CLASS} or --format {CLASS_IDS}{hint}"
    )


def _has_coloured_palette(picture: Image.Image) -> bool:
    palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((palette != palette[:, :1]).any())


def _are_voc_greys(pixels: Array, naming: Naming) -> bool:
    """Whether colours that are all grey are those of classes of the table (VOC's bus is a grey of 128)."""
    codes = {0: 0, 128: 7, 64: 56, 192: 63}
    levels = [level for level in _present(pixels[..., 0]) if level != 0]
    ids = set() if naming.table is None else {entry.id for entry in naming.table.classes}
    return bool(levels) and all(codes.get(level) in ids for level in levels)


def _present(values: Array) -> list[int]:
    return np.flatnonzero(np.bincount(values.reshape(-1))).tolist()
