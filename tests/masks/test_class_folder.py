"""Format "class-folder": a file for each class in the folder of an image."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import MaskError, OutputError
from g4seg_trt.masks import class_folder
from g4seg_trt.masks.coarse import CoarseMasks, Naming

TABLE = ClassTable("pets", (ClassEntry(3, "moggy", "cat"), ClassEntry(7, "dog", "dog")), background=True)


def class_folder_of(folder: Path) -> Path:
    folder.mkdir()
    Image.fromarray(np.array([[0, 255, 0]], np.uint8)).save(folder / "dog.png")
    Image.fromarray(np.array([[0, 30_000, 65_535]], np.uint16)).save(folder / "cat.png")
    np.save(folder / "background.npy", np.array([[0.5, 0.25, 0]], np.float16))
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_a_folder_comes_back_file_by_file(tmp_path: Path) -> None:
    source = class_folder_of(tmp_path / "source")
    masks = class_folder.read(source, Naming(None, TABLE))
    assert (masks.ids, masks.names) == ((3, 7), ("moggy", "dog"))
    assert str(masks.rule) == "channel"
    class_folder.write(tmp_path / "out", masks)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["background.npy", "cat.png", "dog.png"]
    for name in ("cat.png", "dog.png"):
        before, after = Image.open(source / name), Image.open(tmp_path / "out" / name)
        assert before.mode == after.mode
        assert (np.asarray(before) == np.asarray(after)).all()
    assert np.load(tmp_path / "out" / "background.npy").dtype == np.float16
    # Once more over what is there, with other values: nothing of the old is left.
    class_folder.write(tmp_path / "out", masks.with_probabilities(1 - masks.probabilities))
    assert np.asarray(Image.open(tmp_path / "out" / "dog.png")).tolist() == [[255, 0, 255]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_files_that_were_not_asked_for_are_in_the_written_folder(tmp_path: Path) -> None:
    source = class_folder_of(tmp_path / "source")
    masks = class_folder.read(source, Naming(("dog",), size=(1, 3)))
    class_folder.write(tmp_path / "out", masks.with_probabilities(np.ones((1, 1, 3), np.float32)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["background.npy", "cat.png", "dog.png"]
    assert (tmp_path / "out" / "cat.png").read_bytes() == (source / "cat.png").read_bytes()
    assert np.asarray(Image.open(tmp_path / "out" / "dog.png")).tolist() == [[255, 255, 255]]
    with pytest.raises(MaskError, match="the masks are 3x1 pixels, the image is 5x4"):
        class_folder.read(source, Naming(size=(4, 5)))


def test_a_file_that_cannot_be_copied_any_longer_is_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = class_folder_of(tmp_path / "source")
    masks = class_folder.read(source, Naming(("dog",)))
    whole = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path == source / "cat.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return whole(path)

    with monkeypatch.context() as broken, pytest.raises(MaskError, match=r"source/cat\.png: .*\(Input/output error\)"):
        broken.setattr(
            Path, "read_bytes", fails
        )  # an OutputError of this kind would end a run: as if no disk were left
        class_folder.write(tmp_path / "out", masks)
    (source / "cat.png").unlink()
    with pytest.raises(MaskError, match=r"source/cat\.png: cannot be read any longer \(No such file or directory\)"):
        class_folder.write(tmp_path / "out", masks)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["../dog", "a/b", "nul\0"])
def test_a_class_whose_name_is_none_for_a_file_is_not_written(tmp_path: Path, name: str) -> None:
    masks = CoarseMasks((1, 2), ("cat", name), np.zeros((2, 2, 2), np.float32))
    with pytest.raises(OutputError, match="cannot be the name of a file"):
        class_folder.write(tmp_path / "out", masks)
    assert not list(tmp_path.iterdir())


def test_the_wanted_classes_of_a_folder_are_in_the_order_asked_for(tmp_path: Path) -> None:
    source = class_folder_of(tmp_path / "source")
    assert class_folder.read(source, Naming(("dog", "cat"))).names == ("dog", "cat")
    with pytest.raises(MaskError, match="no class 'cow', it holds background, cat, dog"):
        class_folder.read(source, Naming(("cow",)))


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="cannot be read"):
        class_folder.read(tmp_path / "missing", Naming())
    (tmp_path / "empty").mkdir()
    with pytest.raises(MaskError, match="holds no mask"):
        class_folder.read(tmp_path / "empty", Naming())
    source = class_folder_of(tmp_path / "source")
    np.save(source / "cat.npy", np.zeros((1, 3)))
    with pytest.raises(MaskError, match="two masks of the class 'cat'"):
        class_folder.read(source, Naming())


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    masks = class_folder.read(class_folder_of(tmp_path / "source"), Naming())
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("precious")
    with pytest.raises(OutputError, match=r"it holds thesis\.doc, which is no mask"):
        class_folder.write(out, masks)
    assert [path.name for path in out.iterdir()] == ["thesis.doc"]
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="not a folder"):
        class_folder.write(tmp_path / "file", masks)
    with pytest.raises(OutputError, match="cannot write"):
        class_folder.write(tmp_path / "no such folder" / "out", masks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out", "source"]


@pytest.mark.parametrize("name", [".DS_Store", "._dog.png", ".nfs000000000000c0de"])
def test_what_systems_leave_in_a_folder_is_in_nobody_s_way(tmp_path: Path, name: str) -> None:
    masks = class_folder.read(class_folder_of(tmp_path / "source"), Naming())
    out = tmp_path / "out"
    class_folder.write(out, masks)
    (out / name).write_bytes(b"left by a file manager")
    class_folder.write(out, masks.with_probabilities(1 - masks.probabilities))
    assert sorted(path.name for path in out.iterdir()) == ["background.npy", "cat.png", "dog.png"]
    (out / ".git").mkdir()
    with pytest.raises(OutputError, match=r"it holds \.git, which is no mask"):
        class_folder.write(out, masks)
