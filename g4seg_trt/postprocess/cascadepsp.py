"""CascadePSP (Cheng et al., 2020) through segmentation-refinement: one class at a time, then put together again.

Written against segmentation-refinement 0.6 (hkchengrex/CascadePSP). The tests run a fake of that package; its real
weights, which are the user's to fetch, were never run.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_engine.cuda_device import cuda_device, driver_cuda
from g4seg_engine.manifest import file_sha256
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.atomic import reason
from g4seg_trt.errors import ConfigError, EngineError, MissingExtraError
from g4seg_trt.masks.labels import NO_BACKGROUND
from g4seg_trt.postprocess.background import under_rule
from g4seg_trt.postprocess.process import PostProcess
from g4seg_trt.update import BackgroundRule, label_map

WEIGHTS = "https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model"
"""Where its authors put the weights."""

_PACKAGES = ("segmentation_refinement", "torch", "torchvision", "requests")
_SHORTEST = 66  # its windows overlap by 32 pixels at half this length


class CascadePsp(PostProcess):
    """The global and local refinement of one binary mask for each class.

    A class goes in as the region that the background rule gives it; one without any stays without. What comes back
    is its probability, the background being the rest to 1, and of several classes the larger wins. In a data set
    without background a pixel that no class wants any more stays as it was.
    """

    def __init__(
        self, *, fast: bool = False, length: int = 900, device: str | None = None, model_folder: Path | None = None
    ) -> None:
        """Set up, without loading anything.

        Args:
            fast: the global step only.
            length: side in pixels of what it looks at in one step; less needs less memory.
            device: "cpu" or "cuda"; None for the GPU where PyTorch can use one.
            model_folder: holds the weights under the name "model"; None for ~/.segmentation-refinement.

        Raises:
            ConfigError: if the length is too small.
        """
        if length < _SHORTEST:
            raise ConfigError(f"CascadePSP's length is {length}, allowed: {_SHORTEST} or more")
        self.fast = fast
        self.length = length
        self.device = device
        self.model_folder = model_folder or Path.home() / ".segmentation-refinement"

    @property
    def name(self) -> str:
        return "cascadepsp:fast" if self.fast else "cascadepsp"

    def parameters(self) -> dict[str, Any]:
        device, _, _ = (self.device or _device()).partition(":")
        try:
            weights = file_sha256(self._weights)
        except OSError as error:
            raise ConfigError(f"{self._weights}: cannot be read ({reason(error)})") from error
        return {"fast": self.fast, "length": self.length, "device": device, "weights sha256": weights}

    def check(self) -> None:
        for package in _PACKAGES:
            if find_spec(package) is None:
                raise MissingExtraError.for_package(package, "cascadepsp")
        if not self._weights.is_file():
            raise ConfigError(f"CascadePSP has no weights at {self._weights}: put the file there that {WEIGHTS} gives")

    @property
    def _weights(self) -> Path:
        return self.model_folder / "model"

    @cached_property
    def _refiner(self) -> Any:
        self.check()
        import segmentation_refinement

        # Its own download writes in place and would take half a file for a whole one.
        return segmentation_refinement.Refiner(
            device=self.device or _device(), model_folder=str(self.model_folder), download_and_check_model=False
        )

    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        labels = label_map(probabilities, rule, background)
        bgr = np.ascontiguousarray(image[..., ::-1])
        refined = np.zeros_like(probabilities)
        for number in range(len(probabilities)):
            region = labels == number + 1
            if region.any():
                mask = region.astype(np.uint8) * np.uint8(255)
                found = self._refiner.refine(bgr, mask, fast=self.fast, L=self.length)
                refined[number] = found.astype(np.float32) / np.float32(255)
        largest = refined.max(axis=0)
        if rule == NO_BACKGROUND:
            np.copyto(refined, probabilities, where=largest == 0)
        return under_rule(refined, np.float32(1) - largest, rule, background)


def _device() -> str:
    if driver_cuda() is None:
        return "cpu"
    try:
        cuda_device()
    except EngineError:
        return "cpu"
    return "cuda"
