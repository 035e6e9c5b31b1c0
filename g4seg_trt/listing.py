"""What lies in a folder or stands in a list of images, by names in one Unicode form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from g4seg_trt.atomic import reason
from g4seg_trt.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What the names of pictures end in; other files of an image folder are left alone."""

_SLASH = re.compile(r"[/\\]")


def composed(text: str) -> str:
    """One Unicode form for names that come from file systems, JSON and the command line."""
    return unicodedata.normalize("NFC", text)


def listed(folder: Path, what: str) -> list[str]:
    """The names in a folder in their order, hidden ones left out; raises InputError if it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such {what}") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder}: not a folder, expected the {what}") from error
    except OSError as error:
        raise InputError(f"{folder}: the {what} cannot be read ({reason(error)})") from error


def by_stem(folder: Path, what: str, wanted: Callable[[Path], bool], ending: str = "") -> dict[str, tuple[str, ...]]:
    """The entries of a folder by what comes before their suffix, those that are folders by their name.

    Args:
        folder: where they are.
        what: what the folder is, for messages.
        wanted: whether an entry is looked at.
        ending: what the stems end in beside; it is taken off, and entries without it are left alone.

    Returns:
        Stem -> the names of its entries, in their order.

    Raises:
        InputError: if the folder cannot be listed.
    """
    found: dict[str, list[str]] = {}
    for name in listed(folder, what):
        path = folder / name
        if wanted(path):
            stem = composed(name if path.is_dir() else path.stem)
            if stem.endswith(ending):
                found.setdefault(stem[: len(stem) - len(ending)], []).append(name)
    return {stem: tuple(names) for stem, names in found.items()}


def images_of_list(lines: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """The images that the lines of a list name.

    A line is a stem, a file name or a path, with slashes or backslashes; what follows a space is left aside, as in
    the lists of PASCAL VOC ("2007_000032 1", "/JPEGImages/a.jpg /SegmentationClassAug/a.png"). Names hold dots and
    spaces too, so of all that a line may mean the likeliest counts that is there.

    Args:
        lines: empty ones do not count.
        known: the stems that there are, `composed`.

    Returns:
        Stem -> line, in the order of the lines. One that names nothing known stands for itself.

    Raises:
        InputError: if two lines name one image.
    """
    found: dict[str, str] = {}
    for line in filter(str.strip, lines):
        stem = next((one for one in _readings(line) if one in known), line)
        if stem in found:
            raise InputError(f"the list of images has {stem!r} twice: as {found[stem]!r} and as {line!r}")
        found[stem] = line
    return found


def _readings(line: str) -> Iterator[str]:
    """The stems that a line of a list may mean, the likeliest first."""
    whole = composed(line)
    yield whole
    texts = [whole, whole.split()[0]]
    # "images/a.jpg labels/b.png" is a picture and its labels, "images/a b.jpg" one with a space in its name.
    if _SLASH.search(whole.partition(texts[1])[2]) and _is_picture(texts[1]):
        texts.reverse()
    names = [name for text in texts for name in (text.rpartition("/")[2], _SLASH.split(text)[-1])]
    stems = [PurePosixPath(name).stem for name in names]
    pairs = [(stem, name) if _is_picture(name) else (name, stem) for name, stem in zip(names, stems, strict=True)]
    yield from (likely for likely, _ in pairs)
    yield from (unlikely for _, unlikely in pairs)


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
