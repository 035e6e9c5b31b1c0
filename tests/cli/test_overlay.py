"""The before | after picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.errors import OutputError
from g4seg_trt.overlay import draw_overlay, write_overlay

GREY = np.full((64, 64, 3), 128, np.uint8)


def halves(shape: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    before[:, : shape[1] // 2] = 1
    after[: shape[0] // 2] = 1
    return before, after


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    picture = draw_overlay(GREY, *halves())
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 2 * 6 * 64 + 12
    assert picture.shape[0] > 6 * 64


def test_both_sides_show_their_own_mask_and_leave_the_rest_alone() -> None:
    picture = draw_overlay(GREY, *halves()).astype(int)
    title = picture.shape[0] - 6 * 64
    left, right = picture[title:, : 6 * 64], picture[title:, 6 * 64 + 12 :]
    quarter, three = 6 * 16, 6 * 48
    for panel, inside, outside in (
        (left, (three, quarter), (quarter, three)),
        (right, (quarter, three), (three, quarter)),
    ):
        assert (panel[outside] == 128).all()
        assert panel[inside][0] > panel[inside][2] + 30, "tinted red"
        assert (panel[quarter, quarter] != 128).any()
        assert (panel[three, three] == 128).all()


def test_classes_have_colours_and_a_legend() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:20] = 1
    labels[30:] = 2
    plain, named = draw_overlay(GREY, labels, labels), draw_overlay(GREY, labels, labels, ["cat", "a" * 500])
    title = plain.shape[0] - 6 * 64
    one, two = plain[title + 40, 100].astype(int), plain[title + 300, 100].astype(int)
    assert np.abs(one - two).max() > 60
    assert named.shape[0] > plain.shape[0]
    assert (named[: plain.shape[0]] == plain).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 900), (900, 30), (3, 2)])
def test_any_shape(shape: tuple[int, int]) -> None:
    picture = draw_overlay(np.zeros((*shape, 3), np.uint8), *halves(shape), ["猫", "cat"])
    assert picture.shape[0] * picture.shape[1] < 10_000_000


def test_wide_pictures_are_stacked() -> None:
    wide = draw_overlay(np.zeros((100, 800, 3), np.uint8), *halves((100, 800)))
    assert wide.shape[1] == 800
    assert wide.shape[0] > 200


def test_large_pictures_are_reduced() -> None:
    picture = draw_overlay(np.zeros((3001, 4003, 3), np.uint8), *halves((3001, 4003)))
    assert picture.shape[1] < 2 * 4003 / 1.5


def test_formats(tmp_path: Path) -> None:
    picture = draw_overlay(GREY, *halves())
    for name, kind in (("o.png", "PNG"), ("o.JPG", "JPEG"), ("o.jpeg", "JPEG")):
        write_overlay(tmp_path / name, picture)
        with Image.open(tmp_path / name) as written:
            assert written.format == kind
            assert written.size == (picture.shape[1], picture.shape[0])
    with pytest.raises(OutputError, match=r"\.png, \.jpg, \.jpeg"):
        write_overlay(tmp_path / "o.gif", picture)
