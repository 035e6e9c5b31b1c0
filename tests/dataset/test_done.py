"""Pictures of images that are done: what of a change is called right, wrong, or neither."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from g4seg_trt import DatasetSource
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.done import draw_done
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.overlay import class_colour
from g4seg_trt.report import Pictures
from g4seg_trt.report.pictures import BETTER, OTHER, WORSE

Pixels = npt.NDArray[np.int64]
Draw = Callable[..., Pictures]
CAT, DOG, BIRD = 8, 12, 3
ROWS, COLUMNS = 40, 120


def bands(*labels: int) -> npt.NDArray[np.uint8]:
    """A label picture: these labels from left to right, each as wide as the others."""
    return np.repeat(np.array(labels, np.uint8), COLUMNS // len(labels))[None].repeat(ROWS, axis=0)


def middles(picture: bytes | None, count: int) -> list[Pixels]:
    """The pixels in the middle of each band."""
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(np.int64)
    assert pixels.shape == (ROWS, COLUMNS, 3)
    width = COLUMNS // count
    return [pixels[ROWS // 2, width // 2 + width * band] for band in range(count)]


def near(pixel: Pixels, colour: tuple[int, int, int] | tuple[float, ...], most: int = 30) -> bool:
    return bool(np.abs(pixel - np.array(colour)).max() < most)


def tinted(label: int) -> tuple[float, ...]:
    return tuple(0.55 * 200 + 0.45 * channel for channel in class_colour(label))


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """draw(coarse, refined, truth, **how) -> the pictures of one image with these label pictures of VOC's ids.

    The truth is another one, or class -> picture of 0 and 255.
    """

    def made(coarse: Any, refined: Any, truth: Any, **how: Any) -> Pictures:
        layout = Layout(tmp_path / "out", named=True)
        for folder, values in (
            (tmp_path / "images", np.full((ROWS, COLUMNS, 3), 200, np.uint8)),
            (tmp_path / "masks", coarse),
            (layout.root / "label", refined),
        ):
            folder.mkdir(parents=True)
            Image.fromarray(values).save(folder / "a.png")
        several = isinstance(truth, dict)
        (tmp_path / "truth" / ("a" if several else "")).mkdir(parents=True)
        for name, values in (truth if several else {"a": truth}).items():
            Image.fromarray(values).save(tmp_path / "truth" / ("a" if several else "") / f"{name}.png")
        options = {"table": ClassTable.of_dataset("voc12"), **how}
        source = DatasetSource.from_folders(
            tmp_path / "images", tmp_path / "masks", truth=tmp_path / "truth", **options
        )
        pictures = draw_done(source.item(0), layout, None, source.table)
        assert pictures is not None
        return pictures

    return made


def test_a_class_that_the_masks_miss_is_neither_background_nor_one_of_theirs(draw: Draw) -> None:
    pictures = draw(
        bands(CAT, 0, CAT, 0, BIRD, CAT), bands(0, CAT, CAT, BIRD, 0, BIRD), bands(DOG, DOG, DOG, BIRD, BIRD, 0)
    )
    changed = middles(pictures.changed, 6)
    assert near(changed[0], OTHER), "a dog is not background"
    assert near(changed[1], OTHER), "it was wrong before"
    assert near(changed[2], (90, 90, 90)), "no change"
    assert near(changed[3], BETTER)
    assert near(changed[4], WORSE)
    assert near(changed[5], OTHER)
    # Places are in the order of the ids: bird, cat, and then all others.
    assert all(near(pixel, tinted(3)) for pixel in middles(pictures.truth, 6)[:3]), "the dog is shown"
    assert all(near(pixel, tinted(1)) for pixel in middles(pictures.truth, 6)[3:5])
    assert near(middles(pictures.truth, 6)[5], (200, 200, 200))
    assert near(middles(pictures.before, 6)[0], tinted(2))


def test_pixels_that_do_not_count_are_neither_right_nor_wrong(draw: Draw) -> None:
    pictures = draw(bands(CAT, 0, CAT), bands(0, CAT, CAT), bands(255, 255, DOG))
    assert all(near(pixel, OTHER) for pixel in middles(pictures.changed, 3)[:2])
    assert all(near(pixel, (193, 193, 193), 8) for pixel in middles(pictures.truth, 3)[:2]), "veiled"


def test_pixels_of_two_true_classes_do_not_count(draw: Draw) -> None:
    truth = {"cat": bands(255, 255, 0), "dog": bands(0, 255, 255)}
    pictures = draw(bands(0, 0, CAT), bands(CAT, CAT, 0), truth)
    found = middles(pictures.changed, 3)
    assert near(found[0], BETTER)
    assert near(found[1], OTHER)
    assert near(found[2], OTHER), "a dog is not background"
    assert near(middles(pictures.truth, 3)[1], (193, 193, 193), 8)


def test_an_image_without_classes_shows_what_it_misses(draw: Draw) -> None:
    pictures = draw(bands(0, 0), bands(0, 0), bands(DOG, 0))
    assert near(middles(pictures.truth, 2)[0], tinted(1))
    assert near(middles(pictures.truth, 2)[1], (200, 200, 200))


def test_without_a_table_truth_has_the_classes_in_their_order(draw: Draw) -> None:
    """Label pictures of masks then have ids of their own."""
    pictures = draw(
        bands(7, 0, 4), bands(0, 7, 7), bands(0, 2, 2), table=None, classes={"a": ("bird", "cat")}, format="index-png"
    )
    assert near(middles(pictures.changed, 3)[0], BETTER)
    assert near(middles(pictures.changed, 3)[1], BETTER)
    assert near(middles(pictures.changed, 3)[2], BETTER)
    assert near(middles(pictures.truth, 3)[1], tinted(2))
