"""The Refiner on the engine that ships with the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_trt import Refiner
from g4seg_trt.config import resolve_config
from g4seg_trt.refinement import KEEP, Refinement
from g4seg_trt.refiner import EMBEDDED
from g4seg_trt.timing import STAGES

Scene = Callable[..., tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
Open = Callable[..., Refiner]


@pytest.fixture(scope="module")
def open_tiny() -> Iterator[Open]:
    """open_tiny(batch_size) -> a Refiner; each is opened once."""
    home = EMBEDDED["tiny"]
    if not (home / "manifest.json").is_file():
        raise FileNotFoundError(f"no embedded engine: g4seg-build-engines --model tiny --output {home}")
    opened: dict[int, Refiner] = {}

    def open_one(batch_size: int = 1) -> Refiner:
        if batch_size not in opened:
            opened[batch_size] = Refiner.from_engine("tiny", batch_size=batch_size, threads=1)
        return opened[batch_size]

    yield open_one
    for refiner in opened.values():
        refiner.close()


def loads(samples: list[Any]) -> list[tuple[int, Callable[[], Any]]]:
    return [(index, partial(samples.__getitem__, index)) for index in range(len(samples))]


def test_it_takes_the_engine_s_recommended_settings(open_tiny: Open) -> None:
    refiner = open_tiny()
    assert refiner.manifest.recommended
    assert refiner.config == resolve_config(recommended=refiner.manifest.recommended)
    assert refiner.manifest.note  # said whenever it is used


def test_a_refinement(open_tiny: Open, make_scene: Scene) -> None:
    refiner, (image, mask) = open_tiny(), make_scene(90, 70)
    refiner.set_image(image)
    refined = refiner.refine({"circle": mask}, keep=KEEP)
    probability, dims = refined.probabilities["circle"], refiner.manifest.dims
    assert probability.shape == (90, 70)
    assert not np.array_equal(probability, mask)
    low, high = refiner.config.certainty_filter or (0.0, 1.0)
    outside = (mask < np.float32(low)) | (mask > np.float32(high))
    assert np.array_equal(probability[outside], mask[outside])
    assert refined.generated["circle"].shape == (dims.square, dims.square, 3)
    assert refined.generated["circle"].std() > 5
    assert (refined.similarities["circle"] <= 1 + 1e-5).all()
    assert set(refined.timings) == set(STAGES)


@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_a_result_does_not_depend_on_its_neighbours(batch_size: int, open_tiny: Open, make_scene: Scene) -> None:
    refiner = open_tiny(batch_size)
    samples = []
    for index in range(6):
        image, mask = make_scene(64, 64 + index, shift=0.03 * index)
        samples.append((image, {"circle": mask, "cat": mask[::-1].copy()} if index % 2 else {"star": mask}))
    streamed = [result for _, result in refiner.refine_many(loads(samples), keep=KEEP)]
    for (image, masks), result in zip(samples, streamed, strict=True):
        assert isinstance(result, Refinement)
        refiner.set_image(image)
        alone = refiner.refine(masks, keep=KEEP)
        for name in masks:
            assert np.array_equal(result.denoised[name], alone.denoised[name])
            assert np.array_equal(result.generated[name], alone.generated[name])
            assert np.array_equal(result.similarities[name], alone.similarities[name])
            assert np.array_equal(result.probabilities[name], alone.probabilities[name])


def test_the_same_again_gives_the_same_bytes(open_tiny: Open, make_scene: Scene) -> None:
    image, mask = make_scene(64, 64)
    results = []
    for refiner in (open_tiny(), open_tiny(), Refiner.from_engine("tiny", threads=1, verify=True)):
        refiner.set_image(image)
        results.append(refiner.refine({"circle": mask}).probabilities["circle"].tobytes())
    refiner.close()
    assert len(set(results)) == 1


def test_the_mask_steers_the_generation(open_tiny: Open, make_scene: Scene) -> None:
    refiner, (image, mask) = open_tiny(), make_scene(64, 64)
    refiner.set_image(image)
    plain = refiner.refine(
        {"circle": mask}, keep=["denoised"], config=refiner.config.merged({"emi_self": 0.0, "emi_cross": 0.0})
    )
    injected = refiner.refine({"circle": mask}, keep=["denoised"])
    assert not np.array_equal(plain.denoised["circle"], injected.denoised["circle"])


@pytest.mark.parametrize("name", ["circle", "photo", "a", "tv monitor", "犬", "naïve 🐈"])
def test_any_word_is_a_class(name: str, open_tiny: Open, make_scene: Scene) -> None:
    refiner, (image, mask) = open_tiny(), make_scene(64, 64)
    refiner.set_image(image)
    assert np.isfinite(refiner.refine({name: mask}).probabilities[name]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (30, 5000), (5000, 30), (63, 65)])
def test_extreme_sizes(size: tuple[int, int], open_tiny: Open, make_scene: Scene) -> None:
    refiner = open_tiny()
    image, _ = make_scene(*size)
    mask = np.random.default_rng(0).random(size, dtype=np.float32)
    refiner.set_image(image)
    for given in (mask, mask > 0.5):
        probability = refiner.refine({"circle": given}).probabilities["circle"]
        assert probability.shape == size
        assert 0 <= probability.min() <= probability.max() <= 1
