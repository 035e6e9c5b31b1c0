"""Scenes whose true masks are known, refined in several ways, and how far the ways agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4seg_bench.inputs import enlarge
from g4seg_bench.quality import iou
from g4seg_engine.errors import G4SegError
from g4seg_engine.spec import ModelDims
from g4seg_export.tiny.scenes import make_samples
from g4seg_trt.config import RefineConfig
from g4seg_trt.geometry import resize_nearest
from g4seg_trt.injection import seeded_noise
from g4seg_trt.preparation import PreparedClass, prepare_image, prepare_masks
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner
from g4seg_trt.update import BackgroundRule, in_filter

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

TRAINING_SEED = 0
"""Made the scenes that the tiny model was trained on."""


@dataclass(frozen=True)
class Scene:
    """A synthetic scene at the model's own size, so that nothing has to be resized on any way.

    Attributes:
        image: uint8 RGB [s,s,3].
        coarse: float32 [s,s] in [0,1].
        truth: bool [s,s].
        target: the class of the mask.
    """

    image: NDArray[np.uint8]
    coarse: Floats
    truth: Bools
    target: str


@dataclass(frozen=True)
class Given:
    """One scene as the networks take it, prepared by the product's own functions.

    Attributes:
        pixels: RGB float32 [3,s,s] in [0,1].
        one: prompt and masks.
        noise: float32 [Z,h,h].
    """

    pixels: Floats
    one: PreparedClass
    noise: Floats

    @classmethod
    def of(cls, scene: Scene, prompts: PromptEncoder, dims: ModelDims, config: RefineConfig) -> Given:
        """The scene under some settings."""
        image = prepare_image(scene.image, dims.square)
        masks = {scene.target: scene.coarse}
        one = prepare_masks(masks, image.size, prompts, dims, config, BackgroundRule()).classes[0]
        return cls(
            image.pixels, one, seeded_noise(config.seed, (dims.latent_channels, dims.latent_size, dims.latent_size))
        )


@dataclass(frozen=True)
class Result:
    """One refined scene.

    Attributes:
        probability: float32 [s,s] in [0,1].
        indices: the match of every grid position, int64 [g*g].
    """

    probability: Floats
    indices: NDArray[np.int64]


def scenes(count: int, seed: int, square: int) -> Iterator[Scene]:
    """Scenes of all kinds and severities, none of which the tiny model was trained on.

    Raises:
        G4SegError: for the seed of the training scenes, or one below it.
    """
    if seed <= TRAINING_SEED:
        raise G4SegError(f"seed is {seed}, allowed: 1 or more ({TRAINING_SEED} made the training scenes)")
    for sample in make_samples(count, seed):
        image, coarse = enlarge(sample, square)
        truth = resize_nearest(sample.scene.masks[sample.scene.target], (square, square))
        yield Scene(image, coarse, truth, sample.scene.target)


def on_the_grid(config: RefineConfig) -> RefineConfig:
    """The settings with matches sought on the whole grid, as eager PyTorch does it."""
    return replace(config, resolution="grid", radius=None)


def refine(refiner: Refiner, scene: Scene, config: RefineConfig) -> Result:
    """Refine one scene with the product."""
    refiner.set_image(scene.image)
    found = refiner.refine({scene.target: scene.coarse}, config=config, keep=("indices",))
    return Result(found.probabilities[scene.target], found.indices[scene.target])


def uncertain_pixels(scene: Scene, given: Given, config: RefineConfig) -> Bools:
    """The pixels of a scene that refinement may change: bool [s,s]."""
    if given.one.still:
        return np.zeros(scene.coarse.shape, np.bool_)
    return np.asarray(in_filter(given.one.probability, config.certainty_filter), np.bool_)


def gains(results: Sequence[Result], among: Sequence[Scene]) -> NDArray[np.float64]:
    """By how many points each scene's IoU with the truth has grown."""
    return np.array(
        [
            iou(result.probability, scene.truth) - iou(scene.coarse, scene.truth)
            for result, scene in zip(results, among, strict=True)
        ]
    )


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and two of its standard errors (0 for a single value)."""
    error = 2.0 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def agreement(
    results: Sequence[Result], reference: Sequence[Result], among: Sequence[Scene], uncertain: Sequence[Bools]
) -> dict[str, Any]:
    """How far one way agrees with another.

    Args:
        results: of the one way.
        reference: of the other, as many.
        among: their scenes.
        uncertain: their `uncertain_pixels`.

    Returns:
        "labels_percent" and "uncertain_labels_percent" of the pixels that are on the same side of 0.5, of all and of
        the uncertain ones (None if there are none); "probability_max", the largest difference; "matches_percent" that
        are the same; "gain" and "gain_error", mean IoU points and two standard errors; "gain_difference" and
        "gain_difference_error", the same of the differences scene by scene.
    """
    same = [
        (one.probability >= 0.5) == (other.probability >= 0.5) for one, other in zip(results, reference, strict=True)
    ]
    at_uncertain = np.concatenate([flags[where] for flags, where in zip(same, uncertain, strict=True)])
    matched = [one.indices == other.indices for one, other in zip(results, reference, strict=True)]
    largest = max(
        float(np.abs(one.probability - other.probability).max()) for one, other in zip(results, reference, strict=True)
    )
    found, expected = gains(results, among), gains(reference, among)
    gain, gain_error = mean_and_error(found)
    difference, difference_error = mean_and_error(found - expected)
    return {
        "labels_percent": 100.0 * float(np.mean(same)),
        "uncertain_labels_percent": 100.0 * float(at_uncertain.mean()) if at_uncertain.size else None,
        "probability_max": largest,
        "matches_percent": 100.0 * float(np.mean(matched)),
        "gain": gain,
        "gain_error": gain_error,
        "gain_difference": difference,
        "gain_difference_error": difference_error,
    }
