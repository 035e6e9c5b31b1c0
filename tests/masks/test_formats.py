"""Formats by suffix, and files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from g4seg_trt.atomic import atomic_file, check_writable
from g4seg_trt.errors import MaskError, OutputError
from g4seg_trt.masks import pick, read_mask, read_masks, write_label_png, write_probabilities

MASK = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)


@pytest.mark.parametrize("name", ["m.png", "M.PNG", "m.npz", "ü m.npz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_probabilities(tmp_path / name, {"cat": MASK})
    np.testing.assert_allclose(read_mask(tmp_path / name, "cat"), MASK, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_npy_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", MASK)
    assert (read_mask(tmp_path / "m.npy", "cat") == MASK).all()


def test_an_unknown_suffix_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"'\.jpg', allowed: \.png, \.npy, \.npz"):
        read_mask(tmp_path / "m.jpg", "cat")
    with pytest.raises(MaskError, match="allowed"):
        read_masks(tmp_path / "m.png")


def test_a_class_is_found_by_name_in_an_archive(tmp_path: Path) -> None:
    write_probabilities(tmp_path / "m.npz", {"cat": MASK, "dog": 1 - MASK})
    assert (read_mask(tmp_path / "m.npz", "dog") == 1 - MASK).all()
    with pytest.raises(MaskError, match="no class 'cow', it holds cat, dog"):
        read_mask(tmp_path / "m.npz", "cow")


def test_an_array_without_a_name_is_any_class_but_a_named_one_is_not() -> None:
    assert pick({"arr_0": MASK}, "cat", Path("m.npz")) is MASK
    with pytest.raises(MaskError, match="no class 'cat'"):
        pick({"dog": MASK}, "cat", Path("m.npz"))


@pytest.mark.parametrize(("name", "classes"), [("m.jpg", 1), ("m", 1), ("m.png", 2)])
def test_probabilities_go_into_formats_that_hold_them(tmp_path: Path, name: str, classes: int) -> None:
    with pytest.raises(OutputError):
        write_probabilities(tmp_path / name, {f"class {n}": MASK for n in range(classes)})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.bin"]


def test_a_full_disk_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out\.bin: No space left"), atomic_file(tmp_path / "out.bin"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_new_files_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_label_png(tmp_path / "label.png", np.zeros((2, 2), np.uint8), 1)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "label.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_label_png(path, np.zeros((2, 2), np.uint8), 1)
    assert path.is_file()


@pytest.mark.parametrize("name", ["missing/out.png", "folder", "x" * 300, "nul\0.png"])
def test_places_that_cannot_be_written_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_devices_are_not_replaced_by_a_file() -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        check_writable(Path(os.devnull))
