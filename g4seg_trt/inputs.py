"""Checks of what callers hand in: images and masks become arrays of one kind, or a typed error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from g4seg_trt.arrays import Array, Bytes, Floats
from g4seg_trt.errors import ImageError, MaskError

# Resampling in float32 overshoots by rounding; more than that is another scale.
_ROUNDING = 1e-6


def check_image(image: Array) -> Bytes:
    """The image itself, contiguous.

    Args:
        image: uint8 RGB [H,W,3], at least one pixel.

    Raises:
        ImageError: for anything else.
    """
    if not isinstance(image, np.ndarray):
        raise ImageError(f"the image is a {type(image).__name__}, expected a uint8 array [height, width, 3]")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"the image is {image.dtype} of shape {list(image.shape)}, expected uint8 [height, width, 3]")
    return np.ascontiguousarray(image)


def check_masks(masks: Mapping[str, Array], size: tuple[int, int]) -> dict[str, Floats]:
    """The masks as float32 [H,W] in [0,1], in the order given.

    Args:
        masks: class name -> probability [H,W]: floating point, bool, or integers that are all 0 or 1.
        size: the image's (height, width).

    Raises:
        MaskError: if there is none, a size differs from the image's, or a value is not a probability.
    """
    if not masks:
        raise MaskError("no mask given: expected at least one class name with its mask")
    return {name: _check_mask(name, mask, size) for name, mask in masks.items()}


def _check_mask(name: str, mask: Array, size: tuple[int, int]) -> Floats:
    if not isinstance(mask, np.ndarray):
        raise MaskError(f"mask of {name!r} is a {type(mask).__name__}, expected an array [height, width]")
    if mask.ndim != 2:
        raise MaskError(f"mask of {name!r} has shape {list(mask.shape)}, expected [height, width]")
    if mask.shape != size:
        raise MaskError(
            f"mask of {name!r} is {mask.shape[1]}x{mask.shape[0]} pixels, its image is {size[1]}x{size[0]}: "
            "they must have the same size"
        )
    if mask.dtype.kind not in "fbiu":
        raise MaskError(f"mask of {name!r} has dtype {mask.dtype}, expected floating-point probabilities")
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        broken = int(mask.size - np.count_nonzero(np.isfinite(mask)))
        raise MaskError(f"mask of {name!r} has {broken} values that are NaN or infinite, expected 0 to 1")
    low, high = float(mask.min()), float(mask.max())
    if low < -_ROUNDING or high > 1.0 + _ROUNDING:
        raise MaskError(f"mask of {name!r} has values from {low:g} to {high:g}, not 0 to 1; divide 8-bit masks by 255")
    return np.clip(mask.astype(np.float32), 0.0, 1.0)
