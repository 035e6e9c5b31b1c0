"""A DatasetSource: which image has which masks, class names and ground truth, all by the image's stem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from g4seg_trt.atomic import reason
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.mask_files import MaskCollection, MaskSet, MaskSource, entries, layouts, only, open_masks
from g4seg_trt.errors import ConfigError, InputError, some
from g4seg_trt.listing import IMAGE_SUFFIXES, composed, images_of_list, listed
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.outputs import folder_files

_TRUTHS = frozenset({".png", ".npy", ".npz", ""})
"""Suffixes of ground truth; the empty one is that of folders."""


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    Attributes:
        stem: the name that everything about it shares.
        name: its file, relative to the folder of the images.
        image: its file.
        masks: where its masks are, or why there are none.
        truth: the file or folder of its ground truth, None if it has none, or why it cannot be told.
    """

    stem: str
    name: str
    image: Path
    masks: MaskSource | InputError
    truth: Path | InputError | None = None


class Entry(NamedTuple):
    """What is kept of an image until its turn: names only, so that large data sets stay small.

    Attributes:
        stem: the image's stem.
        image: the name of its file.
        masks: the name of its masks, or why there are none.
        truth: the name of its ground truth, None if it has none, or why it cannot be told.
    """

    stem: str
    image: str
    masks: str | InputError
    truth: str | InputError | None


