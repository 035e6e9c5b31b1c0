"""The result of refining the masks of one image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from g4seg_trt.arrays import Bytes, Floats, Ints, Labels
from g4seg_trt.chain import Refined
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import ConfigError
from g4seg_trt.preparation import Preparation, PreparedClass
from g4seg_trt.timing import Timings
from g4seg_trt.update import BackgroundRule, apply_residual, label_map

KEEP: tuple[str, ...] = ("generated", "denoised", "indices", "similarities")
"""What a refinement hands out on request beside the probabilities."""


@dataclass(frozen=True)
class Refinement:
    """Refined masks of one image. Every mapping has the class names as keys, in the order given.

    Attributes:
        probabilities: float32 [H,W] in [0,1] at the image's own size.
        softened: share of the longer side by which the given mask was softened, 0 if it was not.
        warnings: about masks that could not change or guide nothing; one line for all of which the same is true, with
            the names of the first.
        timings: seconds by stage (g4seg_trt.timing.STAGES), those of set_image included.
        generated: on request, the generated image: uint8 RGB [s,s,3].
        denoised: on request, its latent: float32 [Z,h,h].
        indices: on request, for every grid position of the generated image the most similar one of the
            original: int64 [g*g], row-major; at resolution "pixel" for every pixel of the model's square,
            int64 [s*s], -1 for those outside the certainty filter.
        similarities: on request, their cosines: float32 [g*g].
    """

    probabilities: dict[str, Floats]
    softened: dict[str, float]
    warnings: list[str]
    timings: dict[str, float]
    generated: dict[str, Bytes]
    denoised: dict[str, Floats]
    indices: dict[str, Ints]
    similarities: dict[str, Floats]

    def label_map(self, rule: BackgroundRule | str = "constant:0.5", background: Floats | None = None) -> Labels:
        """The label of every pixel, 0 for background: see g4seg_trt.update.label_map."""
        return label_map(list(self.probabilities.values()), rule, background)


@dataclass(frozen=True)
class ClassResult:
    """What is kept of one pair until its image is done; None where it was not asked for."""

    residual: Floats
    timings: Timings
    generated: Bytes | None
    denoised: Floats | None
    indices: Ints | None
    similarities: Floats | None


def check_keep(keep: Collection[str]) -> frozenset[str]:
    """The names to keep.

    Raises:
        ConfigError: for a name that is not in KEEP.
    """
    if isinstance(keep, str):
        keep = (keep,)
    for name in keep:
        if name not in KEEP:
            raise ConfigError(f"unknown name {name!r} to keep, allowed: {', '.join(KEEP)}")
    return frozenset(keep)


def class_result(refined: Refined, keep: frozenset[str]) -> ClassResult:
    """Take out of a pair's result what is needed later, so that the batch's arrays can go."""
    return ClassResult(
        refined.residual,
        refined.timings,
        _to_bytes(refined.generated) if "generated" in keep else None,
        refined.denoised.copy() if "denoised" in keep else None,
        refined.indices if "indices" in keep else None,
        refined.similarities if "similarities" in keep else None,
    )


def assemble(
    preparation: Preparation, results: Mapping[str, ClassResult], config: RefineConfig, timings: Timings
) -> Refinement:
    """Lift every class's residual to full resolution and collect the rest.

    Args:
        preparation: the image's classes.
        results: class name -> result; classes without one keep the given mask.
        config: gives the certainty filter.
        timings: what the image took before its classes; not changed.
    """
    spent = Timings(timings)
    spent.add(preparation.timings)
    for result in results.values():
        spent.add(result.timings)
    with spent.stage("update"):
        probabilities = {one.name: _probability(one, results.get(one.name), config) for one in preparation.classes}
    return Refinement(
        probabilities,
        {one.name: one.softened for one in preparation.classes},
        list(preparation.warnings),
        spent.ordered(),
        {name: result.generated for name, result in results.items() if result.generated is not None},
        {name: result.denoised for name, result in results.items() if result.denoised is not None},
        {name: result.indices for name, result in results.items() if result.indices is not None},
        {name: result.similarities for name, result in results.items() if result.similarities is not None},
    )


def _probability(one: PreparedClass, result: ClassResult | None, config: RefineConfig) -> Floats:
    if one.still or result is None:
        return one.given
    refined = apply_residual(one.shape, one.probability, result.residual, config.certainty_filter)
    if one.score != 1.0:
        refined *= np.float32(one.score)
    return refined


def _to_bytes(image: Floats) -> Bytes:
    """float [3,s,s] in [0,1] -> uint8 [s,s,3]."""
    return np.ascontiguousarray(np.rint(image * 255.0).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
