"""Format "diffsegmenter": MATLAB files with maps of 0..255."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks import diffsegmenter
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from tests.masks.dict_files import TABLE, maps

NAMING = Naming(table=TABLE)


def savemat(path: Path, entries: dict[str, Any], compressed: bool = True, **more: Any) -> None:
    file = io.BytesIO()
    scipy.io.savemat(file, entries, do_compression=compressed, **more)
    path.write_bytes(file.getvalue())


def mat_dict(count: int, height: int, width: int) -> dict[str, Any]:
    """What ptp_stable_best.py saves: each class scaled to 0..255."""
    values = maps(count, height, width)
    values[:, -1, -1] = 1.0
    return {str(3 * n): values[n] * np.float32(255) for n in range(count)}


def test_a_file_is_read_with_its_ids_names_and_rule(tmp_path: Path) -> None:
    saved = mat_dict(2, 5, 7)
    savemat(tmp_path / "a.mat", saved)
    masks = diffsegmenter.read(tmp_path / "a.mat", NAMING)
    assert masks.ids == (1, 4)
    assert masks.names == ("class1", "class4")
    assert str(masks.rule) == "constant:0.5"
    assert np.allclose(masks.probabilities, np.stack(list(saved.values())) / 255, atol=1e-7)
    assert diffsegmenter.recognise(tmp_path / "a.mat") == "a MATLAB file with maps under the class indices 0, 3"


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([np.float32, np.float64, np.uint8]),
    st.booleans(),
)
def test_what_is_read_is_written_back(count: int, height: int, width: int, dtype: Any, compressed: bool) -> None:
    saved = {key: value.astype(dtype) for key, value in mat_dict(count, height, width).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        savemat(path, saved, compressed)
        header = path.read_bytes()[:128]
        diffsegmenter.write(path, diffsegmenter.read(path, NAMING))
        assert path.read_bytes()[:128] == header  # the clock time too
        written = scipy.io.loadmat(path)
    assert list(written)[3:] == list(saved)
    for key, value in saved.items():
        assert written[key].dtype == dtype
        assert written[key].shape == value.shape  # one row or column stays one
        assert np.allclose(written[key], value, atol=1e-4 if dtype != np.uint8 else 0)


def test_the_evaluation_of_diffsegmenter_reads_what_is_written(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", mat_dict(2, 4, 5))
    masks = diffsegmenter.read(tmp_path / "a.mat", NAMING)
    refined = masks.with_probabilities(maps(2, 4, 5, seed=3))
    for name in ("b.mat", "c.mat"):
        diffsegmenter.write(tmp_path / name, refined)
    assert (tmp_path / "b.mat").read_bytes() == (tmp_path / "c.mat").read_bytes()
    # As evaluation_voc12.py: the size of the last entry, all behind the first three into place key + 1.
    found = scipy.io.loadmat(tmp_path / "b.mat")
    stacked = np.zeros((21, *list(found.values())[-1].shape), np.float32)
    for key in list(found)[3:]:
        stacked[int(key) + 1] = found[key] / 255
    stacked[0] = 0.45
    best = refined.probabilities
    assert (stacked.argmax(axis=0) == np.where(best.max(axis=0) > 0.45, best.argmax(axis=0) * 3 + 1, 0)).all()


def test_masks_of_another_format_are_written_too(tmp_path: Path) -> None:
    diffsegmenter.write(tmp_path / "a.mat", CoarseMasks((3,), ("x",), maps(1, 2, 3)))
    written = scipy.io.loadmat(tmp_path / "a.mat")
    assert written["2"].dtype == np.float32
    assert np.allclose(written["2"] / 255, maps(1, 2, 3)[0], atol=1e-6)


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(order: str, name: bytes, shape: tuple[int, int], number: int, kind: int, data: bytes) -> bytes:
    """A matrix of a class of numbers, whose data are stored as another type."""
    parts = (
        element(order, 6, struct.pack(f"{order}II", number, 0)),
        element(order, 5, struct.pack(f"{order}2i", *shape)),
        element(order, 1, name),
        element(order, kind, data),
    )
    return element(order, 14, b"".join(parts))


def mat_file(order: str, mark: bytes, *elements: bytes) -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x100) + mark
    return head + b"".join(elements)


def packed(order: str, data: bytes) -> bytes:
    content = zlib.compress(data)
    return struct.pack(f"{order}II", 15, len(content)) + content


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("order", "mark"), [("<", b"IM"), (">", b"MI")])
def test_both_byte_orders_and_narrower_storage_are_read(
    tmp_path: Path, order: str, mark: bytes, compressed: bool
) -> None:
    values = np.array([[0, 51, 255], [102, 0, 204]])
    bodies = [
        matrix(order, b"0", (2, 3), 6, 2, values.astype("u1").tobytes("F")),  # doubles, as MATLAB stores whole ones
        matrix(order, b"12", (2, 3), 7, 7, values.astype(f"{order}f4").tobytes("F")),
        matrix(order, b"3", (2, 3), 11, 4, values.astype(f"{order}u2").tobytes("F")),
    ]
    (tmp_path / "a.mat").write_bytes(
        mat_file(order, mark, *([packed(order, b) for b in bodies] if compressed else bodies))
    )
    masks = diffsegmenter.read(tmp_path / "a.mat", NAMING)
    assert masks.ids == (1, 13, 4)
    assert (masks.probabilities == np.stack([values / 255] * 3).astype(np.float32)).all()
    loaded = scipy.io.loadmat(tmp_path / "a.mat")
    assert all((loaded[key] == values).all() for key in ("0", "12", "3"))
    diffsegmenter.write(tmp_path / "b.mat", masks)
    again = scipy.io.loadmat(tmp_path / "b.mat")
    assert [again[key].dtype for key in ("0", "12", "3")] == [np.float64, np.float32, np.uint16]


def test_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", mat_dict(1, 3, 2), False, format="4")
    with pytest.raises(MaskError, match="not a MATLAB file of version 5"):
        diffsegmenter.read(tmp_path / "a.mat", NAMING)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(600))
    with pytest.raises(MaskError, match=r"a MATLAB 7\.3 file, which is not read: save it with -v7"):
        diffsegmenter.read(tmp_path / "a.mat", NAMING)


def test_only_the_classes_asked_for_are_refined_and_the_others_stay(tmp_path: Path) -> None:
    saved = mat_dict(3, 4, 5)
    savemat(tmp_path / "a.mat", saved)
    masks = diffsegmenter.read(tmp_path / "a.mat", Naming(("class7", "class1"), TABLE))
    assert masks.ids == (7, 1)
    diffsegmenter.write(tmp_path / "b.mat", masks.with_probabilities(np.zeros((2, 4, 5), np.float32)))
    written = scipy.io.loadmat(tmp_path / "b.mat")
    assert list(written)[3:] == list(saved)
    assert not written["0"].any()
    assert (written["3"] == saved["3"]).all()
    with pytest.raises(MaskError, match=r"a\.mat: no class 'class2', it holds class1, class4, class7"):
        diffsegmenter.read(tmp_path / "a.mat", Naming(("class2",), TABLE))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "holds no map"),
        ({"cat": np.ones((2, 2))}, "an entry 'cat', expected class indices"),
        ({"01": np.ones((2, 2))}, "an entry '01', expected class indices"),
        ({"1": np.zeros((0, 2))}, r"'1': float64 \[0, 2\]"),
        ({"1": np.ones((1, 2, 2))}, r"'1': float64 \[1, 2, 2\]"),
        (
            {"1": np.ones((2, 2)) * 255, "2": np.ones((2, 3))},
            r"class index 2: \[2, 3\], expected \[2, 2\] as the first has",
        ),
        ({"1": np.full((2, 2), 100, np.int8)}, "class index 1: int8, which ends before 255; save it as uint8"),
        ({"1": "text"}, "'1': char"),
        ({"1": {"a": 1}}, "'1': struct"),
        ({"1": np.array([[1, "a"]], dtype=object)}, "'1': cell"),
        ({"1": np.ones((2, 2), complex) * 255}, r"'1': complex float64 \[2, 2\], expected real numbers"),
        ({"1": np.array([[0.5, 1.0]])}, "values up to 1, diffsegmenter has 0 to 255; multiply by 255"),
        ({"1": np.array([[-3.0, 255.0]])}, "over 255, class 'class2'.*from -0.0117647 to 1"),
        ({"1": np.array([[10.0, 300.0]])}, "class 'class2'.*to 1.17647"),
        ({"1": np.array([[10.0, np.nan]])}, "class 'class2'.*NaN"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, saved: dict[str, Any], message: str) -> None:
    savemat(tmp_path / "my cams.mat", saved)
    with pytest.raises(MaskError, match=message) as caught:
        diffsegmenter.read(tmp_path / "my cams.mat", NAMING)
    assert "my cams.mat" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_have_to_be_known(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"20": np.full((2, 2), 255.0)})
    with pytest.raises(ClassNameError, match=r"a\.mat: class id 21"):
        diffsegmenter.read(tmp_path / "a.mat", NAMING)


def test_cut_and_foreign_files_give_the_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, mat_dict(2, 9, 9))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskError, match=r"a\.mat"):
            diffsegmenter.read(path, NAMING)
    with pytest.raises(MaskError, match="No such file"):
        diffsegmenter.read(tmp_path / "missing.mat", NAMING)
    savemat(tmp_path / "labels.mat", {"groundTruth": np.ones((2, 2))})
    for name in ("a.mat", "missing.mat", "labels.mat", "a.npy"):
        assert diffsegmenter.recognise(tmp_path / name) is None


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=20), st.integers(100, 400), st.booleans())
def test_no_damage_gives_another_error(noise: bytes, place: int, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mat"
        savemat(path, mat_dict(1, 5, 9), compressed)
        whole = path.read_bytes()
        path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
        try:
            diffsegmenter.read(path, Naming(("cat",)))
        except (MaskError, ClassNameError) as error:
            assert str(path) in str(error)


def test_no_byte_ends_the_process(tmp_path: Path) -> None:
    """Flags, shape, name and tags of a plain file: scipy's reader trusts them with its memory."""
    savemat(tmp_path / "a.mat", {"1": np.full((6, 7), 255.0, np.float32)}, compressed=False)
    whole = (tmp_path / "a.mat").read_bytes()
    read = 0
    for place in range(124, 128 + 64):
        for value in {0, 1, 8, 127, 255, whole[place] ^ 1, whole[place] ^ 4, whole[place] ^ 128}:
            (tmp_path / "a.mat").write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read += diffsegmenter.read(tmp_path / "a.mat", NAMING).size == (6, 7)
            except (MaskError, ClassNameError) as error:
                assert "a.mat" in str(error)
    assert read > 0


