"""Format "npz": maps under the names of their classes; and what it shares with the format "class-folder"."""

from __future__ import annotations

import io
import tempfile
import tracemalloc
import warnings
import zipfile
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
from g4seg_trt.masks import class_folder, npz
from g4seg_trt.masks.array import read_npz
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.update import BackgroundRule

Array = npt.NDArray[Any]

TABLE = ClassTable("pets", (ClassEntry(3, "moggy", "cat"), ClassEntry(7, "dog", "dog")), background=True)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
FLOATS = st.sampled_from([np.float16, np.float32, np.float64])


@st.composite
def archives(draw: st.DrawFn) -> dict[str, Array]:
    size = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7))
    names = draw(st.lists(NAMES.filter(lambda name: name != "background"), min_size=1, max_size=4, unique=True))
    values = st.floats(0, 1, width=16)
    maps = {name: draw(arrays.arrays(draw(FLOATS), size, elements=values)) for name in names}
    if draw(st.booleans()):
        maps["background"] = draw(arrays.arrays(np.float32, size, elements=values))
    return maps


def save(path: Path, maps: dict[str, Array]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in maps.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, one)


@settings(deadline=None, max_examples=40)
@given(archives())
def test_an_archive_comes_back_with_its_names_order_and_dtypes(maps: dict[str, Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.npz", Path(folder) / "second.npz"
        save(first, maps)
        masks = npz.read(first, Naming())
        classes = [name for name in maps if name != "background"]
        assert list(masks.names) == classes
        assert masks.ids == tuple(range(1, len(classes) + 1))
        assert (masks.background is None) == ("background" not in maps)
        npz.write(second, masks)
        with zipfile.ZipFile(second) as archive:
            back = {name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name))) for name in archive.namelist()}
    assert list(back) == list(maps)
    for name, one in maps.items():
        assert back[name].dtype == one.dtype
        assert (back[name] == one).all()


def test_the_background_brings_its_rule_unless_it_is_wanted_as_a_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", background=np.full((2, 2), 0.75), cat=np.zeros((2, 2)))
    masks = npz.read(tmp_path / "m.npz", Naming(("cat",)))
    assert masks.names == ("cat",)
    assert masks.background is not None
    assert masks.background.tolist() == [[0.75] * 2] * 2
    assert str(masks.rule) == "channel"
    masks = npz.read(tmp_path / "m.npz", Naming(("cat", "background")))
    assert masks.names == ("cat", "background")
    assert masks.background is None
    assert masks.rule is None


def test_names_are_those_of_the_table_and_the_file_keeps_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", dog=np.zeros((2, 2)), cat=np.ones((2, 2)))
    for naming in (Naming(None, TABLE), Naming(("dog", "moggy"), TABLE), Naming(("dog", "cat"), TABLE)):
        masks = npz.read(tmp_path / "m.npz", naming)
        assert (masks.ids, masks.names) == ((7, 3), ("dog", "moggy"))
        assert masks.probabilities.mean(axis=(1, 2)).tolist() == [0, 1]
        npz.write(tmp_path / "back.npz", masks)
        assert list(read_npz(tmp_path / "back.npz")) == ["dog", "cat"]


def test_only_the_wanted_classes_are_unpacked(tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"cat": np.ones((2, 3)), "broken": np.full((5, 5), np.nan)})
    assert npz.read(tmp_path / "m.npz", Naming(("cat",))).size == (2, 3)
    with pytest.raises(MaskError, match=r"'broken'.*NaN"):
        npz.read(tmp_path / "m.npz", Naming())


def test_an_array_without_a_name_has_any(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", np.full((2, 2), 0.5))
    masks = npz.read(tmp_path / "m.npz", Naming(("cat",), TABLE))
    assert (masks.ids, masks.names) == ((3,), ("moggy",))
    npz.write(tmp_path / "back.npz", masks)
    assert list(read_npz(tmp_path / "back.npz")) == ["arr_0"]


def test_an_array_without_a_name_has_one_class_at_most(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", np.full((2, 2), 0.5))
    with pytest.raises(MaskError, match="no class 'cat', it holds arr_0"):
        npz.read(tmp_path / "m.npz", Naming(("cat", "dog")))


def test_an_empty_name_is_one_too(tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"": np.zeros((2, 2)), "dog": np.ones((2, 2))})
    masks = npz.read(tmp_path / "m.npz", Naming())
    assert masks.names == ("", "dog")
    assert masks.probabilities.mean(axis=(1, 2)).tolist() == [0, 1]


def test_no_class_asked_for_is_told(tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"dog": np.ones((2, 2))})
    with pytest.raises(MaskError, match="no map of any class"):
        npz.read(tmp_path / "m.npz", Naming(()))


