"""Disks that are full or read-only, and folders with what nobody expects: one clear line each, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Make = Callable[[int], Dataset]
    Outputs = Callable[[Path], dict[str, bytes]]

SIZE = 256 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE bytes."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_a_full_disk_ends_the_run_at_once_and_loses_nothing(
    make: Make, disk: Path, outputs_of: Outputs, tmp_path: Path
) -> None:
    dataset = make(20)
    assert dataset.refine("--overlay", output=tmp_path / "undisturbed").returncode == 0
    whole = outputs_of(tmp_path / "undisturbed")
    (disk / "ballast").write_bytes(bytes(SIZE - 100 * 1024))
    done = dataset.refine("--overlay", output=disk / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "go on with --resume" in done.stderr.splitlines()[-1]
    assert "failed:" not in done.stderr, "it is no image's fault"
    kept = outputs_of(disk / "out")
    assert all(whole[name] == data for name, data in kept.items()), "no file is half-written"
    count = int(done.stdout.split(" images: ")[1].split(" refined")[0])
    assert 0 < count < 20
    assert f"{count} images are done" in done.stderr
    again = dataset.refine("--overlay", "--resume", output=disk / "out")
    assert again.returncode == 1, "still full"
    assert "No space left on device" in again.stderr.splitlines()[-1]
    (disk / "ballast").unlink()
    remount(disk, "size=4m")
    last = dataset.refine("--overlay", "--resume", output=disk / "out")
    assert last.returncode == 0, last.stderr
    assert f"{count} skipped" in last.stdout
    assert outputs_of(disk / "out") == whole


def test_a_disk_without_a_byte_left_is_one_line(dataset: Dataset, disk: Path) -> None:
    (disk / "ballast").write_bytes(bytes(SIZE))
    done = dataset.refine(output=disk / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_read_only_disk_is_one_line(dataset: Dataset, disk: Path) -> None:
    remount(disk, "size=4m")
    assert dataset.refine("--limit", 2, output=disk / "out").returncode == 0
    remount(disk, "ro")
    for more, output in (((), disk / "new"), (("--resume",), disk / "out")):
        done = dataset.refine(*more, output=output)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "Read-only file system" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    remount(disk, "rw")
    assert "3 refined, 2 skipped" in dataset.refine("--resume", output=disk / "out").stdout


def failures(error: str) -> dict[str, str]:
    lines = [line.split(": ", 2) for line in error.splitlines() if line.startswith("failed: ")]
    return {line[1]: line[2] for line in lines}


def test_entries_that_are_no_files_fail_by_name_and_the_rest_is_done(dataset: Dataset) -> None:
    mask = dataset.masks / f"{dataset.stems[1]}.png"
    for stem in ("loop", "nowhere", "folder", "mask-loop", "mask-folder"):
        shutil.copy(mask, dataset.masks / f"{stem}.png")
    (dataset.images / "loop.png").symlink_to("loop.png")
    (dataset.images / "nowhere.png").symlink_to("no such file")
    (dataset.images / "folder.png").mkdir()
    (dataset.images / "circle").symlink_to(dataset.images)
    image = dataset.images / f"{dataset.stems[1]}.png"
    for stem in ("mask-loop", "mask-folder", "twice"):
        shutil.copy(image, dataset.images / f"{stem}.png")
    shutil.copy(image, dataset.images / "twice.bmp")
    shutil.copy(mask, dataset.masks / "twice.png")
    for stem in ("mask-loop", "mask-folder"):
        (dataset.masks / f"{stem}.png").unlink()
    (dataset.masks / "mask-loop.png").symlink_to("mask-loop.png")
    (dataset.masks / "mask-folder").mkdir()
    (dataset.masks / "mask-folder" / "inside").symlink_to(dataset.masks)
    done = dataset.refine()
    assert done.returncode == 3, done.stderr
    assert "11 images: 5 refined, 0 skipped (done before), 6 failed" in done.stdout
    found = failures(done.stderr)
    words = {
        "loop": "broken symbolic link",
        "nowhere": "broken symbolic link",
        "folder": "a folder named like an image",
        "mask-loop": "mask-loop.png",
        "mask-folder": "of no known format",
        "twice": "several images of one stem: twice.bmp, twice.png",
    }
    assert set(found) == set(words)
    for stem, text in words.items():
        assert text in found[stem]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_fail_by_name(dataset: Dataset) -> None:
    (dataset.images / f"{dataset.stems[0]}.png").chmod(0)
    (dataset.masks / f"{dataset.stems[1]}.png").chmod(0)
    done = dataset.refine()
    assert done.returncode == 3
    assert {*failures(done.stderr)} == set(dataset.stems[:2])
    assert "ermission" in done.stderr


def test_a_list_with_a_fault_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    for text, words in (
        ("no such\n", "holds no image of that stem"),
        (f"{dataset.stems[0]}\n{dataset.stems[0]}.png\n", "twice"),
        ("# nothing\n", "names no image"),
        ("\0\n", "holds no image of that stem"),
    ):
        listed.write_text(text, "utf-8")
        done = dataset.refine("--list", listed)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    listed.write_bytes(b"\xff\xfe\xfa")
    assert "not UTF-8" in dataset.refine("--list", listed).stderr
    assert not dataset.output.exists()
