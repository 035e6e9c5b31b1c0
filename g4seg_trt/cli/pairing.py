"""Folder runs: which masks, class names and ground truth belong to which image, all by the image's stem."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.arrays import Floats
from g4seg_trt.atomic import reason
from g4seg_trt.errors import ClassNameError, InputError, MaskError
from g4seg_trt.masks import NAMED_READERS, SINGLE_READERS, npz_names, pick, read_mask, read_masks
from g4seg_trt.prompt import check_class_name
from g4seg_trt.update import BACKGROUND

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files of an image folder with another suffix are left alone."""

LAYOUTS = "STEM.png, STEM.npy, STEM.npz or STEM/CLASS.png"


@dataclass(frozen=True)
class MaskSource:
    """Where the masks of one image come from.

    Attributes:
        where: the file or folder that was paired with the image.
        files: class name -> file; empty if `where` is an archive of named classes.
        names: the classes wanted, in order; None for all that there are.
    """

    where: Path
    files: Mapping[str, Path]
    names: tuple[str, ...] | None

    def classes(self, *, background: bool) -> tuple[str, ...]:
        """The names of the classes that `read` gives, without reading the masks; raises MaskError."""
        names = self.names or tuple(self.files) or npz_names(self.where)
        return tuple(name for name in names if not (background and name == BACKGROUND))

    def read(self, *, background: bool) -> tuple[dict[str, Floats], Floats | None]:
        """Read the masks.

        Args:
            background: take the mask called "background" as the background's probability, not as a class.

        Returns:
            class name -> float32 [H,W] in [0,1], and the background's map or None.

        Raises:
            MaskError: if a mask cannot be read or a wanted class has none.
        """
        archive = {} if self.files else read_masks(self.where)
        available = list(self.files or archive)
        names = [*(self.names or available)]
        if background and BACKGROUND not in names:
            names.append(BACKGROUND)
        masks = {}
        for name in names:
            if name in self.files:
                masks[name] = read_mask(self.files[name], name)
            elif not self.files:
                masks[name] = pick(archive, name, self.where)
            else:
                raise MaskError(f"{self.where}: no mask of {name!r}, there is {', '.join(available)}")
        below = masks.pop(BACKGROUND) if background else None
        if not masks:
            raise MaskError(f"{self.where}: holds no class beside the background")
        return masks, below


@dataclass(frozen=True)
class Item:
    """One image of a folder run.

    Attributes:
        stem: the name that everything about it shares.
        image: its file.
        masks: where its masks are, or why there are none.
        truth: the file or folder of its ground truth, None without one asked for, or why there is none.
    """

    stem: str
    image: Path
    masks: MaskSource | InputError
    truth: Path | InputError | None


