"""Pairs of features for the correspondence benchmark: made by formula, and from photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from g4seg_engine.runner import open_runner
from g4seg_trt.config import RefineConfig
from g4seg_trt.geometry import to_square
from g4seg_trt.picture import load_image
from g4seg_trt.refiner import Refiner, engine_directory

Floats = NDArray[np.float32]
Pair = tuple[Floats, Floats]

SEED = 7


def synthetic(width: int, grid: int) -> Mapping[str, Pair]:
    """Generated and original features, float32 [width,grid,grid] each, by kind.

    smooth: neighbouring positions are alike, as an image encoder's are, and the generated image is like the
    original. related: every position drawn alone, the generated image like the original. unrelated: two draws that
    have nothing in common, the worst case. constant: one feature everywhere, as of a blank picture.
    """
    generator = np.random.default_rng(SEED)

    def draw(size: int = grid) -> Floats:
        return generator.standard_normal((width, size, size), dtype=np.float32)

    small = draw(grid // 4 + 2)
    smooth = np.kron(small, np.ones((1, 4, 4), dtype=np.float32))
    for axis in (1, 2):  # from steps of four positions to slopes
        smooth = sum((np.roll(smooth, shift, axis) for shift in range(4)), np.zeros_like(smooth)) / 4
    smooth = np.ascontiguousarray(smooth[:, 4 : 4 + grid, 4 : 4 + grid])
    related, other = draw(), draw()
    constant = np.broadcast_to(draw(1), smooth.shape).copy()
    return {
        "smooth": (smooth + 0.2 * draw(), smooth),
        "related": (related + 0.7 * draw(), related),
        "unrelated": (draw(), other),
        "constant": (draw(), constant),
    }


def of_photographs(engine: str, files: Sequence[Path]) -> Iterator[Pair]:
    """Features of each photograph and of the image that is generated from it, by an engine's own image encoder.

    The mask is a soft disc in the middle, the class "object".
    """
    directory = engine_directory(engine)
    refiner = Refiner.from_engine(directory)
    dims = refiner.manifest.dims
    with open_runner(directory, "image_encoder") as encoder:
        for file in files:
            image = load_image(file)
            rows, columns = (np.linspace(-1, 1, side)[:, None] for side in image.shape[:2])
            disc = np.exp(-3 * (rows**2 + columns.T**2)).astype(np.float32)
            refiner.set_image(image)
            generated = refiner.refine({"object": disc}, config=RefineConfig(), keep=("generated",)).generated["object"]
            squares = (to_square(picture, dims.square)[None] for picture in (generated, image))
            left, right = (encoder.run({"image": square})["features"][0] for square in squares)
            yield left, right
