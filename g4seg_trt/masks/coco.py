"""What COCO's two kinds of JSON files share: parsing, telling them apart, one map for each class."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.atomic import reason
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.array import check_count

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


def digest(content: object) -> str:
    """sha256 of a part of a JSON file, whatever its spaces and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_id(value: object) -> bool:
    """Whether a JSON value may be the id of an image or a category."""
    return isinstance(value, int) and not isinstance(value, bool)


def combined(
    instances: Iterable[tuple[int, float, Bools]],
    count: int,
    size: tuple[int, int],
    what: str,
    image: tuple[int, int] | None,
) -> Floats:
    """One map for each class: the largest score of its instances at each pixel.

    Args:
        instances: place of the class, score in [0,1], pixels bool [H,W].
        count: how many classes.
        size: (height, width).
        what: the file and image, for the message.
        image: the image's (height, width), if it is known.

    Returns:
        float32 [count,H,W] in [0,1].

    Raises:
        MaskError: if that is too much to hold, or of another size than the image.
    """
    check_count(count, size, what, image)
    maps = np.zeros((count, *size), np.float32)
    for place, score, mask in instances:
        np.maximum(maps[place], np.float32(score), out=maps[place], where=mask)
    return maps


def kept(probability: Floats, score: float) -> Bools:
    """The pixels of a class that are written: at least half of its score, and above 0."""
    return (probability >= np.float32(score / 2)) & (probability > 0)
