"""Format "index-png": label pictures become one map for each class and come back as they were."""

from __future__ import annotations

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

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import index_png, soft_png
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.png import label_colours
from g4seg_trt.masks.png_kind import png_kind

Array = npt.NDArray[Any]

SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


def table_of(count: int, background: bool = True) -> ClassTable:
    entries = tuple(ClassEntry(number, f"class {number}", f"prompt {number}") for number in range(1, count + 1))
    return ClassTable(f"{count} classes", entries, background)


VOC = Naming(None, table_of(20))


def save(path: Path, values: Array, mode: str) -> None:
    picture = Image.fromarray(label_colours(256)[values]) if mode in ("RGB", "RGBA") else Image.fromarray(values)
    if mode == "P":
        picture.putpalette(label_colours(256).tobytes())
    if mode == "RGBA":
        picture = picture.convert("RGBA")
    picture.save(path)


def same_picture(one: Path, other: Path) -> bool:
    first, second = Image.open(one), Image.open(other)
    pixels = np.array_equal(np.asarray(first), np.asarray(second))
    return first.mode == second.mode and first.getpalette() == second.getpalette() and pixels


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(np.uint8, SIDES, elements=st.sampled_from([*range(21), 255])),
    st.sampled_from(["L", "P", "RGB", "RGBA"]),
)
def test_a_label_picture_comes_back_as_it_was(values: Array, mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.png", Path(folder) / "second.png"
        save(first, values, mode)
        masks = index_png.read(first, VOC)
        present = sorted(set(values.reshape(-1).tolist()) - {0, 255})
        assert masks.ids == tuple(present)
        assert masks.names == tuple(f"class {number}" for number in present)
        assert masks.rule is None
        assert masks.probabilities.shape == (len(present), *values.shape)
        for number, one in zip(present, masks.probabilities, strict=True):
            assert (one == (values == number)).all()
        assert masks.ignored is not None
        assert (masks.ignored == (values == 255)).all()
        index_png.write(second, masks)
        assert same_picture(first, second)


def test_the_likeliest_class_is_written_and_ignored_pixels_stay(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 3, 7, 255]], np.uint8), "P")
    masks = index_png.read(tmp_path / "m.png", VOC)
    refined = np.array([[[0.6, 0.49, 0.5, 0.9]], [[0.1, 0.2, 0.8, 0.9]]], np.float32)
    index_png.write(tmp_path / "out.png", masks.with_probabilities(refined))
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[3, 0, 7, 255]]


def test_a_palette_is_never_read_as_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([9, 9, 9, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "m.png")
    masks = index_png.read(tmp_path / "m.png", VOC)
    assert masks.ids == (1, 2)
    index_png.write(tmp_path / "out.png", masks)
    assert same_picture(tmp_path / "m.png", tmp_path / "out.png")


def test_a_class_beyond_a_short_palette_is_written_whole(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(tmp_path / "m.png")  # one bit a pixel
    layout = index_png.read(tmp_path / "m.png", VOC).origin
    masks = CoarseMasks((20,), ("class 20",), np.ones((1, 1, 2), np.float32), origin=layout)
    index_png.write(tmp_path / "out.png", masks)
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[20, 20]]


def test_sixteen_bits_hold_more_classes_and_255_may_be_one(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255, 299, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "m.png")
    masks = index_png.read(tmp_path / "m.png", Naming(None, table_of(300)))
    assert masks.ids == (1, 255, 299)
    assert masks.ignored is not None
    assert masks.ignored.tolist() == [[False, False, False, False, True]]
    index_png.write(tmp_path / "out.png", masks)
    assert same_picture(tmp_path / "m.png", tmp_path / "out.png")
    few = index_png.read(tmp_path / "m.png", Naming(None, table_of(299)))
    assert few.ids == (1, 255, 299)
    save(tmp_path / "m.png", np.array([[0, 255]], np.uint16), "L")
    assert index_png.read(tmp_path / "m.png", VOC).ids == ()


def test_masks_from_elsewhere_get_vocs_palette_or_sixteen_bits(tmp_path: Path) -> None:
    for number, mode in ((254, "P"), (255, "I;16"), (300, "I;16")):
        masks = CoarseMasks((1, number), ("a", "b"), np.array([[[1, 0]], [[0, 1]]], np.float32))
        index_png.write(tmp_path / "out.png", masks)
        picture = Image.open(tmp_path / "out.png")
        assert picture.mode == mode
        assert np.asarray(picture).tolist() == [[1, number]]


def test_ignored_pixels_of_masks_from_elsewhere_are_written_as_ignored(tmp_path: Path) -> None:
    ignored = np.array([[False, False, True]])
    for number, value in ((20, 255), (255, 65535), (300, 65535)):
        maps = np.array([[[1, 0, 1]]], np.float32)
        index_png.write(tmp_path / "out.png", CoarseMasks((number,), ("a",), maps, ignored=ignored))
        assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[number, 0, value]]


