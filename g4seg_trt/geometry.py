"""Between a picture of any size, the model's square and its grids. The only place that resizes anything.

Positions are pixel centres: output i of n samples the input at (i + 0.5) * size / n - 0.5, edges clamped.
The image is squeezed to the square whatever its aspect; probabilities come back as a residual, so that the
given mask's detail never passes through the square.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Bools, Bytes, Doubles, Floats, Ints
from g4seg_trt.picture import load_image

__all__ = [
    "load_image",
    "pool_to_grid",
    "resize_nearest",
    "resize_probability",
    "to_square",
    "upsample_residual",
]


def to_square(image: Bytes, square: int) -> Floats:
    """The network's image: uint8 RGB [H,W,3] -> float32 [3,square,square] in [0,1].

    Antialiased bicubic; an image that has the square's size already keeps its values.
    """
    resized = Image.fromarray(image).resize((square, square), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))


def resize_probability(probability: Floats, size: tuple[int, int]) -> Floats:
    """float32 [H,W] in [0,1] -> float32 [*size] in [0,1]: bilinear, antialiased where it shrinks."""
    return np.clip(_bilinear(probability, size), 0.0, 1.0)


def upsample_residual(residual: Floats, size: tuple[int, int]) -> Floats:
    """A change on the grid, float32 [g,g], at full resolution [*size]; bilinear like `resize_probability`."""
    return _bilinear(residual, size)


def pool_to_grid(values: Floats, grid: int) -> Floats:
    """float32 [H,W] -> float32 [grid,grid]: the mean over each cell, border pixels counted by their share."""
    height, width = values.shape
    pooled = _area_weights(height, grid) @ values.astype(np.float64) @ _area_weights(width, grid).T
    return pooled.astype(np.float32)


def resize_nearest(mask: Bools, size: tuple[int, int]) -> Bools:
    """bool [H,W] -> bool [*size]: the pixel that holds each position's centre."""
    rows, columns = (_centres(old, new) for old, new in zip(mask.shape, size, strict=True))
    resized: Bools = mask[np.ix_(rows, columns)]
    return resized


def _bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    if values.shape == size:
        return values.copy()
    height, width = size
    # Pillow's float mode sums in double and normalises the weights of every position.
    resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32)


def _centres(old: int, new: int) -> Ints:
    return ((2 * np.arange(new) + 1) * old) // (2 * new)


def _area_weights(size: int, cells: int) -> Doubles:
    """float64 [cells,size]: how much of each cell every pixel covers; rows sum to 1."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: Doubles = np.clip(overlap, 0.0, None) / (size / cells)
    return weights
