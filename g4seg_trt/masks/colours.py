"""Label pictures in PASCAL VOC's colours: which class id a colour stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Array, Bytes
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.png import label_colours

COLOURS = label_colours(256)
"""uint8 [256,3], each colour once; that of 255, which is ignored, too."""


def ids_of_colours(path: Path, picture: Image.Image) -> Bytes:
    """The class id of every pixel.

    Args:
        path: the file, for the message.
        picture: of the mode RGB or RGBA.

    Returns:
        uint8 [H,W].

    Raises:
        MaskError: for a colour that VOC does not have, or a transparent pixel.
    """
    pixels = np.asarray(picture.convert("RGBA"))
    if (pixels[..., 3] != 255).any():
        raise MaskError(f"{path}: has transparent pixels, expected a label picture")
    codes, known = _codes(pixels), _codes(COLOURS)
    order = np.argsort(known)
    places = np.minimum(np.searchsorted(known, codes, sorter=order), len(order) - 1)
    ids = order[places].astype(np.uint8)
    foreign = np.argwhere(known[ids] != codes)
    if len(foreign):
        y, x = foreign[0]
        raise MaskError(
            f"{path}: the colour {tuple(pixels[y, x, :3].tolist())} at x {x}, y {y} is none of PASCAL VOC's label "
            "pictures; save class ids as the values of a palette or grey PNG"
        )
    return ids


def _codes(colours: Array) -> Array:
    """One number for each colour [..,3 or more]."""
    return np.asarray(colours[..., :3].astype(np.int64) @ np.array([65536, 256, 1]))
