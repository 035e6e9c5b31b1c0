"""What the speed benchmarks refine: synthetic scenes, enlarged to the size of photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from g4seg_export.tiny.scenes import SIZE, Sample, make_samples

SEED = 20


def first_sample() -> Sample:
    """The scene that single refinements are measured on."""
    return next(make_samples(1, SEED, kind="plain", severity="medium"))


def enlarge(sample: Sample, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The scene's image, uint8 RGB [size,size,3], and its coarse mask, float32 [size,size] in [0,1]."""
    coarse = np.asarray(sample.coarse, dtype=np.float32)
    if size == SIZE:
        return sample.scene.image, coarse
    shape = (size, size)
    image = Image.fromarray(sample.scene.image).resize(shape, Image.Resampling.BICUBIC)
    mask = Image.fromarray(coarse).resize(shape, Image.Resampling.BILINEAR)
    return np.array(image), np.clip(np.array(mask, dtype=np.float32), 0.0, 1.0)


def write_scenes(root: Path, number: int, size: int) -> None:
    """Write scenes as a folder run takes them: images/, masks/ (soft 8-bit PNG) and classes.json.

    Images are PNG at the scenes' own size and JPEG when enlarged, as photographs are.
    """
    suffix, options = (".png", {}) if size == SIZE else (".jpg", {"quality": 92})
    saving: dict[str, Any] = options
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    classes = {}
    for sample in make_samples(number, SEED):
        image, coarse = enlarge(sample, size)
        Image.fromarray(image).save(root / "images" / f"{sample.name}{suffix}", **saving)
        Image.fromarray(np.rint(coarse * 255).astype(np.uint8)).save(root / "masks" / f"{sample.name}.png")
        classes[sample.name] = sample.scene.target
    (root / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
