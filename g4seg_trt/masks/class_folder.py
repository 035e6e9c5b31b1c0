"""Format "class-folder": a folder for each image, in it one PNG or .npy file for each class, by the class's name."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from g4seg_trt.arrays import Floats
from g4seg_trt.atomic import reason
from g4seg_trt.errors import MaskError, OutputError
from g4seg_trt.listing import composed
from g4seg_trt.masks.array import as_probability, as_stored, open_npy, write_npy
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import choose, maps_by_key, named_maps, some
from g4seg_trt.masks.png import GreyLayout, read_grey, write_grey

NAME = "class-folder"
SUFFIXES = (".png", ".npy")


def class_files(folder: Path) -> dict[str, Path]:
    """The masks CLASS.png and CLASS.npy of one image: class name -> file, in the order of the names.

    Raises:
        MaskError: if the folder cannot be read, holds none, or two of one name.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MaskError(f"{folder}: the folder of masks cannot be read ({reason(error)})") from error
    files: dict[str, Path] = {}
    for path in entries:
        if path.suffix.lower() not in SUFFIXES:
            continue
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
    maps: dict[str, Floats] = {}
    layouts: dict[str, tuple[str, Any]] = {}
    for name in chosen.wanted():
        file = files[name]
        if file.suffix.lower() == ".npy":
            array = open_npy(file)
            maps[name], layouts[name] = as_probability(array, str(file)), (file.name, array.dtype)
        else:
            maps[name], layout = read_grey(file)
            layouts[name] = file.name, layout
    return named_maps(maps, chosen, naming, path, {NAME: (chosen, layouts)})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write a folder with the files that came in, each in its mode or dtype, the background as it was.

    The folder appears whole or not at all. One that is there is replaced.

    Raises:
        OutputError: if the folder cannot be written, or there is one that holds anything but masks.
    """
    chosen, layouts = masks.origin.get(NAME, (None, {}))
    maps = maps_by_key(masks, chosen)
    layouts = layouts or {name: (f"{name}.png", GreyLayout()) for name in maps}
    try:
        _check_replaceable(path)
        temporary = path.parent / f".g4seg-{secrets.token_hex(8)}.part"
        temporary.mkdir()
        try:
            for name, (file, layout) in layouts.items():
                if isinstance(layout, GreyLayout):
                    write_grey(temporary / file, maps[name], layout)
                else:
                    write_npy(temporary / file, as_stored(maps[name], layout))
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


def recognise(path: Path) -> str | None:
    """What tells that this is a folder of one mask for each class, or None."""
    try:
        files = class_files(path)
    except MaskError:
        return None
    return f"a folder with a file for each class ({some(files)})"


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"cannot write {path}: it exists and is not a folder")
    for entry in path.iterdir():
        if entry.suffix.lower() not in SUFFIXES or not entry.is_file():
            raise OutputError(f"cannot write {path}: it holds {entry.name}, which is no mask; remove it first")
