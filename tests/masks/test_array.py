"""Probability arrays in .npy and .npz files."""

from __future__ import annotations

import io
import random
import tempfile
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
from g4seg_trt.errors import MaskError
from g4seg_trt.masks import npy, npz, stack
from g4seg_trt.masks.array import check_count, read_npy, read_npz, write_npz
from g4seg_trt.masks.coarse import Naming

Array = npt.NDArray[Any]

SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
PROBABILITIES = arrays.arrays(np.float32, SIDES, elements=st.floats(0, 1, width=32))
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAMES, PROBABILITIES, min_size=1, max_size=4))
def test_named_probabilities_survive_bit_for_bit(probabilities: dict[str, Array]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.npz"
        write_npz(path, probabilities)
        back = read_npz(path)
    assert list(back) == list(probabilities)
    for name, probability in probabilities.items():
        assert back[name].dtype == np.float32
        assert (back[name] == probability).all()


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", "a/b", "a.npy", "traffic light", "猫"])
def test_names_that_savez_cannot_take_are_written(tmp_path: Path, name: str) -> None:
    write_npz(tmp_path / "masks.npz", {name: np.ones((2, 3), np.float32)})
    assert list(read_npz(tmp_path / "masks.npz")) == [name]
    with np.load(tmp_path / "masks.npz") as archive:
        assert archive[name].shape == (2, 3)


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    masks = {"cat": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, masks)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("compressed", [False, True])
def test_archives_of_numpy_are_read(tmp_path: Path, compressed: bool) -> None:
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "masks.npz", cat=np.full((2, 3), 0.25), dog=np.zeros((2, 3), bool))
    masks = read_npz(tmp_path / "masks.npz")
    assert masks["cat"].tolist() == [[0.25] * 3] * 2
    assert not masks["dog"].any()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.bool_, np.uint8, np.int64])
def test_dtypes_that_mean_a_probability(tmp_path: Path, kind: type[Any]) -> None:
    np.save(tmp_path / "mask.npy", np.array([[0, 1, 0]]).astype(kind))
    mask = read_npy(tmp_path / "mask.npy")
    assert mask.dtype == np.float32
    assert mask.tolist() == [[0, 1, 0]]


def test_fortran_order_and_big_endian_are_read(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12).reshape(3, 4)
    np.save(tmp_path / "mask.npy", np.asfortranarray(values.astype(">f8")))
    np.testing.assert_allclose(read_npy(tmp_path / "mask.npy"), values, atol=1e-7)