def test_only_the_classes_asked_for_are_refined_and_the_others_stay(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 3, 7, 255]], np.uint8), "P")
    naming = Naming(("prompt 7",), VOC.table)
    masks = index_png.read(tmp_path / "m.png", naming)
    assert (masks.ids, masks.names) == ((7,), ("class 7",))
    index_png.write(tmp_path / "out.png", masks)
    assert same_picture(tmp_path / "m.png", tmp_path / "out.png")
    index_png.write(tmp_path / "out.png", masks.with_probabilities(np.ones((1, 1, 4), np.float32)))
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[7, 3, 7, 255]]
    with pytest.raises(MaskError, match=r"m\.png: no class 'class 5', it holds class 3, class 7"):
        index_png.read(tmp_path / "m.png", Naming(("class 5",), VOC.table))
    with pytest.raises(ClassNameError, match="asked for twice"):
        index_png.read(tmp_path / "m.png", Naming(("class 7", "prompt 7"), VOC.table))
    with pytest.raises(MaskError, match="the masks are 4x1 pixels, the image is 1x4"):
        index_png.read(tmp_path / "m.png", Naming(None, VOC.table, size=(4, 1)))


@pytest.mark.parametrize("reader", [index_png.read, soft_png.read, png_kind])
def test_another_picture_under_the_name_of_a_png_is_refused(tmp_path: Path, reader: Any) -> None:
    (tmp_path / "m.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n")
    with pytest.raises(MaskError, match=r"not a picture of a known format \(PNG\), or damaged"):
        reader(tmp_path / "m.png", VOC)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "m.bmp")
    (tmp_path / "m.bmp").rename(tmp_path / "m.png")
    with pytest.raises(MaskError, match="PNG"):
        reader(tmp_path / "m.png", VOC)


def test_zero_is_ignored_where_it_is_no_class(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 1, 255]], np.uint8), "L")
    masks = index_png.read(tmp_path / "m.png", Naming(None, table_of(20, background=False)))
    assert masks.ignored is not None
    assert masks.ignored.tolist() == [[True, False, True]]
    index_png.write(tmp_path / "out.png", masks.with_probabilities(np.ones_like(masks.probabilities)))
    assert np.asarray(Image.open(tmp_path / "out.png")).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("values", [[[0, 0]], [[255, 255]], [[0, 255]]])
def test_a_picture_without_a_class_is_read_and_written(tmp_path: Path, values: list[list[int]]) -> None:
    save(tmp_path / "m.png", np.array(values, np.uint8), "P")
    for naming in (VOC, Naming(("cat",)), Naming()):
        masks = index_png.read(tmp_path / "m.png", naming)
        assert masks.ids == ()
        assert masks.probabilities.shape == (0, 1, 2)
        index_png.write(tmp_path / "out.png", masks)
        assert same_picture(tmp_path / "m.png", tmp_path / "out.png")


def test_without_a_table_the_names_have_to_be_as_many_as_the_ids(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.array([[0, 1]], np.uint8), "L")
    assert index_png.read(tmp_path / "m.png", Naming(("cat",))).names == ("cat",)
    with pytest.raises(ClassNameError, match="--dataset or --class-table"):
        index_png.read(tmp_path / "m.png", Naming())


def test_an_id_outside_the_table_is_refused_before_any_map_is_made(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.arange(256, dtype=np.uint8).reshape(16, 16), "L")
    with pytest.raises(ClassNameError, match="class id 21 is not in the class table"):
        index_png.read(tmp_path / "m.png", VOC)


def test_a_colour_that_voc_does_not_have_is_named(tmp_path: Path) -> None:
    colours = label_colours(256)[np.array([[0, 1], [2, 15]])].copy()
    colours[1, 0] = (120, 120, 80)
    Image.fromarray(colours).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match=r"the colour \(120, 120, 80\) at x 0, y 1 is none of PASCAL VOC's"):
        index_png.read(tmp_path / "m.png", VOC)
    Image.new("RGBA", (2, 2), (128, 0, 0, 10)).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match="transparent"):
        index_png.read(tmp_path / "m.png", VOC)
    Image.new("LA", (2, 2)).save(tmp_path / "m.png")
    with pytest.raises(MaskError, match="mode LA"):
        index_png.read(tmp_path / "m.png", VOC)


def test_every_one_of_vocs_colours_stands_for_its_index(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "m.png", values, "RGB")
    masks = index_png.read(tmp_path / "m.png", Naming(None, table_of(254)))
    assert masks.ids == tuple(range(1, 255))
    assert (masks.probabilities.argmax(axis=0).reshape(-1)[1:255] == np.arange(254)).all()


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such file"):
        index_png.read(tmp_path / "m.png", VOC)
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(MaskError, match=r"m\.png"):
        index_png.read(tmp_path / "m.png", VOC)
