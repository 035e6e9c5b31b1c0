"""What lies in a folder, by names in one Unicode form."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from g4seg_trt.atomic import reason
from g4seg_trt.errors import InputError


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
