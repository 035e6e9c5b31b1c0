"""PNG masks: what is read, what is refused, and that writing and reading are inverse."""

from __future__ import annotations

import io
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.png import label_colours, read_index_png, read_png, write_label_png, write_png

Array = npt.NDArray[Any]

SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
SOFT = np.array([[0, 1, 2], [128, 254, 255]], dtype=np.uint8)


def png_bytes(array: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.uint16, SIDES))
def test_sixteen_bit_values_survive_reading_and_writing(pixels: Array) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.png", Path(folder) / "second.png"
        Image.fromarray(pixels).save(first)
        probability = read_png(first)
        assert probability.dtype == np.float32
        assert probability.shape == pixels.shape
        np.testing.assert_allclose(probability, pixels / 65535, atol=1e-7)
        write_png(second, probability)
        assert (np.asarray(Image.open(second)) == pixels).all()


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.float32, SIDES, elements=st.floats(0, 1, width=32)))
def test_written_probabilities_come_back_within_half_a_level(probability: Array) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        write_png(path, probability)
        back = read_png(path)
    assert np.abs(back - probability).max() <= 0.5 / 65535 + 1e-7
    assert ((back == 1) >= (probability == 1)).all()
    assert ((back == 0) >= (probability == 0)).all()


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint8, SIDES).filter(lambda pixels: pixels.max() != 1))
def test_eight_bit_values_are_over_255(pixels: Array) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        Image.fromarray(pixels).save(path)
        np.testing.assert_allclose(read_png(path), pixels / 255, atol=1e-7)


def test_a_hard_mask_is_exactly_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).save(tmp_path / "mask.png")
    assert read_png(tmp_path / "mask.png").tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_grey_stored_in_another_mode_is_the_same_mask(mode: str) -> None:
    pixels = np.array([[0, 255], [255, 0]], dtype=np.uint8) if mode == "1" else SOFT
    grey = Image.fromarray(pixels)
    if mode == "P":
        picture = Image.fromarray(255 - pixels)
        picture = picture.convert("P")
        picture.putpalette([value for level in range(255, -1, -1) for value in (level, level, level)])
    else:
        picture = grey.convert(mode)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        picture.save(path)
        assert Image.open(path).mode == mode
        np.testing.assert_allclose(read_png(path), pixels / 255, atol=1e-7)


def test_an_index_picture_is_no_mask(tmp_path: Path) -> None:
    write_label_png(tmp_path / "label.png", np.array([[0, 1, 2]], dtype=np.uint8), 2)
    with pytest.raises(MaskError, match="has colours"):
        read_png(tmp_path / "label.png")


def test_transparent_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 255, 255, 128)).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="transparent"):
        read_png(tmp_path / "mask.png")


def test_a_mask_of_zeros_and_ones_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="multiply by 255"):
        read_png(tmp_path / "mask.png")


def test_an_empty_mask_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "mask.png")
    assert not read_png(tmp_path / "mask.png").any()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"no mask here\.png: no such file"):
        read_png(tmp_path / "no mask here.png")


def test_cut_files_give_the_typed_error(tmp_path: Path) -> None:
    whole = png_bytes(np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))
    path = tmp_path / "cut.png"
    for length in range(0, len(whole) - 30, 61):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskError) as caught:
            read_png(path)
        assert "\n" not in str(caught.value)


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    whole = bytearray(png_bytes(np.arange(900).reshape(30, 30).astype(np.uint16)))
    path = tmp_path / "damaged.png"
    chance = random.Random(0)
    failed = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_png(path)
        except MaskError:
            failed += 1
    assert failed > 100


def test_a_picture_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(SOFT).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(MaskError, match="limit"):
        read_png(tmp_path / "large.png")


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint16, SIDES), st.sampled_from([2, 200, 255, 256, 60000]))
def test_label_maps_survive(label: Array, classes: int) -> None:
    label = label % (classes + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.png"
        write_label_png(path, label, classes)
        assert (read_index_png(path) == label).all()


def test_one_class_is_written_as_0_and_255(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    write_label_png(path, np.array([[0, 1]], dtype=np.uint8), 1)
    picture = Image.open(path)
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 255]]
    assert read_png(path).tolist() == [[0, 1]]


def test_a_colour_picture_is_no_index_picture(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "label.png")
    with pytest.raises(MaskError, match="mode RGB"):
        read_index_png(tmp_path / "label.png")


def test_the_palette_is_that_of_pascal_voc() -> None:
    colours = label_colours(256)
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        255: (224, 224, 192),
    }
    for index, colour in known.items():
        assert tuple(colours[index]) == colour
    assert len({tuple(colour) for colour in colours}) == 256
