"""What COCO's two kinds of JSON files share: parsing, telling them apart, what their values may be."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from pathlib import Path
from typing import Any

from g4seg_trt.atomic import reason
from g4seg_trt.errors import MaskError

_PEEK = 2**16
"""Bytes at the beginning and the end of a file that tell what it is."""

_STEM = re.compile(r"(?:COCO_[A-Za-z]+[0-9]*_)?0*([0-9]+)")


def load_json(path: Path) -> Any:
    """The content of a JSON file; raises MaskError if it is missing or none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise MaskError(f"{path}: not a JSON file, or damaged ({reason(error)})") from error


def peek(path: Path) -> str:
    """The beginning and the end of a file as text, empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK)
            length = file.seek(0, 2)
            file.seek(max(len(head), length - _PEEK))
            return (head + file.read(_PEEK)).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    except OSError:
        return ""


def number_of(stem: str) -> str:
    """What a picture's stem and an image id have in common.

    COCO's images are called by their id of twelve digits, in 2014 with a prefix: "000000000139",
    "COCO_val2014_000000000139" and "139" all give "139". A stem that is no number stays as it is.
    """
    match = _STEM.fullmatch(stem)
    return match[1] if match else stem


def dumped(content: object, what: str, *, sort_keys: bool = False) -> bytes:
    """A part of a JSON file as it is written; raises MaskError if it is nested so deep that it was only just read."""
    try:
        return json.dumps(content, sort_keys=sort_keys).encode("ascii")
    except RecursionError as error:
        raise MaskError(f"{what}: its values nest too deep") from error


def digest(content: object, what: str) -> str:
    """sha256 of a part of a JSON file, whatever its spaces and the order of its keys; raises as `dumped`."""
    return hashlib.sha256(dumped(content, what, sort_keys=True)).hexdigest()


def is_whole(value: object) -> bool:
    """Whether a JSON value may be an id, or the side of a picture: a whole number of no more than 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def short(value: object) -> str:
    """A JSON value for a message, the beginning and the end of a long one."""
    return reprlib.repr(value)
