"""Where the coarse masks of each image lie: a file or folder for each image, or one file for the whole data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from g4seg_engine.manifest import file_sha256
from g4seg_trt.atomic import reason
from g4seg_trt.errors import ConfigError, InputError, MaskError
from g4seg_trt.listing import by_stem, composed
from g4seg_trt.masks.class_folder import class_files
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.detect import Detected, detect
from g4seg_trt.masks.formats import FORMATS, Collection, CollectionFormat, Format, format_named
from g4seg_trt.outputs import folder_files
from g4seg_trt.update import BackgroundRule

Size: TypeAlias = tuple[int, int]
Rules: TypeAlias = tuple[BackgroundRule | None, ...]


class Back(NamedTuple):
    """What the refined masks of an image are called in the layout that its coarse ones came in.

    Attributes:
        name: of the file or folder.
        is_folder: whether it is a folder.
    """

    name: str
    is_folder: bool

    @property
    def suffix(self) -> str:
        """In lower case; "" of a folder, whatever dots its name has."""
        return "" if self.is_folder else Path(self.name).suffix.lower()


class MaskSource(Protocol):
    """The coarse masks of one image, unread. Each method raises MaskError for what is wrong with the file."""

    def taken_for(self) -> tuple[str, str]:
        """The name of the format, and a line that says what told it."""

    def digest(self) -> str:
        """sha256 over what `read` depends on: the content, the format asked for, the class names asked for."""

    def read(self, size: Size | None = None, rules: Rules | None = None) -> CoarseMasks:
        """Read the masks.

        Args:
            size: the image's (height, width), as in Naming.
            rules: the background rules that will decide, as in Naming. They are part of no digest: a run's settings
                have them.

        Raises:
            ClassNameError: if the names do not fit, or are missing.
        """

    def back(self) -> Back | None:
        """What `write` makes; None for masks that did not come by themselves: in a file of all images, or by class."""

    def write(self, path: Path, masks: CoarseMasks) -> None:
        """Write masks that `read` gave, with other maps, in the layout they came in, atomically; raises OutputError."""


class MaskSet(Protocol):
    """The coarse masks of a whole data set."""

    def candidates(self, stem: str) -> Sequence[str]:
        """The names of what could be the masks of an image."""

    def classless(self, stem: str) -> Sequence[str]:
        """The names of an image without candidates if that says that it shows no class; else nothing."""

    def source(self, name: str, naming: Naming) -> MaskSource:
        """The masks of one of those names."""

    def missing(self) -> str:
        """Why an image without candidates has none, for a message."""

    def files(self) -> list[Path]:
        """Every file that belongs to the set, also those of no image."""


def open_masks(path: Path, asked: str | None, naming: Naming) -> MaskFolder | MaskCollection:
    """The masks in a folder with a file for each image, or in a file of all images.

    Args:
        path: the folder or file.
        asked: the name of the format, None to tell it from the content.
        naming: for a file of all images.

    Raises:
        InputError: if there is no such folder, or the file is none of all images.
        ConfigError: if no format has the name.
    """
    if not path.is_file():
        return MaskFolder.open(path, asked)
    detected = detect(path, asked, naming)
    if not isinstance(detected.format, CollectionFormat):
        one = detected.format.name
        raise InputError(f"{path}: {one} holds the masks of one image, expected a folder or a file of all images")
    collection = detected.format.open(path, naming)
    evidence = "; ".join(filter(None, (detected.evidence, collection.remark)))
    return MaskCollection(path, detected.format, evidence, collection)


@dataclass(frozen=True)
class MaskFolder:
    """A folder with a file or folder for each image, of its stem.

    Attributes:
        root: the folder.
        asked: the format of its files, None to tell it from each one's content.
        names: stem -> the entries of that stem.
    """

    root: Path
    asked: str | None
    names: Mapping[str, tuple[str, ...]]

    @classmethod
    def open(cls, root: Path, asked: str | None) -> MaskFolder:
        """List a folder.

        Raises:
            InputError: if it cannot be listed.
            ConfigError: if no format has the name `asked`, or it is one of all images in one file.
        """
        return cls(root, asked, entries(root, "mask folder", _suffixes(asked)))

    def candidates(self, stem: str) -> Sequence[str]:
        """The entries of a stem."""
        return self.names.get(stem, ())

    def classless(self, stem: str) -> Sequence[str]:  # noqa: ARG002 - no stem has any
        """Nothing: a file that is not there says nothing."""
        return ()

    def source(self, name: str, naming: Naming) -> MaskSource:
        """The masks in the file or folder `name`."""
        return MaskFile(self.root / name, self.asked, naming)

    def missing(self) -> str:
        """What the folder would have to hold."""
        return f"{self.root} has no {layouts(_suffixes(self.asked))} for it"

    def files(self) -> list[Path]:
        """The files, and those in the folders of several masks."""
        found = [self.root / name for names in self.names.values() for name in names]
        return [file for entry in found for file in (folder_files(entry) if entry.is_dir() else [entry])]


@dataclass(frozen=True)
class MaskFile:
    """The masks of one image in a file or folder of their own.

    Attributes:
        path: the file or folder.
        asked: its format, None to tell it from the content.
        naming: the classes wanted, and the data set's table.
    """

    path: Path
    asked: str | None
    naming: Naming

    def taken_for(self) -> tuple[str, str]:
        """The format and its evidence."""
        return self._detected.format.name, self._detected.evidence

    def digest(self) -> str:
        """See MaskSource."""
        return _digest(content_digest(self.path), self.asked, self.naming)

    def read(self, size: Size | None = None, rules: Rules | None = None) -> CoarseMasks:
        """See MaskSource."""
        return self._format.read(self.path, replace(self.naming, size=size, rules=rules))

    def back(self) -> Back:
        """The file's own name."""
        return Back(self.path.name, not self._format.suffixes)

    def write(self, path: Path, masks: CoarseMasks) -> None:
        """See MaskSource."""
        self._format.write(path, masks)

    @cached_property
    def _detected(self) -> Detected:
        return detect(self.path, self.asked, self.naming)

    @property
    def _format(self) -> Format:
        found = self._detected.format
        if isinstance(found, CollectionFormat):
            raise MaskError(f"{self.path}: {found.name} holds the masks of all images; give the file itself to --masks")
        return found