def test_arrays_that_were_not_asked_for_are_in_the_written_file(tmp_path: Path) -> None:
    others: dict[str, Array] = {
        "broken": np.full((5, 5), np.nan),
        "note": np.array("taken in 2007"),
        "size": np.array(7, np.int16),
        "cow": np.random.default_rng(0).random((2, 3)),
        "empty": np.zeros((0, 3), np.float16),
    }
    maps = {"broken": others["broken"], "dog": np.zeros((2, 3), np.float16), **others, "background": np.ones((2, 3))}
    save(tmp_path / "m.npz", maps)
    masks = npz.read(tmp_path / "m.npz", Naming(("dog",)))
    npz.write(tmp_path / "m.npz", masks.with_probabilities(np.full((1, 2, 3), 0.5, np.float32)))  # over itself
    with np.load(tmp_path / "m.npz") as back:
        assert list(back) == list(maps)
        assert (back["dog"] == np.float16(0.5)).all()
        assert (back["background"] == 1).all()
        for name, one in others.items():
            assert (back[name].dtype, back[name].shape) == (one.dtype, one.shape)
            assert back[name].tobytes() == one.tobytes()
    (tmp_path / "m.npz").unlink()
    with pytest.raises(MaskError, match=r"m\.npz: no such file"):
        npz.write(tmp_path / "out.npz", masks)
    save(tmp_path / "m.npz", {"dog": maps["dog"]})
    with pytest.raises(MaskError, match="'broken' is no longer there"):
        npz.write(tmp_path / "out.npz", masks)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_an_array_too_large_to_be_passed_on_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("cat.npy", npy_header((1, 1)) + np.array([0.5], "<f4").tobytes())
        archive.writestr("huge.npy", npy_header((40_000, 40_000)))
    with pytest.raises(
        MaskError, match=r"'huge' is an array \[40000, 40000\] of float32, which is too large to be passed on"
    ):
        npz.read(tmp_path / "m.npz", Naming(("cat",)))


@pytest.mark.parametrize("kind", ["npz", "class-folder"])
def test_maps_are_held_once(tmp_path: Path, kind: str) -> None:
    count, height, width = 30, 300, 200
    one = np.random.default_rng(0).random((height, width)).astype(np.float16)
    if kind == "npz":
        np.savez(tmp_path / "m", **{str(number): one for number in range(count)})  # type: ignore[arg-type]
        reader, path = npz.read, tmp_path / "m.npz"
    else:
        for number in range(count):
            np.save(tmp_path / f"{number}.npy", one)
        reader, path = class_folder.read, tmp_path
    tracemalloc.start()
    try:
        masks = reader(path, Naming(size=(height, width)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = masks.probabilities.nbytes
    assert whole == count * height * width * 4
    assert whole < peak < 1.35 * whole


def test_an_archive_of_the_background_alone_is_an_image_without_classes(tmp_path: Path) -> None:
    save(tmp_path / "m.npz", {"background": np.ones((2, 3))})
    masks = npz.read(tmp_path / "m.npz", Naming())
    assert (masks.ids, masks.names, masks.size, masks.rule) == ((), (), (2, 3), BackgroundRule("channel", 0.0))
    npz.write(tmp_path / "back.npz", masks)
    assert read_npz(tmp_path / "back.npz")["background"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("maps", "naming", "message"),
    [
        ({"cat": np.ones((2, 3)), "dog": np.ones((3, 2))}, Naming(), "'dog' is 2x3 pixels, that of 'cat' 3x2"),
        ({"cat": np.ones((2, 3)), "background": np.ones((1, 1))}, Naming(), "'background' is 1x1 pixels"),
        ({"cat": np.ones((2, 3))}, Naming(("dog",)), "no class 'dog', it holds cat"),
        ({"cat": np.ones((2, 3))}, Naming(("cat", "moggy"), TABLE), "'moggy' has two masks"),
        ({"cat": np.ones((2, 3)), "moggy": np.ones((2, 3))}, Naming(None, TABLE), "'moggy' has two masks"),
    ],
)
def test_archives_that_do_not_fit_are_refused(
    tmp_path: Path, maps: dict[str, Array], naming: Naming, message: str
) -> None:
    save(tmp_path / "m.npz", maps)
    with pytest.raises(MaskError, match=message):
        npz.read(tmp_path / "m.npz", naming)


def test_a_name_outside_the_table_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", cow=np.zeros((2, 2)))
    with pytest.raises(ClassNameError, match="'cow' is not in the class table pets"):
        npz.read(tmp_path / "m.npz", Naming(None, TABLE))


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cat": ((40_000, 40_000), "<f4")}, "40000x40000 pixels are more than Pillow's limit"),
        ({str(number): ((8_000, 8_000), "<f4") for number in range(20)}, "1280000000 values together"),
        ({"cat": ((2, 2), "<U900000000")}, "dtype"),
        ({"cat": ((2, 2, 900_000_000), "<f4")}, "shape"),
    ],
)
def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, members: dict[str, tuple[tuple[int, ...], str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_reading(*_: object, **__: object) -> Array:
        raise AssertionError("it was unpacked")

    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype) in members.items():
            archive.writestr(f"{name}.npy", npy_header(shape, dtype) + bytes(100_000))
    monkeypatch.setattr("numpy.lib.format.read_array", no_reading)
    with pytest.raises(MaskError, match=message):
        npz.read(tmp_path / "bomb.npz", Naming())


def test_a_header_of_gigabytes_is_refused_and_a_long_tail_never_unpacked(tmp_path: Path) -> None:
    # Version 2 headers have lengths of up to 4 GiB.
    with zipfile.ZipFile(tmp_path / "header.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat.npy", b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 10_000_000)
    with pytest.raises(MaskError, match="unpacks to more than"):
        npz.read(tmp_path / "header.npz", Naming())
    with zipfile.ZipFile(tmp_path / "tail.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat.npy", npy_header((1, 2)) + np.array([0.25, 1], "<f4").tobytes() + bytes(50_000_000))
    assert npz.read(tmp_path / "tail.npz", Naming()).probabilities.tolist() == [[[0.25, 1]]]


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        warnings.simplefilter("ignore")
        for value in (0.0, 1.0):
            archive.writestr("cat.npy", npy_header((1, 1)) + np.array([value], "<f4").tobytes())
    with pytest.raises(MaskError, match="two arrays are called 'cat'"):
        npz.read(tmp_path / "m.npz", Naming())
