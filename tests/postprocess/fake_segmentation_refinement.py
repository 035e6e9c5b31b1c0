"""A fake of the package segmentation-refinement: its names, arguments and array types, none of its network.

It refuses what the real one would trip over, writes down what it was asked, and "refines" by what the image says:
bright red pixels are foreground where the mask has any pixel in the same row.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np


class Refiner:
    def __init__(self, device: str = "cpu", model_folder: Any = None, download_and_check_model: bool = True) -> None:
        if download_and_check_model:
            raise OSError("the fake has no network")
        with open(os.path.join(model_folder, "model"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            self.log = file.read().strip()
        self._note({"device": device})

    def refine(self, image: Any, mask: Any, fast: bool = False, L: int = 900) -> Any:
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        # torchvision's ToTensor takes no array with negative strides.
        assert all(stride > 0 for stride in (*image.strides, *mask.strides))
        assert set(np.unique(mask)) <= {0, 255}
        self._note({"pixels": int((mask > 127).sum()), "fast": fast, "L": L})
        red = image[..., 2] / 255 * (mask > 127).any(axis=1, keepdims=True)
        return (red * 255).astype("uint8")

    def _note(self, what: dict[str, Any]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(json.dumps(what) + "\n")