def pair(
    images: Path,
    masks: Path,
    *,
    class_name: str | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
    truth: Path | None = None,
) -> list[Item]:
    """Find the masks and the ground truth of every image.

    Args:
        images: folder of the images.
        masks: folder of the masks: STEM.png or .npy of one class, STEM/CLASS.png or STEM.npz of several.
        class_name: the class of every image.
        classes: stem -> class names.
        truth: folder of the ground truth, laid out as the masks; of several classes also an index STEM.png.

    Returns:
        One item for each image, in the order of the names.

    Raises:
        InputError: if a folder is missing, or there is no image.
    """
    pictures: dict[str, list[Path]] = {}
    for path in listed(images, "image folder"):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            pictures.setdefault(_composed(path.stem), []).append(path)
    if not pictures:
        raise InputError(f"{images}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    mask_files = _by_stem(masks, "mask folder")
    truth_files = _by_stem(truth, "ground-truth folder") if truth is not None else {}
    items = []
    for stem, files in pictures.items():
        names = (class_name,) if class_name is not None else None
        masks_of: MaskSource | InputError
        truth_of: Path | InputError | None = None
        try:
            if len(files) > 1:
                raise InputError(f"several images of one stem: {', '.join(path.name for path in files)}")
            if classes is not None and stem not in classes:
                raise ClassNameError("the file given by --classes does not have it")
            masks_of = _source(_only(mask_files.get(stem, []), masks, "mask"), classes[stem] if classes else names)
            if truth is not None:
                truth_of = _only(truth_files.get(stem, []), truth, "ground truth")
        except InputError as error:
            masks_of = error
        items.append(Item(stem, files[0], masks_of, truth_of))
    return items


def class_files(folder: Path) -> dict[str, Path]:
    """The masks STEM/CLASS.png and .npy of one image: class name -> file.

    Raises:
        MaskError: if there is none, or two of one name.
    """
    files: dict[str, Path] = {}
    for path in listed(folder, "folder of masks"):
        if path.suffix.lower() in SINGLE_READERS:
            if _composed(path.stem) in files:
                raise MaskError(f"{folder}: two masks of the class {path.stem!r}")
            files[_composed(path.stem)] = path
    if not files:
        raise MaskError(f"{folder}: holds no mask CLASS.png or CLASS.npy")
    return files


def read_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a file {stem: class name or list of class names}.

    Raises:
        InputError: if the file is missing, no JSON, or of another form.
        ClassNameError: if a name is empty or given twice for one image.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file ({reason(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f'{path}: expected an object such as {{"STEM": "cat", "OTHER": ["cat", "dog"]}}')
    classes = {}
    for stem, value in content.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: {stem!r} has {value!r}, expected a class name or a list of them")
        classes[_composed(stem)] = check_names(names, f"{path}, {stem!r}")
    return classes


def check_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The class names with single spaces between words; raises ClassNameError if one is empty or doubled."""
    checked: list[str] = []
    for name in names:
        plain = _composed(check_class_name(name))
        if plain in checked:
            raise ClassNameError(f"{where}: the class {plain!r} is given twice")
        checked.append(plain)
    return tuple(checked)


def input_files(images: Path, masks: Path, truth: Path | None, made: Iterable[Path]) -> list[Path]:
    """Every file that `pair` may have looked at, whether or not it found a partner.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        truth: folder of the ground truth.
        made: folders that a run writes to; they may lie in a folder of masks without belonging to it.

    Raises:
        InputError: if a folder is missing.
    """
    outputs = {folder.resolve() for folder in made}
    entries = listed(images, "image folder")
    for folder in (masks, truth):
        for path in listed(folder, "folder of masks") if folder is not None else []:
            entries += listed(path, "folder of masks") if path.is_dir() and path.resolve() not in outputs else [path]
    known = {*IMAGE_SUFFIXES, *SINGLE_READERS, *NAMED_READERS}
    return [path for path in entries if path.suffix.lower() in known and path.is_file()]


def listed(folder: Path, what: str) -> list[Path]:
    """The entries of a folder by name, hidden ones left out; raises InputError if it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such {what}") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder}: not a folder, expected the {what}") from error
    except OSError as error:
        raise InputError(f"{folder}: the {what} cannot be read ({reason(error)})") from error


def _source(found: Path, names: tuple[str, ...] | None) -> MaskSource:
    if found.is_dir():
        return MaskSource(found, class_files(found), names)
    if found.suffix.lower() in NAMED_READERS:
        return MaskSource(found, {}, names)
    if names is None:
        raise ClassNameError(f"{found.name} does not say its class; give --class-name or --classes")
    if len(names) > 1:
        raise MaskError(f"{found.name} holds one class, not {len(names)}; give {found.stem}/CLASS.png or a .npz")
    return MaskSource(found, {names[0]: found}, names)


def _by_stem(folder: Path, what: str) -> dict[str, list[Path]]:
    """Mask files by their stem and folders by their name."""
    found: dict[str, list[Path]] = {}
    for path in listed(folder, what):
        if path.suffix.lower() in SINGLE_READERS or path.suffix.lower() in NAMED_READERS:
            found.setdefault(_composed(path.stem), []).append(path)
        elif path.is_dir():
            found.setdefault(_composed(path.name), []).append(path)
    return found


def _only(candidates: Sequence[Path], folder: Path, what: str) -> Path:
    if not candidates:
        raise MaskError(f"no {what}: {folder} has no {LAYOUTS} for it")
    if len(candidates) > 1:
        raise MaskError(f"several files could be its {what}: {', '.join(path.name for path in candidates)}")
    return candidates[0]


def _composed(text: str) -> str:
    """One Unicode form for names that come from file systems, JSON and the command line."""
    return unicodedata.normalize("NFC", text)
