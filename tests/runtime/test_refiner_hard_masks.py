"""The Refiner on hard masks: softened first, with a score or several of them, or left as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_trt.config import RefineConfig
from g4seg_trt.refiner import Refiner
from g4seg_trt.soften import soften

Make = Callable[..., Refiner]
Scene = Callable[..., tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]


def test_hard_masks_are_softened_and_said_so(make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, soft = make_scene(60, 80, shift=0.3)
    hard = soft >= 0.5
    refiner = make_refiner(beta=0.2)
    refiner.set_image(image)
    refined = refiner.refine({"disc": hard})
    assert refined.softened == {"disc": 0.02}
    probability = refined.probabilities["disc"]
    assert not np.array_equal(probability, hard.astype(np.float32))
    softened = soften(hard.astype(np.float32), 0.02)
    outside = (softened < np.float32(0.2)) | (softened > np.float32(0.6))
    assert np.array_equal(probability[outside], hard[outside].astype(np.float32))
    # The injected mask is the mask as given.
    given = runners["unet"].calls[-1]["mask"][0, 0]
    assert np.array_equal(given, hard[(2 * np.arange(8) + 1) * 60 // 16][:, (2 * np.arange(8) + 1) * 80 // 16])
    unsoftened = refiner.refine({"disc": hard}, config=RefineConfig(soften=0.0))
    assert np.array_equal(unsoftened.probabilities["disc"], hard.astype(np.float32))
    assert "range 0.2 to 0.6" in unsoftened.warnings[0]


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
def test_the_score_of_a_hard_mask_is_a_factor_of_its_refinement(
    make_refiner: Make, make_scene: Scene, resolution: str
) -> None:
    image, soft = make_scene(60, 80, shift=0.3)
    hard = (soft >= 0.5).astype(np.float32)
    refiner = make_refiner(beta=0.2, resolution=resolution)
    refiner.set_image(image)
    changes: tuple[dict[str, Any], ...] = ({}, {"soften": 0.05}, {"certainty_filter": None})
    for config in (replace(refiner.config, **change) for change in changes):
        expected = refiner.refine({"disc": hard}, config=config)
        assert not np.array_equal(expected.probabilities["disc"], hard)
        for score in (0.95, 0.55, 0.1):
            factor = np.float32(score)
            # The rule decides what is injected: here both masks have the same label map.
            found = refiner.refine({"disc": hard * factor}, config=config, background="constant:0.1")
            assert np.array_equal(found.probabilities["disc"], expected.probabilities["disc"] * factor)
            assert (found.softened, found.warnings) == (expected.softened, expected.warnings)
    unsoftened = replace(refiner.config, soften=0.0, certainty_filter=(0.4, 0.6))
    halved = (hard * 0.5).astype(np.float32)
    found = refiner.refine({"disc": halved}, config=unsoftened, background="constant:0.1")
    assert not np.array_equal(found.probabilities["disc"], halved), "what the filter lets change does"


def test_several_scores_of_one_class_are_softened_when_asked_for(make_refiner: Make, make_scene: Scene) -> None:
    image, first = make_scene(60, 80, shift=0.3)
    second = np.roll(first, 25, axis=1)
    scores = np.float32(0.75), np.float32(0.9)
    found = np.maximum(*(score * (one >= 0.5) for score, one in zip(scores, (first, second), strict=True)))
    assert len(np.unique(found)) == 3
    refiner = make_refiner(beta=0.2)
    refiner.set_image(image)
    plain = refiner.refine({"disc": found})
    assert np.array_equal(plain.probabilities["disc"], found)
    assert plain.softened == {"disc": 0.0}
    assert "range 0.2 to 0.6" in plain.warnings[0]
    asked = refiner.refine({"disc": found}, config=replace(refiner.config, soften=0.02))
    assert asked.softened == {"disc": 0.02}
    assert asked.warnings == []
    changed = asked.probabilities["disc"] != found
    softened = soften(found, 0.02)
    inside = (softened >= np.float32(0.2)) & (softened <= np.float32(0.6))
    assert changed.any()
    assert not (changed & ~inside).any()
