"""Which pixels of a one-class ground truth are object, background, or do not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.dataset.measures import read_ground_truth
from g4seg_trt.errors import MaskError


def write(path: Path, values: list[int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array([values], dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("values", "region", "valid"),
    [
        ([0, 1, 255, 1], [0, 1, 0, 1], [1, 1, 0, 1]),
        ([1, 1, 255, 255], [1, 1, 0, 0], [1, 1, 0, 0]),
        ([0, 255, 255, 0], [0, 1, 1, 0], [1, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]),
        ([0, 1, 2, 255], [0, 0, 0, 1], [1, 1, 1, 1]),
        ([0, 100, 128, 255], [0, 0, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_values_of_one_class(values: list[int], region: list[int], valid: list[int], tmp_path: Path) -> None:
    truth = read_ground_truth(write(tmp_path / "t.png", values), ["disc"], (1, 4))
    assert truth.regions["disc"][0].tolist() == [bool(value) for value in region]
    assert truth.valid[0].tolist() == [bool(value) for value in valid]


def test_ones_without_an_ignored_pixel_stay_an_error(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="only the values 0 and 1"):
        read_ground_truth(write(tmp_path / "t.png", [0, 1, 1, 0]), ["disc"], (1, 4))


def test_a_pixel_that_any_class_s_file_ignores_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "t" / "disc.png", [0, 1, 255, 1])
    write(tmp_path / "t" / "star.png", [255, 0, 0, 0])
    truth: Any = read_ground_truth(tmp_path / "t", ["disc", "star"], (1, 4))
    assert truth.regions["disc"][0].tolist() == [False, True, False, True]
    assert truth.regions["star"][0].tolist() == [True, False, False, False]
    assert truth.valid[0].tolist() == [True, True, False, True]
