"""The small pictures of one image: before, after, what changed, and the ground truth."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Array, Bools, Bytes, Labels
from g4seg_trt.overlay import tint_classes

LONGER_SIDE = 224
"""Pixels of a picture's longer side at most; small images keep their size."""

BETTER, WORSE, OTHER = (0, 140, 220), (230, 80, 0), (250, 210, 40)
"""Colours of changed pixels: now right, now wrong, and those for which the ground truth does not decide it."""

_SHORTEST = 8
_DIMMED = 0.45
_VEIL = 190
_QUALITY = 82


@dataclass(frozen=True)
class Pictures:
    """Pictures of one image, each a JPEG file of `size`.

    Attributes:
        size: (width, height) in pixels.
        before: the classes of the coarse masks.
        after: those of the refined ones.
        changed: the image in grey with the changed pixels in colour.
        truth: the true classes, None without a ground truth.
    """

    size: tuple[int, int]
    before: bytes
    after: bytes
    changed: bytes
    truth: bytes | None = None


def draw_pictures(
    image: Bytes, before: Labels, after: Labels, truth: Labels | None = None, ignored: Bools | None = None
) -> Pictures:
    """Draw the pictures of one image.

    Args:
        image: uint8 RGB [H,W,3].
        before: label map of the coarse masks, unsigned [H,W]: 0 background, 1.. the image's classes.
        after: label map of the refined masks, unsigned [H,W].
        truth: label map of the ground truth, unsigned [H,W].
        ignored: bool [H,W], pixels that the ground truth leaves out.
    """
    scale = min(1.0, LONGER_SIDE / max(image.shape[:2]))
    height, width = (max(min(_SHORTEST, side), round(side * scale)) for side in image.shape[:2])
    size = (width, height)
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    left_out = np.zeros(before.shape, np.bool_) if ignored is None else ignored
    return Pictures(
        size,
        _jpeg(tint_classes(small, _nearest(before, size))),
        _jpeg(tint_classes(small, _nearest(after, size))),
        _jpeg(_changes(small, before, after, truth, left_out)),
        None if truth is None else _jpeg(_true(small, truth, left_out)),
    )


def _changes(small: Bytes, before: Labels, after: Labels, truth: Labels | None, ignored: Bools) -> Bytes:
    size = (small.shape[1], small.shape[0])
    picture = np.repeat(small.mean(axis=2, dtype=np.float32, keepdims=True), 3, axis=2) * _DIMMED
    changed = before != after
    if truth is None:
        kinds = [(changed, OTHER)]
    else:
        right, wrong = changed & (after == truth) & ~ignored, changed & (before == truth) & ~ignored
        kinds = [(changed & ~right & ~wrong, OTHER), (right, BETTER), (wrong, WORSE)]
    for where, colour in kinds:
        # A pixel of the picture takes the colour if half of what it stands for did, and shows any share of it.
        alpha = np.minimum(2.0 * _share(where, size), 1.0)[..., None]
        picture = (1.0 - alpha) * picture + alpha * np.array(colour, np.float32)
    return np.rint(picture).astype(np.uint8)


def _true(small: Bytes, truth: Labels, ignored: Bools) -> Bytes:
    size = (small.shape[1], small.shape[0])
    known = truth.copy()
    known[ignored] = 0
    tinted = tint_classes(small, _nearest(known, size)).astype(np.float32)
    veil = 0.7 * _share(ignored, size)[..., None]
    return np.rint((1.0 - veil) * tinted + veil * _VEIL).astype(np.uint8)


def _nearest(labels: Labels, size: tuple[int, int]) -> Labels:
    """The labels at the middles of the picture's pixels."""
    width, height = size
    rows = (2 * np.arange(height) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * labels.shape[1] // (2 * width)
    picked: Labels = labels[rows[:, None], columns]
    return picked


def _share(where: Bools, size: tuple[int, int]) -> Array:
    """float32 [h,w] in [0,1]: the share of each of the picture's pixels for which `where` holds."""
    grey = Image.fromarray(where.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float32) / np.float32(255)


def _jpeg(picture: Bytes) -> bytes:
    file = io.BytesIO()
    # Full colour resolution: outlines one pixel wide would fade.
    Image.fromarray(picture).save(file, format="JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
