"""The UNet's inputs that are not learned: the injected mask, its strength, and the noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.config import RefineConfig
from g4seg_trt.geometry import resize_nearest


def injected_mask(binary: Bools, latent_size: int) -> Floats:
    """The mask of the explicit mask injection (eq. 3 and 4): float32 [1,h,h] of 0 and 1, by the nearest pixel.

    Args:
        binary: the pixels that belong to the class under the background rule, bool [H,W].
        latent_size: side h of the latent.
    """
    return resize_nearest(binary, (latent_size, latent_size))[None].astype(np.float32)


def emi_weight(config: RefineConfig) -> Floats:
    """The strengths of the injection, float32 [2]: self-attention, cross-attention."""
    return np.array([config.emi_self, config.emi_cross], dtype=np.float32)


def seeded_noise(seed: int, shape: Sequence[int]) -> Floats:
    """Standard normal noise, float32: the same for every image and every class of a run.

    Args:
        seed: RefineConfig.seed.
        shape: [Z,h,h] of the latent.
    """
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape), dtype=np.float32)
