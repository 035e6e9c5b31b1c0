"""DenseCRF (Kraehenbuehl & Koltun, 2011) through pydensecrf, with the settings that published codes use it with.

Facts from linyq2117/CLIP-ES eval_cam_with_crf.py, jiwoon-ahn/psa tool/imutils.py (`crf_inference`) and
jiwoon-ahn/irn misc/imutils.py (`crf_inference_label`). All were chosen for photographs some 500 pixels wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.errors import ConfigError, MissingExtraError
from g4seg_trt.postprocess.background import background_channel, under_rule
from g4seg_trt.postprocess.process import PostProcess
from g4seg_trt.update import BackgroundRule, label_map

_LEAST = 1e-5
"""Probabilities below this count as this: no energy is infinite."""

_MEAN_BGR = (104.008, 116.669, 122.675)


@dataclass(frozen=True)
class CrfSettings:
    """How a DenseCRF is set up.

    Attributes:
        position: (standard deviation in pixels, weight) of the kernel of positions alone.
        bilateral: (standard deviation in pixels, in levels of 0..255, weight) of the kernel of positions and colours.
        certainty: None to start from probabilities; else from labels, each right with this probability, the others
            equal.
        mean_wrapped: the image as CLIP-ES hands it over: BGR, its mean subtracted, and back in uint8, where what is
            below 0 comes out near 255.
        iterations: mean-field steps.
    """

    position: tuple[float, float]
    bilateral: tuple[float, float, float]
    certainty: float | None = None
    mean_wrapped: bool = False
    iterations: int = 10


PRESETS: Mapping[str, CrfSettings] = {
    "clip-es": CrfSettings(position=(1, 3), bilateral=(67, 3, 4), mean_wrapped=True),
    "psa": CrfSettings(position=(3, 3), bilateral=(80, 13, 10)),
    "irn": CrfSettings(position=(3, 3), bilateral=(50, 5, 10), certainty=0.7),
}
"""Settings by the code that they come from."""


class DenseCrf(PostProcess):
    """A fully connected CRF over background and classes.

    Same inputs give the same bytes. CLIP-ES's own script takes logarithms of the float16 values it stores, here they
    are float32: close calls can differ from it.
    """

    def __init__(self, preset: str = "clip-es") -> None:
        """Raises ConfigError for a name that is not in PRESETS."""
        if preset not in PRESETS:
            raise ConfigError(f"unknown CRF preset {preset!r}, allowed: {', '.join(PRESETS)}")
        self.preset = preset
        self.settings = PRESETS[preset]

    @property
    def name(self) -> str:
        return f"crf:{self.preset}"

    def parameters(self) -> dict[str, Any]:
        values = asdict(self.settings)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def check(self) -> None:
        _densecrf()

    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        count, height, width = len(probabilities) + 1, *probabilities.shape[1:]
        field = _densecrf().DenseCRF2D(width, height, count)
        field.setUnaryEnergy(self._unary(probabilities, rule, background).reshape(count, -1))
        sigma, weight = self.settings.position
        field.addPairwiseGaussian(sxy=sigma, compat=weight)
        sigma, colours, weight = self.settings.bilateral
        field.addPairwiseBilateral(sxy=sigma, srgb=colours, rgbim=self._image(image), compat=weight)
        posterior = np.array(field.inference(self.settings.iterations)).reshape(count, height, width)
        return under_rule(posterior[1:], posterior[0], rule, background)

    def _unary(self, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        """-log of how probable background and classes are: float32 [K+1,H,W]."""
        count, height, width = len(probabilities) + 1, *probabilities.shape[1:]
        if self.settings.certainty is None:
            whole = np.concatenate((background_channel(probabilities, rule, background)[None], probabilities))
            energy: Floats = -np.log(np.clip(whole, _LEAST, 1.0, out=whole))
            return energy
        labels = label_map(probabilities, rule, background).astype(np.int64)
        wrong = -np.log((1.0 - self.settings.certainty) / (count - 1))
        energy = np.full((count, height, width), wrong, dtype=np.float32)
        np.put_along_axis(energy, labels[None], np.float32(-np.log(self.settings.certainty)), axis=0)
        return energy

    def _image(self, image: Bytes) -> Bytes:
        if not self.settings.mean_wrapped:
            return np.ascontiguousarray(image)
        shifted = image[..., ::-1] - np.array(_MEAN_BGR)
        # By way of int64: what a negative float becomes as uint8 depends on the processor.
        wrapped: Bytes = np.ascontiguousarray(shifted.astype(np.int64).astype(np.uint8))
        return wrapped


def _densecrf() -> Any:
    try:
        from pydensecrf import densecrf
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pydensecrf":
            raise
        raise MissingExtraError.for_package("pydensecrf2", "crf") from error
    return densecrf
