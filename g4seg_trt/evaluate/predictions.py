"""What a set of files predicts: label pictures, or probabilities in any format of masks with a background rule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from g4seg_trt.arrays import Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import InputError, MaskError
from g4seg_trt.listing import by_stem, composed
from g4seg_trt.masks import formats
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.colours import ids_of_colours
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.labels import background_of, class_ids, places
from g4seg_trt.masks.png import FORMAT, index_values
from g4seg_trt.picture import open_picture
from g4seg_trt.update import BackgroundRule

LABELS = "index-png"
"""The format of label pictures; every other one holds probabilities."""


class Read(Protocol):
    """Reads what is predicted of an image; raises G4SegError."""

    def __call__(
        self, stem: str, size: tuple[int, int] | None = None, rules: tuple[BackgroundRule | None, ...] | None = None, /
    ) -> Labels | CoarseMasks:
        """Labels, unsigned [H,W] with the table's ids, or masks.

        Args:
            stem: the image's.
            size: (height, width) that masks have to have, as in g4seg_trt.masks.coarse.Naming.
            rules: background rules that will decide over masks, as there.
        """


@dataclass(frozen=True)
class Predictions:
    """The predictions of a set of images.

    Attributes:
        where: the folder or file that they are in.
        stems: the images that they are of.
        read: reads one.
        taken_for: what the files are taken for, a line for each kind of file.
        label_pictures: those of the stems that have label pictures, which are decided already.
    """

    where: Path
    stems: Collection[str]
    read: Read
    taken_for: tuple[str, ...]
    label_pictures: Collection[str]

    @property
    def labels_only(self) -> bool:
        """Whether all are label pictures."""
        return len(self.label_pictures) == len(self.stems)

    @classmethod
    def find(cls, where: Path, table: ClassTable, known: Collection[str], asked: str | None = None) -> Predictions:
        """Find the predictions in a folder, or in a file of a whole data set.

        In a folder STEM.png is a label picture: a soft mask does not say its class. Other files, and folders STEM of
        one PNG for each class, are masks; the first of each suffix tells the format of all.

        Args:
            where: the folder or file.
            table: the classes.
            known: the stems of the ground truth; a file of COCO results has numbers only, and says of those that it
                does not have that nothing was found in them.
            asked: the format of files with one of its suffixes, where their content does not tell.

        Raises:
            InputError: if nothing is found, or two files have one stem.
            MaskError: if no format is recognised.
            ConfigError: if no format has the name `asked`.
        """
        if where.is_file():
            return _in_file(where, table, known, asked)
        return _in_folder(where, table, asked)


def files_by_stem(folder: Path, wanted: Callable[[Path], bool], what: str, *, ending: str = "") -> dict[str, Path]:
    """The entries of a folder by their stem, in the order of the names; hidden ones are left out.

    Args:
        folder: where they are.
        wanted: whether an entry is looked at.
        what: what the entries are, for messages.
        ending: what the stems end in beside; it is taken off, and entries without it are left alone.

    Raises:
        InputError: if the folder cannot be read, holds no such entry, or two of one stem.
    """
    found: dict[str, Path] = {}
    for stem, names in by_stem(folder, f"folder of {what}", wanted, ending).items():
        if len(names) > 1:
            raise InputError(f"{folder}: {names[0]} and {names[1]} are both {what} of {stem!r}")
        found[stem] = folder / names[0]
    if not found:
        raise InputError(f"{folder}: holds none of the {what}" + (f", whose names end in {ending}" if ending else ""))
    return found


def is_png(path: Path) -> bool:
    """Whether a path is that of a label picture."""
    return path.suffix.lower() == ".png" and not path.is_dir() and not path.is_fifo()


def read_labels(path: Path) -> Labels:
    """Read a label picture: the values of a palette or grey PNG, or ids by PASCAL VOC's colours.

    Returns:
        uint8 or uint16 [H,W].

    Raises:
        MaskError: if the file is missing, damaged or too large, or has a colour that VOC does not have.
    """
    picture = open_picture(path, MaskError, FORMAT)
    if picture.mode in ("RGB", "RGBA"):
        return ids_of_colours(path, picture)
    if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
        raise MaskError(f"{path}: a picture of mode {picture.mode}, a label picture is a palette or grey PNG")
    return index_values(path, picture)


def labels_under(
    prediction: Labels | CoarseMasks, table: ClassTable, rule: BackgroundRule | None, more: Sequence[BackgroundRule]
) -> tuple[Labels, list[Labels]]:
    """The labels of one image under the set's rule, and under each of some more; none of those for a label picture.

    Raises:
        G4SegError: as `places`.
    """
    if not isinstance(prediction, CoarseMasks):
        return prediction, []
    rules = [background_of(prediction, table, rule), *more]
    labels, *others = (
        class_ids(place, prediction.ids, prediction.ignored)
        for place in places(prediction, prediction.probabilities, rules)
    )
    return labels, others


def _in_folder(folder: Path, table: ClassTable, asked: str | None) -> Predictions:
    # A file of a whole data set is given itself.
    single = [one for one in formats.FORMATS.values() if isinstance(one, formats.Format)]
    suffixes = {suffix for one in single for suffix in one.suffixes}
    files = files_by_stem(folder, lambda path: path.is_dir() or path.suffix.lower() in suffixes, "predictions")
    # What the format of a file is looked for by: its suffix, or "" for a folder.
    kinds = {stem: "" if path.is_dir() else path.suffix.lower() for stem, path in files.items()}
    naming = Naming(table=table)
    readers: dict[str, formats.Format] = {}
    taken_for = []
    for stem, kind in kinds.items():
        if kind in readers:
            continue
        path = files[stem]
        wanted = LABELS if kind == ".png" and asked is None else asked
        if wanted is not None and kind not in (formats.format_named(wanted).suffixes or ("",)):
            wanted = None
        if kind == ".png" and wanted == LABELS:
            found, evidence = formats.format_named(LABELS), f"{path.name}: {LABELS}, as label pictures are"
        else:
            detected = detect(path, wanted, naming)
            found, evidence = detected.format, detected.evidence
        if not isinstance(found, formats.Format):
            raise MaskError(f"{path}: {found.name} holds a whole data set; give the file itself")
        readers[kind] = found
        taken_for.append(evidence)

    def read(
        stem: str, size: tuple[int, int] | None = None, rules: tuple[BackgroundRule | None, ...] | None = None
    ) -> Labels | CoarseMasks:
        path, reader = files[stem], readers[kinds[stem]]
        if reader.name == LABELS:
            return read_labels(path)
        return reader.read(path, Naming(table=table, size=size, rules=rules))

    pictures = frozenset(stem for stem, kind in kinds.items() if readers[kind].name == LABELS)
    return Predictions(folder, files.keys(), read, tuple(taken_for), pictures)


def _in_file(path: Path, table: ClassTable, known: Collection[str], asked: str | None) -> Predictions:
    naming = Naming(table=table)
    detected = detect(path, asked, naming)
    if isinstance(detected.format, formats.Format):
        raise InputError(f"{path}: {detected.format.name} is the masks of one image; give the folder that it is in")
    collection = detected.format.open(path, naming)
    there = {composed(key): key for key in collection.stems()}
    key_of = detected.format.key_of
    keys = {stem: there[key] for stem in known if (key := key_of(stem)) in there}
    used = set(keys.values())
    keys.update({stem: key for stem, key in there.items() if key not in used})
    classless: dict[str, None] = {}
    if used and not detected.format.lists_all:  # without any the file is of other images
        classless = dict.fromkeys(stem for stem in known if stem not in keys and key_of(stem).isdecimal())
    nothing = f"{len(classless)} images without results show no class" if classless else None

    def read(
        stem: str, size: tuple[int, int] | None = None, rules: tuple[BackgroundRule | None, ...] | None = None
    ) -> CoarseMasks:
        if stem in classless:
            if size is None:
                raise MaskError(f"{path} has nothing about {stem}, and the image's size is not known")
            return CoarseMasks((), (), np.zeros((0, *size), np.float32))
        return collection.read(keys[stem], Naming(size=size, rules=rules))

    evidence = "; ".join(filter(None, (detected.evidence, collection.remark, nothing)))
    return Predictions(path, (keys | classless).keys(), read, (evidence,), frozenset())
