"""The picture that shows what a refinement did: before and after, the classes tinted and outlined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g4seg_trt.arrays import Array, Bools, Bytes, Labels
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import OutputError

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Formats that an overlay can be written in."""

_SHORTEST = 384
"""Panels whose longer side is below this many pixels are enlarged by a whole factor."""

_LARGEST = 4_000_000
"""Panels of more pixels than this are reduced by a whole factor."""

_TINT = 0.45
_GAP, _MARGIN, _FONT = 12, 8, 16
_NARROWEST = 240
_COLOURS = np.array(
    [
        (230, 25, 75),
        (0, 130, 200),
        (60, 180, 75),
        (245, 130, 48),
        (145, 30, 180),
        (70, 220, 220),
        (240, 50, 230),
        (210, 200, 40),
    ],
    dtype=np.uint8,
)
"""Colours of the classes in order, RGB; they repeat after the eighth."""


def draw_overlay(image: Bytes, before: Labels, after: Labels, names: Sequence[str] = ()) -> Bytes:
    """Draw before and after side by side, or one below the other for wide images.

    Args:
        image: uint8 RGB [H,W,3].
        before: label map of the coarse mask, unsigned [H,W]: 0 background, 1.. the classes.
        after: label map of the refined mask, unsigned [H,W].
        names: class names for the legend, in the order of the labels; none leaves the legend out.

    Returns:
        uint8 RGB [h,w,3]; small images are enlarged by a whole factor, pixel by pixel.
    """
    height, width = image.shape[:2]
    panels = [_panel(image, labels) for labels in (before, after)]
    panel_height, panel_width = panels[0].shape[:2]
    stacked = width > 2 * height
    font = ImageFont.load_default(_FONT)
    title = _FONT + _MARGIN
    steps = (0, title + panel_height + _GAP) if stacked else (panel_width + _GAP, 0)
    canvas_width = max(steps[0] + panel_width, _NARROWEST)
    legend = _legend_rows(names, font, canvas_width)
    canvas_height = steps[1] + title + panel_height + len(legend) * title
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (panel, word) in enumerate(zip(panels, ("before", "after"), strict=True)):
        x, y = index * steps[0], index * steps[1]
        pen.text((x + _MARGIN, y), word, fill="black", font=font)
        canvas.paste(Image.fromarray(panel), (x, y + title))
    for row, entries in enumerate(legend):
        y = canvas_height - (len(legend) - row) * title + _MARGIN // 2
        for x, label, text in entries:
            pen.rectangle((x, y + 3, x + _FONT - 4, y + _FONT - 1), fill=class_colour(label))
            pen.text((x + _FONT, y - 1), text, fill="black", font=font)
    return np.array(canvas, dtype=np.uint8)


def check_overlay_path(path: Path, kind: str = "an overlay") -> None:
    """Check that `path` names a format for pictures; raises OutputError, which calls the picture `kind`."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"cannot write {path}: {kind} is written as {', '.join(SUFFIXES)}")


def write_overlay(path: Path, picture: Bytes) -> None:
    """Write an overlay as PNG or JPEG, atomically.

    Args:
        path: where to; its suffix is the format.
        picture: uint8 RGB [h,w,3].

    Raises:
        OutputError: if the suffix is another or the file cannot be written.
    """
    check_overlay_path(path)
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format=SUFFIXES[path.suffix.lower()], quality=92)


def tint_classes(image: Bytes, labels: Labels) -> Bytes:
    """Tint and outline the classes on a picture, in its own size.

    Args:
        image: uint8 RGB [H,W,3].
        labels: unsigned [H,W]: 0 background, 1.. the classes.

    Returns:
        uint8 RGB [H,W,3].
    """
    picture = image.astype(np.float32)
    inside = labels > 0
    colours = _COLOURS[(labels.astype(np.int64) - 1) % len(_COLOURS)]
    picture[inside] = (1.0 - _TINT) * picture[inside] + _TINT * colours[inside]
    thickness = max(1, round(max(picture.shape[:2]) / 256))
    edge = _near_other(labels, thickness)
    picture[edge & ~inside] *= 0.3  # a dark line outside keeps the outline visible on any background
    picture[edge & inside] = colours[edge & inside]
    return np.rint(picture).astype(np.uint8)


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a label, 1 or more."""
    red, green, blue = (int(value) for value in _COLOURS[(label - 1) % len(_COLOURS)])
    return red, green, blue


def _panel(image: Bytes, labels: Labels) -> Bytes:
    height, width = image.shape[:2]
    enlarge = math.ceil(_SHORTEST / max(height, width))
    reduce = math.ceil(math.sqrt(height * width / _LARGEST))
    if reduce > 1:
        image = np.asarray(Image.fromarray(image).reduce(reduce))
        # Pillow rounds the reduced size up, as slicing does; the labels keep whole values.
        labels = labels[::reduce, ::reduce]
    return tint_classes(_enlarged(image, enlarge), _enlarged(labels, enlarge))


def _enlarged(values: Array, factor: int) -> Array:
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def _near_other(labels: Labels, thickness: int) -> Bools:
    """bool [H,W]: pixels with another label within `thickness` pixels above, below, left or right."""
    near = np.zeros(labels.shape, dtype=np.bool_)
    for step in range(1, thickness + 1):
        for axis_labels, axis_near in ((labels, near), (labels.T, near.T)):
            differs = axis_labels[step:] != axis_labels[:-step]
            axis_near[step:] |= differs
            axis_near[: len(axis_near) - step] |= differs
    return near


def _legend_rows(
    names: Sequence[str], font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> list[list[tuple[int, int, str]]]:
    """Rows of (x, label, text), broken so that they fit into `width`; a name that is too long is cut."""
    rows: list[list[tuple[int, int, str]]] = []
    x = width
    for label, name in enumerate(names, start=1):
        text = drawable(name, font, width - 2 * _MARGIN - _FONT)
        needed = _FONT + math.ceil(font.getlength(text)) + 2 * _MARGIN
        if x + needed > width:
            rows.append([])
            x = _MARGIN
        rows[-1].append((x, label, text))
        x += needed
    return rows


def drawable(name: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """A name in one line that the font can draw, cut to `width` pixels with "..."."""
    text = " ".join(name.split())
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's bitmap font can draw
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