@pytest.mark.parametrize(("order", "mark"), [("<", b"IM"), (">", b"MI")])
def test_an_entry_that_unpacks_to_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, order: str, mark: bytes
) -> None:
    path = tmp_path / "a.mat"
    body = matrix(order, b"1", (4, 4), 6, 9, np.full(16, 255.0, f"{order}f8").tobytes())
    long = element(order, 14, body[8:] + bytes(1 << 24))
    huge = matrix(order, b"1", (100_000, 100_000), 6, 9, b"")
    name = matrix(order, bytes(1 << 24), (4, 4), 6, 9, b"")
    program = f"""
import resource
from pathlib import Path
from g4seg_trt.errors import MaskError
from g4seg_trt.masks import diffsegmenter
from g4seg_trt.masks.coarse import Naming
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 23),) * 2)
path = Path({str(path)!r})
print(diffsegmenter.recognise(path))
try:
    diffsegmenter.read(path, Naming(("cat",)))
except MaskError as error:
    print(error)
"""
    for content, recognised, message in (
        (packed(order, long), False, "'1': unpacks to more than"),
        (packed(order, body + bytes(1 << 24)), True, "unpacks to more than"),
        (packed(order, huge), True, "100000x100000 pixels"),
        (packed(order, name), False, "cut off"),
    ):
        path.write_bytes(mat_file(order, mark, content))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
        first, second = done.stdout.splitlines()
        assert (first != "None") == recognised
        assert message in second