@dataclass(frozen=True)
class DatasetSource:
    """Images with their coarse masks, in order. Iterating gives an `Item` for each.

    Attributes:
        images: folder of the images.
        masks: where the masks are.
        entries: one for each image.
        class_name: the class of every image, if it is the same.
        classes: stem -> class names, where they are given.
        truth: folder of the ground truth, if there is one.
        table: class ids and names of the data set, if it has them.
        is_part: whether it is a part of a larger one.
        beside: images that are not wanted, and have masks in the same file of all images.
    """

    images: Path
    masks: MaskSet
    entries: Sequence[Entry]
    class_name: str | None = None
    classes: Mapping[str, tuple[str, ...]] | None = None
    truth: Path | None = None
    table: ClassTable | None = None
    is_part: bool = False
    beside: Sequence[Entry] = ()

    @classmethod
    def from_folders(
        cls,
        images: str | Path,
        masks: str | Path,
        *,
        class_name: str | None = None,
        classes: Mapping[str, str | Sequence[str]] | None = None,
        truth: str | Path | None = None,
        names: Sequence[str] | None = None,
        table: ClassTable | None = None,
        format: str | None = None,
    ) -> DatasetSource:
        """Pair every image with what has its stem: the name of the file without its suffix.

        Args:
            images: folder of the images; those in folders below it are left alone.
            masks: folder of the masks, STEM.png, .npy, .npz or STEM/CLASS.png, or a file with those of all images:
                see g4seg_trt.masks.formats.
            class_name: the class of every image.
            classes: stem -> class name or names.
            truth: folder of the ground truth, laid out as the masks; of several classes also an index STEM.png. Images
                that have none there are left out of figures, and else as the others: see `without_truth`.
            names: the images wanted, in order, by default all by name: their stems, or paths that end in their
                files' names, as `listing.images_of_list` reads them.
            table: the data set's classes; ground truth in index pictures then holds its ids.
            format: the name of the format of the masks; None tells it from the content of each file.

        Raises:
            InputError: if a folder is missing, there is no image or no ground truth of any, or `names` has one twice or
                that is not there.
        """
        images, masks = Path(images), Path(masks)
        pictures: dict[str, list[str]] = {}
        for name in listed(images, "image folder"):
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                pictures.setdefault(composed(PurePosixPath(name).stem), []).append(name)
        if not pictures:
            raise InputError(f"{images}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        stems = list(pictures) if names is None else _wanted(names, pictures, images)
        mask_set = open_masks(masks, format, Naming((class_name,) if class_name is not None else None, table))
        truths = entries(Path(truth), "ground-truth folder", _TRUTHS) if truth is not None else None
        named = None if classes is None else {stem: _several(of_it) for stem, of_it in classes.items()}
        matching = any(mask_set.candidates(stem) for stem in stems)
        owners: dict[str, list[str]] = {}  # COCO has one number for 139.jpg and 000000000139.jpg
        for stem, alike in pictures.items():
            for key in mask_set.candidates(stem):
                owners.setdefault(key, []).extend(alike)
        found = []
        for stem in stems:
            masks_of: str | InputError
            truth_of: str | InputError | None = None
            try:
                if len(pictures[stem]) > 1:
                    raise InputError(f"several images of one stem: {', '.join(pictures[stem])}")
                if named is not None and stem not in named:
                    raise InputError("the file given by --classes does not have it")
                candidates = mask_set.candidates(stem)
                if not candidates and matching:  # else the masks are those of other images
                    candidates = mask_set.classless(stem)
                masks_of = only(candidates, mask_set.missing(), "mask")
                if len(owners.get(masks_of, ())) > 1:
                    raise InputError(f"its masks could be those of several images, keep one: {some(owners[masks_of])}")
            except InputError as error:
                masks_of = error.with_traceback(None)
            if truths is not None and stem in truths:
                try:
                    truth_of = only(truths[stem], "", "ground truth")
                except InputError as error:
                    truth_of = error.with_traceback(None)
            found.append(Entry(stem, pictures[stem][0], masks_of, truth_of))
        root = Path(truth) if truth is not None else None
        if root is not None and not any(entry.truth for entry in found):
            raise InputError(f"{root}: holds no ground truth of any of the {len(found)} images ({layouts(_TRUTHS)})")
        beside = []
        if isinstance(mask_set, MaskCollection):
            known = set(stems).union(() if named is None else pictures.keys() - named.keys())
            for stem in (stem for stem, alike in pictures.items() if len(alike) == 1 and stem not in known):
                own = [key for key in mask_set.candidates(stem) if len(owners[key]) == 1]
                beside += [Entry(stem, pictures[stem][0], key, None) for key in own]
        return cls(images, mask_set, found, class_name, named, root, table, beside=beside)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Item]:
        for entry in self.entries:
            yield self._item(entry)

    def item(self, place: int) -> Item:
        """The image at a place, from 0 on."""
        return self._item(self.entries[place])

    def items_beside(self) -> Iterator[Item]:
        """The images of `beside`, without a ground truth."""
        return map(self._item, self.beside)

    def part(self, shard: tuple[int, int] | None = None, limit: int | None = None) -> DatasetSource:
        """Every n-th image from the i-th on, of those the first ones.

        Args:
            shard: (i, n), i from 1 to n; all n parts together are the whole.
            limit: how many images at most.

        Raises:
            ConfigError: for other numbers.
        """
        entries = self.entries
        if shard is not None:
            index, count = shard
            if not 1 <= index <= count:
                raise ConfigError(f"shard {index}/{count}: the first number goes from 1 to the second")
            entries = entries[index - 1 :: count]
        if limit is not None:
            if limit < 1:
                raise ConfigError(f"limit is {limit}, allowed: 1 or more")
            entries = entries[:limit]
        return replace(self, entries=entries, is_part=self.is_part or shard is not None or limit is not None)

    @property
    def keeps_names(self) -> bool:
        """Whether probabilities are stored with their classes' names, however many classes an image has."""
        return self.table is not None or isinstance(self.masks, MaskCollection)

    @property
    def without_truth(self) -> tuple[str, ...]:
        """Stems of the images that have no ground truth, although there is a folder of it."""
        return () if self.truth is None else tuple(entry.stem for entry in self.entries if entry.truth is None)

    def files(self) -> Iterator[Path]:
        """Every file that a run of these images may read, and the other masks of the set."""
        for entry in self.entries:
            yield self.images / entry.image
            if self.truth is not None and isinstance(entry.truth, str):
                truth = self.truth / entry.truth
                yield from folder_files(truth) if truth.is_dir() else [truth]
        yield from self.masks.files()

    def _item(self, entry: Entry) -> Item:
        image = self.images / entry.image
        masks: MaskSource | InputError
        if isinstance(entry.masks, InputError):
            masks = entry.masks
        elif (problem := _no_file(image)) is not None:
            masks = InputError(f"{image}: {problem}")
        else:
            masks = self.masks.source(entry.masks, self.naming(entry.stem))
        truth = entry.truth
        if isinstance(truth, str) and self.truth is not None:
            return Item(entry.stem, entry.image, image, masks, self.truth / truth)
        return Item(entry.stem, entry.image, image, masks, truth if isinstance(truth, InputError) else None)

    def naming(self, stem: str) -> Naming:
        """What is known about the classes of an image."""
        if self.classes is not None:
            return Naming(self.classes[stem], self.table)
        return Naming((self.class_name,) if self.class_name is not None else None, self.table)


def _wanted(names: Sequence[str], pictures: Mapping[str, list[str]], images: Path) -> list[str]:
    """The stems that a list names; raises InputError."""
    stems = images_of_list(names, pictures)
    for stem, line in stems.items():
        if stem not in pictures:
            raise InputError(f"the list of images has {line!r}: {images} holds no image of that stem")
    return list(stems)


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _no_file(path: Path) -> str | None:
    """Why a path is no file that can be opened, None if it is one."""
    try:
        path.stat()
    except OSError as error:
        return f"a broken symbolic link ({reason(error)})" if path.is_symlink() else reason(error)
    return "a folder named like an image" if path.is_dir() else None
