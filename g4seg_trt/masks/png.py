"""PNG masks: 0/255 and soft 8- or 16-bit grey values in, 16-bit probabilities and label pictures out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from g4seg_trt.arrays import Array, Floats, Labels
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import MaskError
from g4seg_trt.picture import open_picture

IGNORE = 255
"""The value of pixels without a label in a label picture of 8 bits (PASCAL VOC)."""

IGNORE_16_BIT = 65535
"""The same in 16 bits, where 255 may be a class: see g4seg_trt.masks.labels."""

FORMAT = ("PNG",)
"""What Pillow may open a mask as: by its content alone, a file of any name could be of any format it knows."""


@dataclass(frozen=True)
class GreyLayout:
    """How a grey PNG stores a probability.

    Attributes:
        mode: Pillow's name of its mode; one that begins with "I" has 16 bits.
        hard: whether it holds 0 and the largest value only.
        palette: RGB values of a palette picture, else None.
    """

    mode: str = "I;16"
    hard: bool = False
    palette: bytes | None = None


def read_png(path: Path) -> Floats:
    """Read a grey PNG as a probability.

    Grey values may be stored as 1-, 8- or 16-bit grey, or as a palette or colours that are all grey.

    Returns:
        float32 [H,W] in [0,1]: the value over 255, or over 65535 in a 16-bit file.

    Raises:
        MaskError: if the file is missing, damaged or too large, is coloured or transparent, or holds only the
            values 0 and 1.
    """
    return read_grey(path)[0]


def read_grey(path: Path) -> tuple[Floats, GreyLayout]:
    """As `read_png`, with the layout that `write_grey` gives back."""
    picture = open_picture(path, MaskError, FORMAT)
    pixels = grey_values(path, picture)
    top = 255 if pixels.dtype == np.uint8 else 65535
    # As probabilities these would be 0 and 0.004: certainly a label map, and a mask lost without a word.
    if top == 255 and pixels.max() == 1:
        raise MaskError(f"{path}: holds only the values 0 and 1, a mask PNG has 0 and 255; multiply by 255")
    hard = bool(((pixels == 0) | (pixels == top)).all())
    palette = bytes(picture.getpalette("RGB") or []) if picture.mode == "P" else None
    return pixels.astype(np.float32) / np.float32(top), GreyLayout(picture.mode, hard, palette)


def read_index_png(path: Path) -> Labels:
    """Read an index picture: a palette or grey PNG whose values are label indices.

    Returns:
        uint8 or uint16 [H,W]; what means "no label" is said in g4seg_trt.masks.labels.

    Raises:
        MaskError: if the file is missing, damaged or too large, or is coloured.
    """
    picture = open_picture(path, MaskError, FORMAT)
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise MaskError(f"{path}: a picture of mode {picture.mode}, an index picture is a palette or grey one")
    return index_values(path, picture)


def index_values(path: Path, picture: Image.Image) -> Labels:
    """The values that a palette or grey PNG stores, uint8 or uint16 [H,W]; raises MaskError beyond 16 bits."""
    pixels = np.asarray(picture)
    if picture.mode == "1":
        return pixels.astype(np.uint8)
    if picture.mode == "L":
        # Pillow spreads 2 and 4 bits over 0 to 255, which is right for grey levels and wrong for indices.
        step = 255 // (2 ** grey_bits(path) - 1)
        return pixels if step == 1 else pixels // np.uint8(step)
    return pixels if picture.mode == "P" else _sixteen_bit(path, pixels)


def grey_bits(path: Path) -> int:
    """How many bits a value of a grey PNG has, up to 8; 8 for other files."""
    with path.open("rb") as file:
        header = file.read(26)
    is_grey = header[:4] == b"\x89PNG" and header[12:16] == b"IHDR" and header[25:26] == b"\0"
    return min(header[24], 8) if is_grey else 8


def write_png(path: Path, probability: Floats) -> None:
    """Write a probability as a 16-bit grey PNG (0 to 65535), atomically.

    Args:
        path: where to.
        probability: float [H,W] in [0,1].

    Raises:
        OutputError: if the file cannot be written.
    """
    write_grey(path, probability, GreyLayout())


def write_grey(path: Path, probability: Floats, layout: GreyLayout) -> None:
    """Write a probability as a grey PNG of a given layout, atomically.

    Args:
        path: where to.
        probability: float [H,W] in [0,1].
        layout: its mode is kept, and its palette if that has all grey levels of the probability; a hard one is
            written as 0 below 0.5 and the largest value from there on.

    Raises:
        OutputError: if the file cannot be written.
    """
    if layout.hard:
        probability = (probability >= np.float32(0.5)).astype(np.float32)
    if layout.mode.startswith("I"):
        save_png(path, Image.fromarray(_quantised(probability, 65535).astype(np.uint16)))
        return
    levels = _quantised(probability, 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    if layout.mode == "P":
        picture = _palette_picture(levels, layout.palette)
    elif layout.mode == "1":
        picture = picture.convert("1", dither=Image.Dither.NONE)
    elif layout.mode != "L":
        picture = picture.convert(layout.mode)
    save_png(path, picture)


def write_label_png(path: Path, label: Labels, classes: int) -> None:
    """Write a label map, atomically: 0/255 grey for one class, an index picture for several.

    Args:
        path: where to.
        label: unsigned [H,W], 0 background, 1 to `classes` in their order.
        classes: how many there are, or the largest id. Up to 254 make a palette picture (its colours are only for
            looking at), whose pixels without a label are IGNORE; more a grey one of 16 bits, with IGNORE_16_BIT.

    Raises:
        OutputError: if the file cannot be written.
    """
    if classes == 1:
        save_png(path, Image.fromarray((label > 0).astype(np.uint8) * np.uint8(255)))
    elif classes < IGNORE:
        picture = Image.fromarray(label.astype(np.uint8))
        picture.putpalette(label_colours(256).tobytes())
        save_png(path, picture)
    else:
        save_png(path, Image.fromarray(label.astype(np.uint16)))


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


def grey_values(path: Path, picture: Image.Image) -> Array:
    """The grey levels of a picture of any mode that is grey all over, uint8 or uint16 [H,W]; else MaskError."""
    if picture.mode.startswith("I"):
        return _sixteen_bit(path, np.asarray(picture))
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if picture.mode == "P":
        opaque = picture.copy()
        opaque.info.pop("transparency", None)  # of colours, which says nothing about a mask
        colours = np.asarray(opaque.convert("RGB"))
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


def _palette_picture(levels: Array, palette: bytes | None) -> Image.Image:
    """Grey levels uint8 [H,W] as indices into a palette, or into one of all levels if it lacks one of these."""
    every = np.repeat(np.arange(256, dtype=np.uint8), 3)
    colours = (every if palette is None else np.frombuffer(palette, np.uint8)).reshape(-1, 3)
    places = np.full(256, -1)
    for place in range(len(colours) - 1, -1, -1):  # the first of several alike
        if (colours[place] == colours[place, 0]).all():
            places[colours[place, 0]] = place
    indices: Array = places[levels]
    if (indices < 0).any():
        return _palette_picture(levels, None)
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette(colours.tobytes())
    return picture


def _sixteen_bit(path: Path, pixels: Array) -> npt.NDArray[np.uint16]:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise MaskError(f"{path}: values from {low} to {high}, expected 8 or 16 bits")
    return pixels.astype(np.uint16)


def _quantised(probability: Floats, top: int) -> Array:
    return np.rint(np.clip(probability, 0.0, 1.0).astype(np.float64) * top)


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as a PNG, atomically; raises OutputError."""
    with atomic_file(path) as file:
        picture.save(file, format="PNG")
