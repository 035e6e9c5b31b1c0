"""The UNet's inputs that are not learned: the injected mask, its strength, and the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.config import RefineConfig
from g4seg_trt.geometry import resize_nearest
from g4seg_trt.update import BackgroundRule, label_map


def binary_masks(probabilities: Mapping[str, Floats], threshold: float) -> dict[str, Bools]:
    """Which pixels each class holds: where it reaches the threshold and no other class is above it.

    Args:
        probabilities: class name -> float32 [H,W] in [0,1].
        threshold: above 0 and up to 1.

    Returns:
        Class name -> bool [H,W]; no pixel belongs to two classes.
    """
    labels = label_map(list(probabilities.values()), BackgroundRule("constant", threshold))
    return {name: labels == label for label, name in enumerate(probabilities, start=1)}


def emi_inputs(mask: Floats | Bools, latent_size: int, config: RefineConfig) -> tuple[Floats, Floats]:
    """What the UNet needs for explicit mask injection (eq. 3 to 5).

    Args:
        mask: the class's mask as given, float [H,W] in [0,1] or bool [H,W].
        latent_size: side h of the latent.
        config: gives the threshold and the strengths.

    Returns:
        mask float32 [1,h,h] of 0 and 1 (nearest pixel), and emi_weight float32 [2] (self, cross).
    """
    binary = mask if mask.dtype == np.bool_ else mask >= np.float32(config.mask_threshold)
    small = resize_nearest(np.asarray(binary, dtype=np.bool_), (latent_size, latent_size))
    return small[None].astype(np.float32), emi_weight(config)


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
