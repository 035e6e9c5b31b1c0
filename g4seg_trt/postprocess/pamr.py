"""Pixel-adaptive mask refinement (Araslanov & Roth, 2020): every pixel becomes a mean of those that look like it.

The weights are as in visinf/1-stage-wseg models/mods/pamr.py: for 8 neighbours at each of several distances, the
softmax of minus the difference in colour over a tenth of the standard deviation around the pixel, averaged over the
colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Bytes, Floats
from g4seg_trt.postprocess.background import under_rule
from g4seg_trt.postprocess.process import PostProcess
from g4seg_trt.update import BackgroundRule

DISTANCES = (1, 2, 4, 8, 12, 24)
"""How far away neighbours are, in pixels along each axis."""

ITERATIONS = 10
"""How often the means are taken."""

_REACH = max(DISTANCES)
_HALO = ITERATIONS * _REACH
"""Beyond this many pixels nothing matters."""

_TILE = 512
"""Side of what is computed at a time in larger images: with its halo 190 MB of weights."""

_STEPS = tuple(
    (distance * down, distance * right)
    for distance in DISTANCES
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if (down, right) != (0, 0)
)


class Pamr(PostProcess):
    """The classes averaged by the image, 10 times; for the rule "channel" the background with them."""

    @property
    def name(self) -> str:
        return "pamr"

    def parameters(self) -> dict[str, Any]:
        return {"distances": list(DISTANCES), "iterations": ITERATIONS}

    def check(self) -> None:
        """Nothing is needed."""

    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        if background is None:
            return adapt(image, probabilities)
        refined = adapt(image, np.concatenate((background[None], probabilities)))
        return under_rule(refined[1:], refined[0], rule, background)


def adapt(image: Bytes, maps: Floats, tile: int = _TILE) -> Floats:
    """Average every map by the image's pixel-adaptive weights.

    Args:
        image: uint8 RGB [H,W,3].
        maps: float32 [K,H,W] in [0,1].
        tile: side in pixels of what is computed at a time, unless the image is hardly larger; the result does not
            depend on it.

    Returns:
        float32 [K,H,W], each map within its own minimum and maximum.
    """
    adapted = np.empty_like(maps)
    for top, bottom in _spans(image.shape[0], tile):
        for left, right in _spans(image.shape[1], tile):
            first, start = max(0, top - _HALO), max(0, left - _HALO)
            window = np.s_[first : bottom + _HALO, start : right + _HALO]
            inner = np.s_[top - first : bottom - first, left - start : right - start]
            weights = _weights(image[window])
            for one, given in zip(adapted, maps, strict=True):
                one[top:bottom, left:right] = _averaged(given[window], weights)[inner]
    # The weights add up to 1 but for rounding.
    return np.clip(adapted, maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True), out=adapted)


def _spans(length: int, tile: int) -> Iterator[tuple[int, int]]:
    if length <= tile + 2 * _HALO:
        tile = length
    for start in range(0, length, tile):
        yield start, min(start + tile, length)


def _weights(image: Bytes) -> Floats:
    """float32 [48,H,W], adding up to 1 at every pixel; beyond the border the nearest pixel counts."""
    height, width = image.shape[:2]
    weights = np.zeros((len(_STEPS), height, width), dtype=np.float32)
    for colour in np.moveaxis(image.astype(np.int32), 2, 0):
        padded = np.pad(colour, _REACH, mode="edge")
        # Each distance counts its 8 neighbours and the pixel itself. Sums of whole numbers are exact.
        total, squares = len(DISTANCES) * colour, len(DISTANCES) * colour**2
        for step in _STEPS:
            neighbour = _shifted(padded, step)
            total += neighbour
            squares += neighbour**2
        count = len(_STEPS) + len(DISTANCES)
        deviation = np.sqrt((count * squares - total**2) / (count * (count - 1)))
        scale = (1.0 / (3.0 * (1e-8 + 0.1 * deviation))).astype(np.float32)
        for weight, step in zip(weights, _STEPS, strict=True):
            weight -= np.abs(colour - _shifted(padded, step)) * scale
    weights -= weights.max(axis=0)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=0)
    return weights


def _averaged(given: Floats, weights: Floats) -> Floats:
    term = np.empty_like(given)
    for _ in range(ITERATIONS):
        padded = np.pad(given, _REACH, mode="edge")
        given = np.zeros_like(term)
        for weight, step in zip(weights, _STEPS, strict=True):
            given += np.multiply(weight, _shifted(padded, step), out=term)
    return given


def _shifted(padded: Array, step: tuple[int, int]) -> Array:
    height, width = padded.shape[0] - 2 * _REACH, padded.shape[1] - 2 * _REACH
    top, left = _REACH + step[0], _REACH + step[1]
    return padded[top : top + height, left : left + width]