@dataclass(frozen=True)
class MaskCollection:
    """A file with the masks of all images.

    Attributes:
        path: the file.
        format: its format.
        evidence: a line that says what told it.
        collection: its content.
    """

    path: Path
    format: CollectionFormat
    evidence: str
    collection: Collection

    def candidates(self, stem: str) -> Sequence[str]:
        """The stem as the file has it."""
        own = self._stems.get(composed(self.format.key_of(stem)))
        return () if own is None else (own,)

    def classless(self, stem: str) -> Sequence[str]:
        """The number that the file would have it by, if the file only has images in which something was found."""
        key = self.format.key_of(stem)
        return () if self.format.lists_all or not key.isdecimal() else (key,)

    def source(self, name: str, naming: Naming) -> MaskSource:
        """The masks of one image."""
        return CollectedMasks(self, name, naming, self._stems.get(composed(name)) == name)

    def missing(self) -> str:
        """That the file has none."""
        return f"{self.path} has nothing about it"

    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @cached_property
    def _stems(self) -> dict[str, str]:
        """The stems as names of images have them, and as the file does."""
        return {composed(stem): stem for stem in self.collection.stems()}


@dataclass(frozen=True)
class CollectedMasks:
    """The masks of one image in a file of all images.

    Attributes:
        whole: the file.
        key: what it calls the image.
        naming: the class names asked for.
        there: whether it has any.
    """

    whole: MaskCollection
    key: str
    naming: Naming
    there: bool = True

    def taken_for(self) -> tuple[str, str]:
        """The format of the file."""
        return self.whole.format.name, self.whole.evidence

    def digest(self) -> str:
        """See MaskSource."""
        content = self.whole.collection.digest(self.key) if self.there else "none"
        return _digest(content, self.whole.format.name, self.naming)

    def read(self, size: Size | None = None, rules: Rules | None = None) -> CoarseMasks:
        """See MaskSource."""
        if not self.there:
            if size is None:
                raise MaskError(f"{self.whole.missing()}, and the image's size is not known")
            return CoarseMasks((), (), np.zeros((0, *size), np.float32))
        return self.whole.collection.read(self.key, replace(self.naming, size=size, rules=rules))

    def back(self) -> None:
        """None: the file is written once, with all images."""

    def write(self, path: Path, masks: CoarseMasks) -> None:
        """Never called, for there is nothing to give `back`."""
        raise NotImplementedError


def entries(folder: Path, what: str, suffixes: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Files with these suffixes by their stem, and with "" among them folders by their name: stem -> entries.

    Raises:
        InputError: if the folder cannot be listed.
    """
    return by_stem(folder, what, lambda path: ("" if path.is_dir() else path.suffix.lower() or None) in suffixes)


def names_of(stem: str) -> list[Back]:
    """What the masks of an image may be called, whatever their format."""
    return [Back(f"{stem}{suffix}", suffix == "") for suffix in _suffixes(None)]


def layouts(suffixes: frozenset[str]) -> str:
    """What an image's masks may be called, in words."""
    files = [f"STEM{suffix}" for suffix in sorted(suffixes - {""})]
    return " or ".join([", ".join(files), *(["STEM/CLASS.png"] if "" in suffixes else [])]).removeprefix(" or ")


def content_digest(path: Path) -> str:
    """sha256 of a file, or over the masks in a folder of them and their names; raises MaskError."""
    try:
        if not path.is_dir():
            return file_sha256(path)
        content = {name: file_sha256(file) for name, file in class_files(path).items()}
    except OSError as error:
        raise MaskError(f"{path}: cannot be read ({reason(error)})") from error
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def only(candidates: Sequence[str], missing: str, what: str) -> str:
    """The one candidate; raises InputError if there is none, or more than one."""
    if not candidates:
        raise InputError(f"no {what}: {missing}")
    if len(candidates) > 1:
        raise InputError(f"several files could be its {what}: {', '.join(candidates)}")
    return candidates[0]


def _suffixes(asked: str | None) -> frozenset[str]:
    """Of the files of a format, or of any; "" for folders."""
    if asked is None:
        formats = [one for one in FORMATS.values() if isinstance(one, Format)]
    else:
        wanted = format_named(asked)
        if isinstance(wanted, CollectionFormat):
            raise ConfigError(f"the format {asked} is a file of all images: give it to --masks, not a folder")
        formats = [wanted]
    return frozenset(suffix for one in formats for suffix in one.suffixes or ("",))


def _digest(content: str, asked: str | None, naming: Naming) -> str:
    return hashlib.sha256(json.dumps([content, asked, naming.names]).encode("ascii")).hexdigest()
