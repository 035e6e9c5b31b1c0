"""The picture that shows how a refinement got there: from each uncertain position to the one it took over from."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g4seg_trt.arrays import Array, Bools, Bytes, Floats, Ints
from g4seg_trt.config import RefineConfig
from g4seg_trt.overlay import drawable
from g4seg_trt.refinement import Refinement
from g4seg_trt.soften import soften, unscored
from g4seg_trt.update import in_filter

NEEDED = ("generated", "indices", "similarities")
"""What a refinement has to keep for this picture."""

MOST_LINES = 48
"""Lines drawn for one class; more hide what they cross."""

_LONGER_SIDE = (480, 768)
"""Bounds of a panel's longer side; between them it is that of the model's square."""

_TALLEST = 16_000
"""Height that the panels of all classes may take together; for more they shrink, to _SHORTEST at least."""

_SHORTEST = 160

_GAP, _MARGIN, _FONT = 12, 8, 16
_NARROWEST, _NARROWEST_PANEL = 520, 96
_SMOOTH = 3  # lines are drawn so many times larger, then averaged
_GOLDEN = 0.618034  # steps of this share of the colour circle keep neighbours apart, however many there are


@dataclass(frozen=True)
class ClassMatches:
    """The matches of one class.

    Attributes:
        name: of the class.
        generated: the generated image, uint8 RGB [s,s,3].
        indices: for every position of the generated image the most similar one of the original, int64 [n*n],
            row-major on a grid of n x n; -1 where none was searched.
        similarities: their cosines, float32 [n*n].
        uncertain: the pixels of the user's image that are updated, bool [H,W].
    """

    name: str
    generated: Bytes
    indices: Ints
    similarities: Floats
    uncertain: Bools


def class_matches(masks: Mapping[str, Floats], refinement: Refinement, config: RefineConfig) -> list[ClassMatches]:
    """Collect what `draw_matches` shows.

    Args:
        masks: class name -> the mask as given, float32 [H,W] in [0,1].
        refinement: their refinement, with NEEDED kept.
        config: the settings it was made with.

    Returns:
        One entry for each class, in the order of the masks.
    """
    return [
        ClassMatches(
            name,
            refinement.generated[name],
            refinement.indices[name],
            refinement.similarities[name],
            _uncertain(given, refinement.softened[name], config),
        )
        for name, given in masks.items()
    ]


def draw_matches(image: Bytes, classes: Sequence[ClassMatches]) -> Bytes:
    """Draw original | generated for every class, one below the other, with lines between matched positions.

    Each line ends on the right at an uncertain position of the generated image and on the left at the most similar
    position of the original. At most MOST_LINES, spread evenly over what is uncertain; the same for the same input.

    Args:
        image: the user's image, uint8 RGB [H,W,3].
        classes: at least one.

    Returns:
        uint8 RGB [h,w,3]; both images as sharp as the model sees them, in the user's aspect unless that is extreme.
    """
    width, height = _panel_size(image, classes)
    font = ImageFont.load_default(_FONT)
    line = _FONT + _MARGIN
    canvas_width = max(2 * width + _GAP, _NARROWEST)
    step = height + line + _MARGIN
    canvas = Image.new("RGB", (canvas_width, line + len(classes) * step), "white")
    pen = ImageDraw.Draw(canvas)
    for x, word in ((0, "original"), (width + _GAP, "generated")):
        pen.text((x + _MARGIN, 0), drawable(word, font, width), fill="black", font=font)
    for row, one in enumerate(classes):
        y = line + row * step
        positions = _uncertain_positions(one)
        shown = _spread(positions, math.isqrt(one.indices.size), (width, height))
        canvas.paste(_panels(image, one, shown, (width, height)), (0, y))
        caption = _caption(one, positions, len(shown))
        name = drawable(one.name, font, canvas_width - 2 * _MARGIN - math.ceil(font.getlength(caption)))
        pen.text((_MARGIN, y + height + _MARGIN // 2), name + caption, fill="black", font=font)
    return np.array(canvas, dtype=np.uint8)


def _uncertain(given: Floats, softened: float, config: RefineConfig) -> Bools:
    """bool [H,W]: the pixels in the certainty filter, which sees a mask as it was softened, without its score then."""
    shape, _ = unscored(given, config.soften)
    probability = soften(shape, softened) if softened else shape
    passed: Bools = in_filter(probability, config.certainty_filter)
    return passed


def _panel_size(image: Bytes, classes: Sequence[ClassMatches]) -> tuple[int, int]:
    """(width, height) of one panel."""
    height, width = image.shape[:2]
    low, high = _LONGER_SIDE
    longer = min(max(classes[0].generated.shape[0], low), high, max(_TALLEST // len(classes), _SHORTEST))
    scale = longer / max(width, height)
    return max(_NARROWEST_PANEL, round(width * scale)), max(_NARROWEST_PANEL, round(height * scale))


def _uncertain_positions(one: ClassMatches) -> Ints:
    """The positions, int64 [m] in ascending order, in whose cell a pixel is uncertain."""
    side = math.isqrt(one.indices.size)
    cells: Array = one.uncertain
    for axis, size in enumerate(one.uncertain.shape):
        cells = np.logical_or.reduceat(cells, np.arange(side) * size // side, axis=axis)
    return np.flatnonzero(cells.reshape(-1) & (one.indices >= 0))


def _spread(positions: Ints, side: int, size: tuple[int, int]) -> Ints:
    """At most MOST_LINES of the positions, ascending: each next one is the farthest from those chosen before."""
    if len(positions) <= MOST_LINES:
        return positions
    # Whole numbers: equal distances stay equal, and the first one wins on every machine.
    points = np.stack([positions % side * size[0], positions // side * size[1]])
    chosen = [0]
    nearest = np.full(len(positions), np.iinfo(np.int64).max)
    while len(chosen) < MOST_LINES:
        away = points - points[:, chosen[-1], None]
        nearest = np.minimum(nearest, (away * away).sum(axis=0))
        chosen.append(int(nearest.argmax()))
    shown: Ints = positions[sorted(chosen)]
    return shown


def _panels(image: Bytes, one: ClassMatches, shown: Ints, size: tuple[int, int]) -> Image.Image:
    """Both images side by side with the lines of the positions `shown`."""
    (width, height), square = size, one.generated.shape[0]
    row = Image.new("RGB", (2 * width + _GAP, height), "white")
    seen = Image.fromarray(image).resize((square, square), Image.Resampling.BICUBIC)
    row.paste(seen.resize(size, Image.Resampling.BICUBIC), (0, 0))
    row.paste(Image.fromarray(one.generated).resize(size, Image.Resampling.BICUBIC), (width + _GAP, 0))
    # Enlarging by a whole factor and averaging back changes no pixel that no line touches.
    row = row.resize((_SMOOTH * row.width, _SMOOTH * row.height), Image.Resampling.NEAREST)
    side = math.isqrt(one.indices.size)
    ends = [
        [
            ((index % side + 0.5) * width / side + left, (index // side + 0.5) * height / side)
            for index, left in ((int(one.indices[position]), 0), (int(position), width + _GAP))
        ]
        for position in shown
    ]
    thick = max(width, height) / 480
    pen = ImageDraw.Draw(row, "RGBA")
    colours = [_colour(number) for number in range(len(ends))]
    for pair, colour in zip(ends, colours, strict=True):
        points = [(_SMOOTH * x, _SMOOTH * y) for x, y in pair]
        pen.line(points, fill=(0, 0, 0, 90), width=round(_SMOOTH * 3 * thick))
        pen.line(points, fill=colour, width=round(_SMOOTH * 1.6 * thick))
    for pair, colour in zip(ends, colours, strict=True):
        for x, y in pair:
            for radius, fill in ((3.8 * thick, (0, 0, 0)), (2.8 * thick, colour)):
                box = (x - radius, y - radius, x + radius, y + radius)
                pen.ellipse([_SMOOTH * value for value in box], fill=fill)
    return row.reduce(_SMOOTH)


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, (0.9, 0.55)[number % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _caption(one: ClassMatches, positions: Ints, shown: int) -> str:
    if not len(positions):
        return ": nothing was uncertain, the mask stays as it is"
    similarity = float(one.similarities[positions].mean(dtype=np.float64))
    return (
        f": {len(positions)} of {one.indices.size} positions uncertain, {shown} shown, mean similarity {similarity:.2f}"
    )
