"""Format "array": all classes of an image in one array, channels first or last."""

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

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import stack
from g4seg_trt.masks.coarse import Naming

Array = npt.NDArray[Any]

ENTRIES = (ClassEntry(2, "moggy", "cat"), ClassEntry(5, "dog", "dog"), ClassEntry(9, "tvmonitor", "tv monitor"))
TABLE = ClassTable("pets", ENTRIES, background=True)
BARE = ClassTable("pets", ENTRIES, background=False)


@settings(deadline=None, max_examples=40)
@given(
    st.data(),
    st.integers(5, 7),
    st.integers(5, 8),
    st.sampled_from([3, 4]),
    st.sampled_from([np.float16, np.float32, np.float64, np.bool_, np.uint8]),
    st.booleans(),
)
def test_an_array_comes_back_value_for_value(
    data: st.DataObject, height: int, width: int, channels: int, dtype: type[Any], last: bool
) -> None:
    values = st.floats(0, 1, width=16) if np.dtype(dtype).kind == "f" else st.sampled_from([0, 1])
    array = data.draw(arrays.arrays(dtype, (channels, height, width), elements=values))
    given_array = np.ascontiguousarray(np.moveaxis(array, 0, 2)) if last else array
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.npy", Path(folder) / "second.npy"
        np.save(first, given_array)
        masks = stack.read(first, Naming(None, TABLE))
        assert (masks.ids, masks.names) == ((2, 5, 9), ("moggy", "dog", "tvmonitor"))
        assert (masks.probabilities == array[-3:].astype(np.float32)).all()
        assert (masks.background is None) == (channels == 3)
        assert str(masks.rule) == ("None" if channels == 3 else "channel")
        stack.write(second, masks)
        back = np.load(second)
    assert back.dtype == given_array.dtype
    assert back.shape == given_array.shape
    assert (back == given_array).all()


def test_only_the_wanted_channels_are_read_and_only_they_change(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 4 * 6 * 7, dtype=np.float32).reshape(4, 6, 7)
    np.save(tmp_path / "m.npy", array)
    masks = stack.read(tmp_path / "m.npy", Naming(("tv monitor", "cat"), TABLE))
    assert (masks.ids, masks.names) == ((9, 2), ("tvmonitor", "moggy"))
    assert (masks.probabilities == array[[3, 1]]).all()
    refined = np.stack([np.full((6, 7), 0.25, np.float32), np.full((6, 7), 0.75, np.float32)])
    stack.write(tmp_path / "out.npy", masks.with_probabilities(refined))
    back = np.load(tmp_path / "out.npy")
    assert (back[[0, 2]] == array[[0, 2]]).all()
    assert (back[3] == 0.25).all()
    assert (back[1] == 0.75).all()


def test_without_a_table_the_channels_are_the_names(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((6, 7, 2)))
    masks = stack.read(tmp_path / "m.npy", Naming(("zebra", "ant")))
    assert (masks.ids, masks.names, masks.size) == ((1, 2), ("zebra", "ant"), (6, 7))


def test_as_many_names_as_channels_are_the_channels_even_with_a_table(tmp_path: Path) -> None:
    array = np.stack([np.zeros((6, 7)), np.ones((6, 7))])
    np.save(tmp_path / "m.npy", array)
    masks = stack.read(tmp_path / "m.npy", Naming(("dog", "cat"), TABLE))
    assert masks.ids == (5, 2)
    assert masks.probabilities.mean(axis=(1, 2)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("shape", "naming", "message"),
    [
        ((3, 8, 3), Naming(None, TABLE), r"several ways \(the 3 classes of pets on axis 0; the 3 classes of .* 2\)"),
        ((3, 8, 4), Naming(None, TABLE), r"\(background and the 3 classes of pets on axis 2; the 3 classes of .* 0\)"),
        (
            (2, 8, 3),
            Naming(("dog", "cat"), TABLE),
            r"several ways \(the 2 classes on axis 0; the 3 classes of pets on axis 2",
        ),
        (
            (3, 8, 9),
            Naming(("tvmonitor", "dog", "cat"), TABLE),
            r"\(the 3 classes of pets on axis 0; the 3 classes on axis 0\)",
        ),
        ((5, 8, 9), Naming(None, TABLE), "expected 3 or 4 channels, first or last"),
        ((4, 8, 9), Naming(None, BARE), "expected 3 channels, first or last"),
        ((5, 8, 9), Naming(("dog",)), "expected 1 channels"),
        ((8, 3), Naming(None, TABLE), r"shape \[8, 3\], expected \[classes"),
        ((3, 0, 3), Naming(None, TABLE), r"shape \[3, 0, 3\], expected \[classes"),
    ],
)
def test_shapes_that_do_not_say_which_axis_is_which_are_refused(
    tmp_path: Path, shape: tuple[int, ...], naming: Naming, message: str
) -> None:
    np.save(tmp_path / "m.npy", np.zeros(shape))
    with pytest.raises(MaskError, match=message) as caught:
        stack.read(tmp_path / "m.npy", naming)
    assert "m.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_channel_is_told_by_its_class(tmp_path: Path) -> None:
    array = np.zeros((3, 6, 7))
    array[1, 2, 3] = np.nan
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(MaskError, match=r"m\.npy, class 'dog'.*1 values that are NaN"):
        stack.read(tmp_path / "m.npy", Naming(None, TABLE))
    np.save(tmp_path / "m.npy", np.full((3, 6, 7), 255, np.uint8))
    with pytest.raises(MaskError, match="divide 8-bit masks by 255"):
        stack.read(tmp_path / "m.npy", Naming(None, TABLE))


def test_classes_have_to_be_known(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((3, 6, 7)))
    with pytest.raises(ClassNameError, match="does not say its classes"):
        stack.read(tmp_path / "m.npy", Naming())
    with pytest.raises(ClassNameError, match="'cow' is not in the class table"):
        stack.read(tmp_path / "m.npy", Naming(("cow",), TABLE))
    with pytest.raises(MaskError, match="no such file"):
        stack.read(tmp_path / "missing.npy", Naming(None, TABLE))