def test_rounding_beyond_the_range_is_clipped(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.array([[1 + 1e-7, -1e-7]]))
    assert read_npy(tmp_path / "mask.npy").tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.5, np.nan]]), "1 values that are NaN or infinite"),
        (np.array([[0.5, np.inf, -np.inf]]), "2 values that are NaN or infinite"),
        (np.array([[0.5, 1.5]]), r"from 0\.5 to 1\.5"),
        (np.array([[-0.1, 1.0]]), r"from -0\.1 to 1"),
        (np.array([[0, 255]], np.uint8), "divide 8-bit masks by 255"),
        (np.array([0.5]), "shape"),
        (np.array(0.5), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((0, 4)), "no pixel"),
        (np.zeros((2, 2), complex), "complex"),
        (np.array([["a"]]), "dtype"),
        (np.zeros((2, 2), dtype=[("a", "f4")]), "dtype"),
    ],
)
def test_what_is_no_probability_is_refused_with_its_fault(tmp_path: Path, array: Array, message: str) -> None:
    np.save(tmp_path / "my mask.npy", array)
    np.savez(tmp_path / "my masks.npz", cat=array)
    for read, name in ((read_npy, "my mask.npy"), (read_npz, "my masks.npz")):
        with pytest.raises(MaskError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pickles_are_refused(tmp_path: Path) -> None:
    objects = np.array([{"keys": [1]}], dtype=object)
    np.save(tmp_path / "mask.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "mask.npz", cat=objects)
    with pytest.raises(MaskError, match=r"not a \.npy array"):
        read_npy(tmp_path / "mask.npy")
    with pytest.raises(MaskError, match=r"not a \.npz archive"):
        read_npz(tmp_path / "mask.npz")


def test_cut_and_foreign_files_give_the_typed_error(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.ones((9, 9)))
    np.savez(tmp_path / "whole.npz", cat=np.ones((9, 9)))
    for suffix, read in ((".npy", read_npy), (".npz", read_npz)):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        path = tmp_path / f"cut{suffix}"
        for length in range(0, len(whole), 37):
            path.write_bytes(whole[:length])
            with pytest.raises(MaskError):
                read(path)
        path.write_text("not an array")
        with pytest.raises(MaskError):
            read(path)
        with pytest.raises(MaskError, match="no such file"):
            read(tmp_path / f"missing{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(MaskError):
            read(tmp_path / f"folder{suffix}")


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.ones((9, 9)))
    path.write_bytes(path.read_bytes().replace(b"(9, 9), }            ", b"(99999999, 999999), }"))
    assert b"999999), }" in path.read_bytes()
    with pytest.raises(MaskError):
        read_npy(path)
    with zipfile.ZipFile(tmp_path / "mask.npz", "w") as archive:
        archive.write(path, "cat.npy")
    with pytest.raises(MaskError):
        read_npz(tmp_path / "mask.npz")


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.ones((3, 3), np.float16))
    np.savez(tmp_path / "whole.npz", cat=np.ones((3, 3), np.float16))
    chance = random.Random(0)
    failed = 0
    for suffix, read in ((".npy", read_npy), (".npz", read_npz)):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        path = tmp_path / f"damaged{suffix}"
        for _ in range(400):
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            path.write_bytes(damaged)
            try:
                read(path)
            except MaskError:
                failed += 1
    assert failed > 400


def test_an_archive_called_npy_is_told_to_be_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", cat=np.ones((2, 2)))
    (tmp_path / "mask.npz").rename(tmp_path / "mask.npy")
    with pytest.raises(MaskError, match=r"name it \.npz"):
        read_npy(tmp_path / "mask.npy")


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz")
    with pytest.raises(MaskError, match="holds no array"):
        read_npz(tmp_path / "mask.npz")


def test_masks_of_a_known_size_may_be_more_and_of_no_other(tmp_path: Path) -> None:
    for image, classes, message in (
        (None, 269, "hold 269000000 values together, allowed: 268435456"),
        ((1000, 1000), 1074, "hold 1074000000 values together, allowed: 1073741824"),
        ((1000, 999), 1, "the masks are 1000x1000 pixels, the image is 999x1000"),
    ):
        with pytest.raises(MaskError, match=f"a file: .*{message}"):
            check_count(classes, (1000, 1000), "a file", image)
    check_count(268, (1000, 1000), "a file")
    check_count(1073, (1000, 1000), "a file", (1000, 1000))
    maps = np.zeros((2, 3, 4), np.float32)
    table = ClassTable("pets", (ClassEntry(1, "cat", "cat"), ClassEntry(2, "dog", "dog")), background=True)
    np.savez(tmp_path / "m.npz", cat=maps[0], dog=maps[1])
    np.save(tmp_path / "m.npy", maps)
    np.save(tmp_path / "one.npy", maps[0])
    for reader, name, names in ((npz, "m.npz", None), (stack, "m.npy", None), (npy, "one.npy", ("cat",))):
        assert reader.read(tmp_path / name, Naming(names, table, size=(3, 4))).size == (3, 4)
        with pytest.raises(MaskError, match="the masks are 4x3 pixels, the image is 3x4"):
            reader.read(tmp_path / name, Naming(names, table, size=(4, 3)))


def test_a_packed_file_cannot_take_more_than_an_image_of_its_size(tmp_path: Path) -> None:
    """300 zeroed maps of a million pixels are 300 kB; without the image's size they are refused unread."""
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(300):
            file = io.BytesIO()
            np.lib.format.write_array_header_1_0(file, {"descr": "|b1", "fortran_order": False, "shape": (1000, 1000)})
            archive.writestr(f"{number}.npy", file.getvalue() + bytes(10**6 if number == 0 else 10))
    for size, message in ((None, "300000000 values together"), ((375, 500), "the image is 500x375")):
        with pytest.raises(MaskError, match=message):
            npz.read(tmp_path / "m.npz", Naming(size=size))