def test_no_other_mark_of_the_byte_order_is_taken(tmp_path: Path) -> None:
    body = matrix("<", b"1", (1, 1), 6, 9, struct.pack("<d", 255))
    (tmp_path / "a.mat").write_bytes(mat_file("<", b"IM", body))
    assert diffsegmenter.read(tmp_path / "a.mat", NAMING).ids == (2,)
    for mark in (b"MI", b"XX", b"\0\0"):
        (tmp_path / "a.mat").write_bytes(mat_file("<", mark, body))
        with pytest.raises(MaskError, match="not a MATLAB file of version 5"):
            diffsegmenter.read(tmp_path / "a.mat", NAMING)


def test_scipy_is_not_needed(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", mat_dict(1, 2, 2))
    program = f"""
import sys
sys.modules["scipy"] = None
from pathlib import Path
from g4seg_trt.masks import diffsegmenter
from g4seg_trt.masks.coarse import Naming
path = Path({str(tmp_path / "a.mat")!r})
print(diffsegmenter.recognise(path))
diffsegmenter.write(path, diffsegmenter.read(path, Naming(("cat",))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.splitlines() == ["a MATLAB file with maps under the class indices 0"]
    assert np.allclose(scipy.io.loadmat(tmp_path / "a.mat")["0"], mat_dict(1, 2, 2)["0"], atol=1e-4)
