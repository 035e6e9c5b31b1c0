"""What every post-processing of masks is, and several of them one after the other."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Bytes, Floats
from g4seg_trt.errors import ConfigError, ImageError, MaskError
from g4seg_trt.inputs import check_image
from g4seg_trt.update import BACKGROUND, BackgroundRule

_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
"""What PyTorch says on a GPU and on a CPU."""


class PostProcess(ABC):
    """Changes the probabilities of an image's classes together, after or instead of a refinement.

    What it hands back is meant for the same background rule: `label_map(result, rule, background)` gives the labels
    that the process itself decided on, but that a given background of 1 stays background.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What `parse_post` takes for it, such as "crf:irn"."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What its results depend on beside its name and what `apply` is given, as JSON holds it.

        Records keep it, and a resumed run does images again for which it differs.

        Raises:
            ConfigError: weights cannot be read.
        """

    @abstractmethod
    def check(self) -> None:
        """Look for what it needs, so that a run fails before its first image and not at it.

        Raises:
            MissingExtraError: a package is not installed.
            ConfigError: weights are not there.
        """

    def apply(
        self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None = None
    ) -> Floats:
        """New probabilities of the same classes.

        Args:
            image: uint8 RGB [H,W,3].
            probabilities: float32 [K,H,W] in [0,1]; K may be 0.
            rule: how much background a pixel has.
            background: the background's probability, float32 [H,W] in [0,1], for the rule "channel"; without effect
                for another.

        Returns:
            float32 [K,H,W] in [0,1], an array of its own.

        Raises:
            ImageError: the image is not of that kind, or there is too little memory for it.
            MaskError: the probabilities or the background are not.
            ConfigError: the rule is "channel" and there is no background.
            MissingExtraError: a package is not installed.
        """
        image = check_image(image)
        size = (image.shape[0], image.shape[1])
        _check("probabilities", probabilities, size, "[classes, height, width]")
        if rule.kind != "channel":
            background = None
        elif background is None:
            raise ConfigError(f'background rule channel needs a mask of the class "{BACKGROUND}"')
        else:
            _check("background", background, size, "[height, width]")
        if len(probabilities) == 0:
            return probabilities.copy()
        try:
            return self._process(image, probabilities, rule, background)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and _OUT_OF_MEMORY.search(str(error)) is None:
                raise
            raise ImageError(
                f"post-processing {self.name}: out of memory at {size[1]}x{size[0]} pixels and {len(probabilities)} "
                "classes"
            ) from error

    @abstractmethod
    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        """As `apply`, with at least one class, all checked, and a background for the rule "channel" alone.

        Must not write to its arguments.
        """


class PostChain(PostProcess):
    """Several processes, each on the result of the one before."""

    def __init__(self, steps: Sequence[PostProcess]) -> None:
        self.steps = tuple(steps)

    @property
    def name(self) -> str:
        return ",".join(step.name for step in self.steps)

    def parameters(self) -> dict[str, Any]:
        return {
            f"{number} {name}": value
            for number, step in enumerate(self.steps, start=1)
            for name, value in step.parameters().items()
        }

    def check(self) -> None:
        for step in self.steps:
            step.check()

    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        for step in self.steps:
            probabilities = step.apply(image, probabilities, rule, background)
        return probabilities


def _check(what: str, values: Array, size: tuple[int, int], axes: str) -> None:
    if values.dtype != np.float32 or values.ndim != axes.count(",") + 1:
        raise MaskError(f"{what}: {values.dtype} of shape {list(values.shape)}, expected float32 {axes}")
    height, width = values.shape[-2:]
    if (height, width) != size:
        raise MaskError(f"{what}: {width}x{height} pixels, the image is {size[1]}x{size[0]}: they must be the same")
    if values.size and not (values.min() >= 0.0 and values.max() <= 1.0):  # not for NaN either
        raise MaskError(f"{what}: values from {values.min():g} to {values.max():g}, expected 0 to 1")
