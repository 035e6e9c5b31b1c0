"""The Refiner on numpy networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_engine.errors import EngineNotFoundError
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import ClassNameError, ConfigError, ImageError, MaskError
from g4seg_trt.geometry import pool_to_grid, resize_probability, upsample_residual
from g4seg_trt.refinement import KEEP
from g4seg_trt.refiner import EMBEDDED, Refiner, engine_directory
from g4seg_trt.timing import STAGES
from g4seg_trt.update import label_map

Make = Callable[..., Refiner]
Scene = Callable[..., tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]


def test_a_refinement_from_end_to_end(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(45, 61)
    refiner = make_refiner(beta=0.3)
    refiner.set_image(image)
    refined = refiner.refine({"disc": mask}, keep=KEEP)
    assert list(refined.probabilities) == ["disc"]
    probability = refined.probabilities["disc"]
    # The update from its parts.
    pooled = pool_to_grid(resize_probability(mask, (32, 32)), 8).reshape(-1)
    residual = np.float32(0.7) * (pooled[refined.indices["disc"]] - pooled)
    lifted = np.clip(mask + upsample_residual(residual.reshape(8, 8).astype(np.float32), mask.shape), 0, 1)
    inside = (mask >= np.float32(0.2)) & (mask <= np.float32(0.6))
    assert np.abs(probability - lifted)[inside].max() < 1e-6
    assert np.array_equal(probability[~inside], mask[~inside])
    assert np.abs(probability - mask).max() > 0.01
    # What was kept.
    assert refined.generated["disc"].shape == (32, 32, 3)
    assert refined.generated["disc"].dtype == np.uint8
    assert refined.denoised["disc"].shape == (3, 8, 8)
    assert refined.indices["disc"].shape == refined.similarities["disc"].shape == (64,)
    assert refined.softened == {"disc": 0.0}
    assert refined.warnings == []
    assert list(refined.timings) == list(STAGES)
    assert all(seconds >= 0 for seconds in refined.timings.values())


@pytest.mark.parametrize("size", [(45, 61), (32, 32), (20, 90), (7, 5), (130, 31)])
def test_pixel_resolution_searches_all_that_can_reach_a_pixel_in_the_filter(
    size: tuple[int, int], make_refiner: Make, make_scene: Scene
) -> None:
    image, mask = make_scene(*size)
    mask = np.where(np.indices(size).sum(0) % 7 == 0, np.float32(0.4), np.round(mask)).astype(np.float32)
    refiner = make_refiner(beta=0.3, resolution="pixel")
    refiner.set_image(image)
    refined = refiner.refine({"disc": mask}, keep=KEEP)
    everywhere = refiner.refine({"disc": mask}, keep=KEEP, config=refiner.config.merged({"certainty_filter": None}))
    probability, indices = refined.probabilities["disc"], everywhere.indices["disc"]
    assert indices.shape == everywhere.similarities["disc"].shape == (32 * 32,)
    assert indices.min() >= 0
    square = resize_probability(mask, (32, 32)).reshape(-1)
    residual = np.float32(0.7) * (square[indices] - square)
    lifted = np.clip(mask + upsample_residual(residual.reshape(32, 32), mask.shape), 0, 1)
    inside = (mask >= np.float32(0.2)) & (mask <= np.float32(0.6))
    assert np.abs(probability - lifted)[inside].max() < 1e-6
    assert np.array_equal(probability[~inside], mask[~inside])
    assert np.abs(probability - mask).max() > 0.01


def test_nothing_is_kept_unless_asked_for(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(20, 20)
    refiner = make_refiner()
    refiner.set_image(image)
    refined = refiner.refine({"disc": mask})
    assert not refined.generated
    assert not refined.denoised
    assert not refined.indices
    assert not refined.similarities
    with pytest.raises(ConfigError, match=r"'images'.*generated, denoised, indices, similarities"):
        refiner.refine({"disc": mask}, keep=["images"])
    assert refiner.refine({"disc": mask}, keep="indices").indices


def test_the_injection_depends_on_mask_class_and_strength(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(32, 32)
    refiner = make_refiner()
    refiner.set_image(image)

    def denoised(name: str, mask: Any, **settings: Any) -> Any:
        config = RefineConfig(**settings)
        return refiner.refine({name: mask}, keep=["denoised"], config=config).denoised[name]

    plain = denoised("disc", mask)
    assert np.array_equal(plain, denoised("disc", mask))
    assert not np.array_equal(plain, denoised("cat", mask))
    assert not np.array_equal(plain, denoised("disc", mask.T[::-1].copy()))
    assert not np.array_equal(plain, denoised("disc", mask, emi_cross=0.5))
    assert not np.array_equal(plain, denoised("disc", mask, timestep=401))
    assert not np.array_equal(plain, denoised("disc", mask, seed=1))


def test_classes_are_refined_by_themselves(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(40, 40)
    other = np.where(mask > 0.9, 0.0, mask[:, ::-1] * 0.9).astype(np.float32)
    for batch_size in (1, 2, 3):
        refiner = make_refiner(batch_size=batch_size, beta=0.1)
        refiner.set_image(image)
        rule = "constant:0.95"  # so high that no pixel is claimed twice
        both = refiner.refine({"disc": mask, "cat": other}, background=rule).probabilities
        for name, one in (("disc", mask), ("cat", other)):
            assert np.array_equal(both[name], refiner.refine({name: one}, background=rule).probabilities[name])


def test_where_classes_overlap_only_the_larger_is_injected(make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, mask = make_scene(32, 32)
    refiner = make_refiner(batch_size=2)
    refiner.set_image(image)
    refiner.refine({"disc": mask, "cat": mask * np.float32(0.9)})
    first, second = runners["unet"].calls[-1]["mask"]
    assert first.any()
    assert not second.any()


@pytest.mark.parametrize("rule", ["constant:0.5", "constant:0.2", "power:2", "channel"])
def test_the_injected_masks_are_the_label_map(rule: str, make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, mask = make_scene(32, 32)
    other, background = np.roll(mask, 12, axis=1) * np.float32(0.9), np.full((32, 32), 0.6, dtype=np.float32)
    masks = {"disc": mask, "cat": other}
    refiner = make_refiner(batch_size=2)
    refiner.set_image(image)
    given = {"background": background, **masks} if rule == "channel" else masks
    refined = refiner.refine(given, background=rule)
    assert list(refined.probabilities) == ["disc", "cat"], "the background's map is no class"
    labels = label_map([mask, other], rule, background)
    centres = 4 * np.arange(8) + 2
    injected = runners["unet"].calls[-1]["mask"][:, 0]
    for label, one in enumerate(injected, start=1):
        assert np.array_equal(one, (labels == label)[np.ix_(centres, centres)]), label
        assert one.any()
    streamed = [result for _, result in refiner.refine_many([(0, lambda: (image, given))], background=rule)]
    assert np.array_equal(runners["unet"].calls[-1]["mask"][:, 0], injected)
    assert np.array_equal(streamed[0].probabilities["disc"], refined.probabilities["disc"])  # type: ignore[union-attr]


def test_one_class_is_injected_from_one_half_on(make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, _ = make_scene(8, 8)
    mask = np.repeat(np.array([[0.3, 0.49999, 0.5, 0.9]], dtype=np.float32), 2, axis=1).repeat(8, axis=0)
    refiner = make_refiner()
    refiner.set_image(image)
    refiner.refine({"disc": mask})
    assert runners["unet"].calls[-1]["mask"][0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_background_rules_that_cannot_be_used(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(20, 20)
    refiner = make_refiner()
    refiner.set_image(image)
    with pytest.raises(ConfigError, match="'often'"):
        refiner.refine({"disc": mask}, background="often")
    with pytest.raises(ConfigError, match="'often'"):
        refiner.refine_many([], background="often")
    with pytest.raises(ConfigError, match='a mask of the class "background"'):
        refiner.refine({"disc": mask}, background="channel")
    with pytest.raises(MaskError, match="beside the one of the background"):
        refiner.refine({"background": mask}, background="channel")
    with pytest.raises(MaskError, match=r"'background'.*same size"):
        refiner.refine({"disc": mask, "background": mask[:3]}, background="channel")
    assert list(refiner.refine({"background": mask}).probabilities) == ["background"], "a class like any other"


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "is empty"), (1.0, "covers the whole image"), (0.4, "is 0.4 everywhere")]
)
def test_masks_without_a_contour_stay_with_a_warning(
    value: float, message: str, make_refiner: Make, make_scene: Scene, runners: Any
) -> None:
    image, mask = make_scene(20, 30)
    constant = np.full((20, 30), value, dtype=np.float32)
    refiner = make_refiner(certainty_filter=None)
    refiner.set_image(image)
    refined = refiner.refine({"disc": constant})
    assert np.array_equal(refined.probabilities["disc"], constant)
    assert len(refined.warnings) == 1
    assert f"'disc' {message}" in refined.warnings[0]
    assert not runners["unet"].calls
    # Beside another class, and when the generated image is asked for.
    both = refiner.refine({"disc": constant, "cat": mask}, keep=["generated"])
    assert np.array_equal(both.probabilities["disc"], constant)
    assert not np.array_equal(both.probabilities["cat"], mask)
    assert set(both.generated) == {"disc", "cat"}


def test_classes_of_which_the_same_is_true_share_a_warning(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(20, 30)
    refiner = make_refiner()
    refiner.set_image(image)
    masks = {"disc": mask, "full": np.ones_like(mask)}
    masks |= {f"none {number}": np.zeros_like(mask) for number in range(6)}
    refined = refiner.refine(masks)
    assert refined.warnings[1:] == [
        "the mask of 'full' covers the whole image: it stays as it is",
        "each of 6 masks ('none 0', 'none 1', 'none 2', 'none 3' and 2 more) is empty: it stays as it is",
    ]


def test_a_mask_too_faint_to_be_injected(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(40, 40)
    faint = mask * np.float32(0.45)
    refiner = make_refiner(beta=0.1)
    refiner.set_image(image)
    refined = refiner.refine({"disc": faint})
    assert not np.array_equal(refined.probabilities["disc"], faint)
    assert ["holds no position" in warning for warning in refined.warnings] == [True]
    off = refiner.refine({"disc": faint}, config=RefineConfig(emi_self=0.0, emi_cross=0.0))
    assert off.warnings == []


def test_beta_of_one_is_the_identity(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(33, 47)
    for settings in ({}, {"certainty_filter": None}):
        refiner = make_refiner(beta=1.0, **settings)
        refiner.set_image(image)
        assert np.array_equal(refiner.refine({"disc": mask}).probabilities["disc"], mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 5000), (5000, 30), (2, 3)])
def test_extreme_sizes(size: tuple[int, int], make_refiner: Make, make_scene: Scene) -> None:
    image, _ = make_scene(*size)
    mask = np.random.default_rng(0).random(size, dtype=np.float32)
    refiner = make_refiner(certainty_filter=None)
    refiner.set_image(image)
    for given in (mask, mask > 0.5):
        probability = refiner.refine({"disc": given}).probabilities["disc"]
        assert probability.shape == size
        assert 0 <= probability.min() <= probability.max() <= 1


def test_the_image_is_encoded_once_and_texts_are_kept(make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, mask = make_scene(20, 20)
    refiner = make_refiner()
    refiner.set_image(image)
    for _ in range(3):
        refiner.refine({"disc": mask, "a  cat": mask.T.copy()})
    refiner.refine({"a cat": mask})
    assert len(runners["vae_encoder"].calls) == 1
    assert len(runners["text_encoder"].calls) == 2
    refiner.set_image(image)
    assert len(runners["vae_encoder"].calls) == 2


def test_label_maps_of_a_refinement(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(24, 24)
    refiner = make_refiner()
    refiner.set_image(image)
    refined = refiner.refine({"disc": mask, "cat": mask[::-1, ::-1] * np.float32(0.8)})
    stack = np.stack(list(refined.probabilities.values()))
    expected = np.where(stack.max(axis=0) >= 0.5, stack.argmax(axis=0) + 1, 0)
    assert np.array_equal(refined.label_map(), expected)
    assert set(np.unique(refined.label_map("constant:0.3"))) == {0, 1, 2}


def test_masks_in_other_types_give_the_same(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(24, 24)
    refiner = make_refiner(beta=0.2)
    refiner.set_image(image)
    hard = mask >= 0.5
    results = [refiner.refine({"disc": hard.astype(dtype)}).probabilities["disc"] for dtype in (bool, np.uint8, float)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    fortran = refiner.refine({"disc": np.asfortranarray(mask)}).probabilities["disc"]
    assert np.array_equal(fortran, refiner.refine({"disc": mask}).probabilities["disc"])


def test_the_caller_s_arrays_are_not_changed(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(24, 24)
    before = image.copy(), mask.copy()
    refiner = make_refiner(beta=0.0, certainty_filter=None)
    refiner.set_image(image)
    refined = refiner.refine({"disc": mask})
    empty = refiner.refine({"disc": np.zeros_like(mask)})
    refined.probabilities["disc"][:] = 0.5
    empty.probabilities["disc"][:] = 0.5
    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


def test_bad_input_is_named_before_networks_run(make_refiner: Make, make_scene: Scene, runners: Any) -> None:
    image, mask = make_scene(20, 30)
    refiner = make_refiner()
    with pytest.raises(ImageError, match="call set_image first"):
        refiner.refine({"disc": mask})
    refiner.set_image(image)
    for runner in runners.values():
        runner.calls.clear()
    with pytest.raises(MaskError, match="20x30 pixels, its image is 30x20"):
        refiner.refine({"disc": mask, "cat": mask.T})
    with pytest.raises(MaskError, match="no mask"):
        refiner.refine({})
    with pytest.raises(ClassNameError, match="empty"):
        refiner.refine({"disc": mask, " ": mask})
    with pytest.raises(ClassNameError, match="tokens"):
        refiner.refine({"zzzz " * 30: mask})
    assert not any(runner.calls for runner in runners.values())


def test_a_refused_image_does_not_leave_the_last_one(make_refiner: Make, make_scene: Scene) -> None:
    image, mask = make_scene(20, 30)
    refiner = make_refiner()
    refiner.set_image(image)
    with pytest.raises(ImageError):
        refiner.set_image(image.astype(np.float32))
    with pytest.raises(ImageError, match="set_image"):
        refiner.refine({"disc": mask})


def test_engine_directories_by_name_and_path(tmp_path: Path) -> None:
    assert engine_directory("tiny") == EMBEDDED["tiny"]
    assert engine_directory("./tiny") == Path("tiny")
    assert engine_directory(Path("tiny")) == Path("tiny")
    with pytest.raises(EngineNotFoundError, match="nothing-here"):
        Refiner.from_engine(tmp_path / "nothing-here")


def test_a_refiner_without_a_directory_has_no_manifest(make_refiner: Make) -> None:
    with make_refiner() as refiner, pytest.raises(RuntimeError, match="without an engine"):
        _ = refiner.manifest
