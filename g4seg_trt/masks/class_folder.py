"""Format "class-folder": a folder for each image, in it one PNG or .npy file for each class, by the class's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_trt.arrays import Floats
from g4seg_trt.atomic import atomic_folder, check_writable, reason
from g4seg_trt.errors import MaskError, OutputError, some
from g4seg_trt.listing import composed
from g4seg_trt.masks.array import as_probability, as_stored, open_npy, write_npy
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import Chosen, choose, maps_by_key, named_maps
from g4seg_trt.masks.png import GreyLayout, read_grey, write_grey

NAME = "class-folder"
SUFFIXES = (".png", ".npy")


@dataclass(frozen=True)
class FolderLayout:
    """What `write` gives back.

    Attributes:
        path: the folder, which still has the files that were not asked for.
        chosen: what it calls the classes.
        layouts: name of a map -> its file's name and how that stores it (a GreyLayout, or the dtype of an array).
        others: the names of the files that were not asked for.
    """

    path: Path
    chosen: Chosen
    layouts: Mapping[str, tuple[str, Any]]
    others: tuple[str, ...]


def class_files(folder: Path) -> dict[str, Path]:
    """The masks CLASS.png and CLASS.npy of one image: class name -> file, in the order of the names.

    Raises:
        MaskError: if the folder cannot be read, holds none, two of one name, or something else of such a name.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MaskError(f"{folder}: the folder of masks cannot be read ({reason(error)})") from error
    files: dict[str, Path] = {}
    for path in entries:
        if path.suffix.lower() not in SUFFIXES:
            continue
        if not path.is_file():  # a pipe would be waited for
            raise MaskError(f"{path}: not a file that can be read, expected a mask")
        # One Unicode form: file systems differ in theirs.
        name = composed(path.stem)
        if name in files:
            raise MaskError(f"{folder}: two masks of the class {name!r}")
        files[name] = path
    if not files:
        raise MaskError(f"{folder}: holds no mask CLASS.png or CLASS.npy")
    return files


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the named classes, or all. A mask called "background" is the background's own probability.

    Raises:
        MaskError: if a mask cannot be read as a probability, the sizes differ, or a named class has none.
        ClassNameError: for a name that the table does not have.
    """
    files = class_files(path)
    chosen = choose(files, naming, path)
    layouts: dict[str, tuple[str, Any]] = {}

    def maps() -> Iterator[tuple[str, Floats]]:
        for name in chosen.wanted():
            file = files[name]
            if file.suffix.lower() == ".npy":
                array = open_npy(file)
                layouts[name] = file.name, array.dtype
                yield name, as_probability(array, str(file))
            else:
                probability, layout = read_grey(file)
                layouts[name] = file.name, layout
                yield name, probability

    others = tuple(file.name for name, file in files.items() if name not in chosen.wanted())
    return named_maps(maps(), chosen, naming, path, {NAME: FolderLayout(path, chosen, layouts, others)})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write a folder with the files that came in, each in its mode or dtype, the background as it was.

    Files of classes that were not asked for are copied from the folder that was read. The folder appears whole or not
    at all. One that is there is replaced.

    Raises:
        MaskError: if a file that is to be copied cannot be read any longer.
        OutputError: if the folder cannot be written, there is one that holds anything but masks, or a class (of masks
            of another format) has no name for a file.
    """
    layout: FolderLayout | None = masks.origin.get(NAME)
    if layout is None:
        layouts = {name: (_file_of(name, path), GreyLayout()) for name in maps_by_key(masks, None)}
        layout = FolderLayout(path, Chosen({name: name for name in masks.names}, None), layouts, ())
    maps = maps_by_key(masks, layout.chosen)
    check_replaceable(path)
    with atomic_folder(path) as folder:
        for name, (file, stored) in layout.layouts.items():
            if isinstance(stored, GreyLayout):
                write_grey(folder / file, maps[name], stored)
            else:
                write_npy(folder / file, as_stored(maps[name], stored))
        for file in layout.others:
            (folder / file).write_bytes(_content(layout.path / file))


def recognise(path: Path) -> str | None:
    """What tells that this is a folder of one mask for each class, or None."""
    try:
        files = class_files(path)
    except MaskError:
        return None
    return f"a folder with a file for each class ({some(files)})"


def _content(path: Path) -> bytes:
    """The bytes of a file that was there when the folder was read; raises MaskError: it is no fault of the output."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MaskError(f"{path}: cannot be read any longer ({reason(error)})") from error


def _file_of(name: str, path: Path) -> str:
    """The file of a class that came without one."""
    file = f"{name}.png"
    if Path(file).name != file or "\0" in file:
        raise OutputError(f"cannot write {path}: the class {name!r} cannot be the name of a file")
    return file


def check_replaceable(path: Path) -> None:
    """Check that a folder holds masks and nothing else, if it is there; raises OutputError.

    Hidden files do not count: systems and file managers leave them wherever they have been.
    """
    try:
        check_writable(path, folder=True)
        for entry in path.iterdir() if path.exists() else ():
            if not entry.is_file() or (entry.suffix.lower() not in SUFFIXES and not entry.name.startswith(".")):
                raise OutputError(f"cannot write {path}: it holds {entry.name}, which is no mask; remove it first")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
