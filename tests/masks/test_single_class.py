"""Formats "png" and "npy": one class, whose name comes from elsewhere."""

from __future__ import annotations

import struct
import tempfile
import zlib
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
from g4seg_trt.masks import npy, soft_png
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.png import read_index_png

Array = npt.NDArray[Any]

CAT = Naming(("cat",))
TABLE = ClassTable("pets", (ClassEntry(3, "moggy", "cat"), ClassEntry(7, "dog", "dog")), background=True)
SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


def header(width: int, height: int, bits: int, colour: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed_png(rows: list[bytes], width: int, bits: int) -> bytes:
    """A grey PNG of fewer than 8 bits, which Pillow does not write."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header(width, len(rows), bits, 0) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(st.sampled_from([np.uint8, np.uint16]), SIDES).filter(lambda pixels: pixels.max() != 1))
def test_a_png_comes_back_pixel_for_pixel(pixels: Array) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.png", Path(folder) / "second.png"
        Image.fromarray(pixels).save(first)
        masks = soft_png.read(first, CAT)
        assert (masks.names, masks.ids, masks.rule, masks.background) == (("cat",), (1,), None, None)
        soft_png.write(second, masks)
        back = Image.open(second)
        assert back.mode == Image.open(first).mode
        assert (np.asarray(back) == pixels).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_grey_png_keeps_its_mode(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 255, 0], [255, 255, 0]], np.uint8))
    if mode == "P":
        grey = grey.point(lambda value: value // 255)
        grey.putpalette([0, 0, 0, 255, 255, 255])
    picture = grey if mode == "P" else grey.convert(mode)
    picture.save(tmp_path / "first.png")
    assert Image.open(tmp_path / "first.png").mode == mode
    masks = soft_png.read(tmp_path / "first.png", CAT)
    assert masks.probabilities.tolist() == [[[0, 1, 0], [1, 1, 0]]]
    soft_png.write(tmp_path / "second.png", masks)
    assert Image.open(tmp_path / "second.png").mode == mode
    assert (soft_png.read(tmp_path / "second.png", CAT).probabilities == masks.probabilities).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_hard_png_stays_hard_and_a_soft_one_soft(tmp_path: Path, dtype: type[Any]) -> None:
    top = np.iinfo(dtype).max
    refined = np.array([[[0.49, 0.5, 1.0]]], np.float32)
    for name, given_values, expected in (
        ("hard", [0, top, top], [0, top, top]),
        ("soft", [0, top // 2, top], np.rint(refined[0, 0].astype(np.float64) * top).tolist()),
    ):
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.array([given_values], dtype)).save(path)
        masks = soft_png.read(path, CAT)
        soft_png.write(path, masks.with_probabilities(refined))
        assert np.asarray(Image.open(path)).tolist() == [expected]


@settings(deadline=None, max_examples=40)
@given(
    st.data(),
    st.sampled_from(["<f2", "<f4", "<f8", ">f4", "|b1", "|u1", "<i8"]),
)
def test_an_array_comes_back_bit_for_bit(data: st.DataObject, dtype: str) -> None:
    kind = np.dtype(dtype)
    wide = {2: 16, 4: 32, 8: 64}.get(kind.itemsize, 32)
    elements = st.floats(0, 1, width=wide) if kind.kind == "f" else st.sampled_from([0, 1])  # type: ignore[arg-type]
    array = data.draw(arrays.arrays(kind, SIDES, elements=elements))
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "first.npy", array)
        masks = npy.read(Path(folder) / "first.npy", CAT)
        assert masks.probabilities.dtype == np.float32
        npy.write(Path(folder) / "second.npy", masks)
        back = np.load(Path(folder) / "second.npy")
    assert back.dtype == kind
    # float32 is what is worked with.
    assert (back == array.astype(np.float32).astype(kind)).all()


def test_truth_values_are_decided_at_a_half(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[True, False, True]]))
    masks = npy.read(tmp_path / "m.npy", CAT)
    npy.write(tmp_path / "m.npy", masks.with_probabilities(np.array([[[0.5, 0.49, 1]]], np.float32)))
    assert np.load(tmp_path / "m.npy").tolist() == [[True, False, True]]


def test_what_float16_rounds_out_of_the_range_is_clipped_and_no_more(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.array([[1.001, -0.0005, 0.25]], np.float16))
    assert npy.read(tmp_path / "m.npy", CAT).probabilities.tolist() == [[[1.0, 0.0, 0.25]]]
    np.save(tmp_path / "m.npy", np.array([[1.01, 0.25]], np.float16))
    with pytest.raises(MaskError, match=r"from 0\.25 to 1\.0"):
        npy.read(tmp_path / "m.npy", CAT)


def test_the_class_has_the_name_and_id_of_the_table(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((2, 2)))
    masks = npy.read(tmp_path / "m.npy", Naming(("cat",), TABLE))
    assert (masks.ids, masks.names) == ((3,), ("moggy",))
    only = ClassTable("cats", TABLE.classes[:1], background=True)
    assert npy.read(tmp_path / "m.npy", Naming(None, only)).ids == (3,)


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        (Naming(), "does not say its class"),
        (Naming(None, TABLE), "does not say its class"),
        (Naming(("cat", "dog")), "holds one class, not 2"),
        (Naming(("cow",), TABLE), "'cow' is not in the class table"),
    ],
)
def test_a_class_that_is_not_known_is_an_error(tmp_path: Path, naming: Naming, message: str) -> None:
    np.save(tmp_path / "m.npy", np.zeros((2, 2)))
    Image.new("L", (2, 2)).save(tmp_path / "m.png")
    for module, name in ((npy, "m.npy"), (soft_png, "m.png")):
        with pytest.raises(ClassNameError, match=message):
            module.read(tmp_path / name, naming)


def test_grey_of_two_and_four_bits_is_spread_for_masks_and_not_for_indices(tmp_path: Path) -> None:
    (tmp_path / "two.png").write_bytes(packed_png([bytes([0b00011011])], 4, 2))
    (tmp_path / "four.png").write_bytes(packed_png([bytes([0x0F, 0x52])], 4, 4))
    np.testing.assert_allclose(
        soft_png.read(tmp_path / "two.png", CAT).probabilities[0], np.array([[0, 1, 2, 3]]) / 3, atol=1e-6
    )
    assert read_index_png(tmp_path / "two.png").tolist() == [[0, 1, 2, 3]]
    assert read_index_png(tmp_path / "four.png").tolist() == [[0, 15, 5, 2]]


def test_a_very_wide_picture_is_read_and_a_huge_one_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    wide = np.zeros((2, 40_000), np.uint8)
    wide[1, -1] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    masks = soft_png.read(tmp_path / "wide.png", CAT)
    assert masks.size == (2, 40_000)
    assert masks.probabilities.sum() == 1
    # Pillow itself refuses twice its limit, we the limit.
    for height in (3_000, 30_000):
        rows = chunk(b"IDAT", zlib.compress(bytes(40_001)))
        huge = b"\x89PNG\r\n\x1a\n" + header(40_000, height, 8, 0) + rows + chunk(b"IEND", b"")
        (tmp_path / "huge.png").write_bytes(huge)
        with pytest.raises(MaskError, match="more than Pillow's limit of 89478485 pixels; make it smaller"):
            soft_png.read(tmp_path / "huge.png", CAT)
