"""PNG masks: 0/255 and soft 8- or 16-bit grey values in, 16-bit probabilities and label pictures out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Array, Floats, Labels
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import MaskError
from g4seg_trt.picture import open_picture

IGNORE = 255
"""The index of pixels without a label in an index picture (PASCAL VOC)."""


def read_png(path: Path) -> Floats:
    """Read a grey PNG as a probability.

    Grey values may be stored as 1-, 8- or 16-bit grey, or as a palette or colours that are all grey.

    Returns:
        float32 [H,W] in [0,1]: the value over 255, or over 65535 in a 16-bit file.

    Raises:
        MaskError: if the file is missing, damaged or too large, is coloured or transparent, or holds only the
            values 0 and 1.
    """
    picture = open_picture(path, MaskError)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.float32)
    pixels = _grey(path, picture)
    if pixels.dtype != np.uint8:
        return _sixteen_bit(path, pixels).astype(np.float32) / np.float32(65535)
    # As probabilities these would be 0 and 0.004: certainly a label map, and a mask lost without a word.
    if pixels.max() == 1:
        raise MaskError(f"{path}: holds only the values 0 and 1, a mask PNG has 0 and 255; multiply by 255")
    return pixels.astype(np.float32) / np.float32(255)


def read_index_png(path: Path) -> Array:
    """Read an index picture: a palette or grey PNG whose values are label indices.

    Returns:
        uint8 or uint16 [H,W]; 255 means "no label" (`IGNORE`).

    Raises:
        MaskError: if the file is missing, damaged or too large, or is coloured.
    """
    picture = open_picture(path, MaskError)
    pixels = np.asarray(picture)
    if pixels.ndim != 2 or pixels.dtype.kind == "f":
        raise MaskError(f"{path}: a picture of mode {picture.mode}, an index picture is a palette or grey one")
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    return pixels if pixels.dtype == np.uint8 else _sixteen_bit(path, pixels)


def write_png(path: Path, probability: Floats) -> None:
    """Write a probability as a 16-bit grey PNG (0 to 65535), atomically.

    Args:
        path: where to.
        probability: float [H,W] in [0,1].

    Raises:
        OutputError: if the file cannot be written.
    """
    pixels = np.rint(np.clip(probability, 0.0, 1.0).astype(np.float64) * 65535.0).astype(np.uint16)
    _save(path, Image.fromarray(pixels))


def write_label_png(path: Path, label: Labels, classes: int) -> None:
    """Write a label map, atomically: 0/255 grey for one class, an index picture for several.

    Args:
        path: where to.
        label: unsigned [H,W], 0 background, 1 to `classes` in their order.
        classes: how many there are. Up to 255 make a palette picture (its colours are only for looking at),
            more a 16-bit grey one.

    Raises:
        OutputError: if the file cannot be written.
    """
    if classes == 1:
        _save(path, Image.fromarray((label > 0).astype(np.uint8) * np.uint8(255)))
    elif classes <= 255:
        picture = Image.fromarray(label.astype(np.uint8))
        picture.putpalette(label_colours(256).tobytes())
        _save(path, picture)
    else:
        _save(path, Image.fromarray(label.astype(np.uint16)))


def label_colours(count: int) -> Array:
    """The colours of PASCAL VOC's label pictures, RGB, uint8 [count,3]; colour 0 is black.

    Bit b of the index goes to channel b mod 3, the lowest bits to the highest ones of the colour.
    """
    index = np.arange(count, dtype=np.uint32)
    colours = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(24):
        shift = 7 - bit // 3
        colours[:, bit % 3] |= (((index >> bit) & 1) << shift).astype(np.uint8)
    return colours


def _grey(path: Path, picture: Image.Image) -> Array:
    if picture.mode == "L" or picture.mode.startswith("I"):
        return np.asarray(picture)
    if picture.mode == "P":
        colours = np.asarray(picture.convert("RGB"))
    elif picture.mode in ("LA", "RGB", "RGBA"):
        colours = np.asarray(picture.convert("RGBA"))
        if (colours[..., 3] != 255).any():
            raise MaskError(f"{path}: has transparent pixels, expected a grey PNG (0/255 or soft)")
        colours = colours[..., :3]
    else:
        raise MaskError(f"{path}: a picture of mode {picture.mode}, expected a grey PNG (0/255 or soft)")
    if (colours != colours[..., :1]).any():
        raise MaskError(f"{path}: has colours, expected the grey PNG of one class (0/255 or soft)")
    return np.ascontiguousarray(colours[..., 0])


def _sixteen_bit(path: Path, pixels: Array) -> Array:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise MaskError(f"{path}: values from {low} to {high}, expected 8 or 16 bits")
    return pixels.astype(np.uint16)


def _save(path: Path, picture: Image.Image) -> None:
    with atomic_file(path) as file:
        picture.save(file, format="PNG")
