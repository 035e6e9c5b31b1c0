"""Format "index-png": a label picture whose pixels are class ids, of one class each or of none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from g4seg_trt.arrays import Array, Bools, Labels
from g4seg_trt.errors import InputError, MaskError
from g4seg_trt.masks.array import check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids, selected
from g4seg_trt.masks.colours import COLOURS, ids_of_colours
from g4seg_trt.masks.labels import label_type, unlabelled
from g4seg_trt.masks.png import FORMAT, index_values, save_png
from g4seg_trt.masks.png_kind import png_kind
from g4seg_trt.picture import open_picture
from g4seg_trt.update import BackgroundRule, label_map

NAME = "index-png"
RULE = BackgroundRule("constant", 0.5)
"""Of masks that are given none."""


@dataclass(frozen=True)
class IndexLayout:
    """What `write` gives back.

    Attributes:
        mode: Pillow's name of the picture's mode.
        palette: RGB values of a palette picture, else None.
        values: unsigned [H,W] as read.
        kept: bool [H,W], where `values` stay as they are: pixels ignored, and those of classes not asked for.
    """

    mode: str
    palette: bytes | None
    values: Labels
    kept: Bools


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read a palette or grey picture (its values are ids, never its colours) or one in PASCAL VOC's colours.

    Every class that is there and asked for becomes a map of 0 and 1. Pixels without a label are ignored
    (g4seg_trt.masks.labels), those of 0 too where the table says that it is no background.

    Raises:
        MaskError: if the file is missing, damaged or too large, or has a colour that VOC does not have.
        ClassNameError: without names for the ids, or for an id that the table does not have.
    """
    picture = open_picture(path, MaskError, FORMAT)
    values, palette = _values(path, picture)
    ignored = _ignored(values, naming)
    present = np.unique(values[~ignored])
    ids = tuple(int(value) for value in present if value != 0)
    names = named_by_ids(ids, naming, str(path)) if ids else ()
    places = selected(names, naming, str(path))
    others = [number for place, number in enumerate(ids) if place not in places]
    ids, names = tuple(ids[place] for place in places), tuple(names[place] for place in places)
    check_count(len(ids), (values.shape[0], values.shape[1]), str(path), naming.size)
    maps = np.zeros((len(ids), *values.shape), np.float32)
    for one, number in zip(maps, ids, strict=True):
        one[values == number] = 1.0
    origin = {NAME: IndexLayout(picture.mode, palette, values, ignored | np.isin(values, others))}
    return CoarseMasks(ids, names, maps, ignored=ignored, origin=origin)


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the likeliest class of each pixel, 0 where the masks' rule, or without one constant:0.5, has background.

    Mode and palette are those that came in (2 and 4 bits of grey become 8). What was ignored stays as it was, and so
    do the pixels of classes that were not asked for. Masks of another format are ignored as 255, in 16 bits 65535.

    Raises:
        OutputError: if the file cannot be written.
    """
    layout = masks.origin.get(NAME)
    if layout is None:
        dtype, number = label_type(masks.ids)
        ignored = np.zeros(masks.size, np.bool_) if masks.ignored is None else masks.ignored
        none = np.full(masks.size, number, dtype)
        layout = IndexLayout("P" if dtype == np.uint8 else "I;16", None, none, ignored)
    labels = np.zeros(masks.size, np.uint16)
    if masks.ids:
        places = label_map(masks.probabilities, masks.rule or RULE, masks.background)
        labels = np.array([0, *masks.ids], np.uint16)[places]
    save_png(path, _picture(np.where(layout.kept, layout.values, labels), layout))


def recognise(path: Path) -> str | None:
    """What tells that this is a label picture whatever the class table, or None."""
    try:
        kind = png_kind(path, Naming())
    except InputError:
        return None
    return kind.evidence if kind.name == NAME else None


def _values(path: Path, picture: Image.Image) -> tuple[Labels, bytes | None]:
    """The ids that the pixels stand for, and the palette's RGB values."""
    if picture.mode in ("RGB", "RGBA"):
        return ids_of_colours(path, picture), None
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise MaskError(f"{path}: a picture of mode {picture.mode}, expected ids in a palette or grey picture")
    palette = picture.getpalette("RGB") if picture.mode == "P" else None
    return index_values(path, picture), None if palette is None else bytes(palette)


def _ignored(values: Labels, naming: Naming) -> Bools:
    table = naming.table
    ignored = unlabelled(values, set() if table is None else {entry.id for entry in table.classes})
    if table is not None and not table.background:
        ignored |= values == 0
    return ignored


def _picture(labels: Array, layout: IndexLayout) -> Image.Image:
    if layout.mode.startswith("I"):
        return Image.fromarray(labels.astype(np.uint16))
    values = labels.astype(np.uint8)
    if layout.mode in ("RGB", "RGBA"):
        return Image.fromarray(COLOURS[values]).convert(layout.mode)
    picture = Image.fromarray(values)
    if layout.mode == "P":
        palette = layout.palette if layout.palette is not None else COLOURS.tobytes()
        # Pillow stores as many bits as the palette's colours need, whatever the values.
        missing = 3 * (int(values.max()) + 1) - len(palette)
        picture.putpalette(palette + bytes(max(missing, 0)))
    elif layout.mode == "1":
        picture = Image.fromarray(values > 0)
    return picture
