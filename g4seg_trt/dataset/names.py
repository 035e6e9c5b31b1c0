"""Names that people give: class names, those of each stem, and lists of images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from g4seg_trt.atomic import reason
from g4seg_trt.errors import ClassNameError, InputError
from g4seg_trt.listing import composed
from g4seg_trt.prompt import check_class_name


def check_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The class names with single spaces between words; raises ClassNameError if one is empty or doubled."""
    checked: list[str] = []
    for name in names:
        plain = composed(check_class_name(name))
        if plain in checked:
            raise ClassNameError(f"{where}: the class {plain!r} is given twice")
        checked.append(plain)
    return tuple(checked)


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
        classes[composed(stem)] = check_names(names, f"{path}, {stem!r}")
    return classes


def read_list(path: Path) -> list[str]:
    """Read a list of images: a name a line, as `DatasetSource.from_folders` takes them.

    Empty lines and lines that start with # do not count.

    Raises:
        InputError: if the file cannot be read or holds no name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        what = "it is not UTF-8 text" if isinstance(error, UnicodeError) else reason(error)
        raise InputError(f"{path}: the list of images cannot be read: {what}") from error
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"{path}: the list names no image")
    return names
