"""Format "coco-results": what a detector writes for COCO's evaluation, a list of masks with scores in one JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from g4seg_trt.atomic import atomic_file
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.coco import digest, dumped, is_whole, load_json, number_of, peek, short
from g4seg_trt.masks.coco_maps import Instance, class_maps, kept
from g4seg_trt.masks.coco_rle import encode, size_of

NAME = "coco-results"


@dataclass(frozen=True)
class ResultLayout:
    """What `write_collection` gives back.

    Attributes:
        image_id: the image's.
        categories: the category id of each map.
        scores: the score of each map.
        others: results of categories that were not asked for, as they came.
    """

    image_id: int
    categories: tuple[int, ...]
    scores: tuple[float, ...]
    others: tuple[dict[str, Any], ...]


class ResultCollection:
    """The masks of all images in a results file, decoded image by image.

    The file has image ids and no names. `stems` are the ids as plain numbers; `digest` and `read` take any stem that
    stands for the same number (`key_of`): 139, 000000000139, COCO_val2014_000000000139.

    Attributes:
        path: the file.
    """

    remark: str | None = None

    def __init__(self, path: Path, naming: Naming, table: ClassTable, entries: dict[str, list[dict[str, Any]]]) -> None:
        self.path = path
        self._naming = naming
        self._table = table
        self._entries = entries

    @classmethod
    def open(cls, path: Path, naming: Naming) -> ResultCollection:
        """Read the file.

        Args:
            path: a list of {"image_id", "category_id", "segmentation", "score"}.
            naming: its table says which class a category is; its names, if any, are the classes to read where `read`
                is not told others.

        Raises:
            MaskError: if the file is missing, no JSON, or not such a list.
            ClassNameError: without a table.
        """
        if naming.table is None:
            raise ClassNameError(
                f"{path} has category ids without names: say whose they are with --dataset coco-object"
            )
        content = load_json(path)
        if not isinstance(content, list):
            raise MaskError(f"{path}: a {type(content).__name__}, expected a list of results with image_id")
        entries: dict[str, list[dict[str, Any]]] = {}
        for place, entry in enumerate(content):
            ids = ("image_id", "category_id")
            if not isinstance(entry, dict) or not all(is_whole(entry.get(key)) for key in ids):
                raise MaskError(f"{path}, result {place}: expected an object with the numbers image_id and category_id")
            if "segmentation" not in entry:
                raise MaskError(f"{path}, result {place}: has no segmentation (boxes alone are no masks)")
            entries.setdefault(str(entry["image_id"]), []).append(entry)
        return cls(path, naming, naming.table, entries)

    @staticmethod
    def key_of(stem: str) -> str:
        """The stem that `stems` has for the same image."""
        return number_of(stem)

    def stems(self) -> tuple[str, ...]:
        """The image ids as text, in the order of the file."""
        return tuple(self._entries)

    def digest(self, stem: str) -> str:
        """sha256 of what the file says about an image; raises MaskError if that is nothing."""
        return digest(self.entries(stem), f"{self.path}, image {stem}")

    def read(self, stem: str, naming: Naming | None = None) -> CoarseMasks:
        """The masks of one image: for each class the largest score of its instances at every pixel.

        Args:
            stem: the image's.
            naming: names and size for this image, in place of those that the file was opened with.

        Raises:
            MaskError: if the file has nothing about the image, a mask is malformed, the sizes differ, a score is none
                from 0 to 1, or the image does not have a class asked for.
            ClassNameError: for a category or name that the table does not have.
        """
        asked = self._naming if naming is None else replace(naming, table=self._table)
        entries = self.entries(stem)
        what = f"{self.path}, image {entries[0]['image_id']}"
        instances = [
            Instance(entry["category_id"], _score(entry.get("score"), what), entry["segmentation"], what, entry)
            for entry in entries
        ]
        classes = {one: self._table.category(one, what) for one in sorted({one.category for one in instances})}
        first = entries[0]["segmentation"]
        if not isinstance(first, dict):
            raise MaskError(f"{what}: a result's segmentation has to be a run-length code with size and counts")
        names = {category: one.name for category, one in classes.items()}
        found = class_maps(instances, names, asked, size_of(first, what), what)
        best = tuple(max(one.score for one in instances if one.category == each) for each in found.categories)
        return CoarseMasks(
            tuple(classes[category].id for category in found.categories),
            tuple(classes[category].name for category in found.categories),
            found.maps,
            origin={NAME: ResultLayout(entries[0]["image_id"], found.categories, best, found.others)},
        )

    def entries(self, stem: str) -> list[dict[str, Any]]:
        """What the file says about an image; raises MaskError if that is nothing."""
        entries = self._entries.get(self.key_of(stem))
        if entries is None:
            raise MaskError(f"{self.path}: has no result for the image {stem}")
        return entries


def write_collection(path: Path, results: Iterable[tuple[str, CoarseMasks | None]], source: ResultCollection) -> None:
    """Write the refined masks as a results file, atomically: the images in the order given, no others.

    Each class is one result with the score that its best instance had: the pixels of at least half that score.
    Instances are not told apart again, those of less than half the best score of their class are lost where nothing
    better covers them, and a class without such a pixel is left out.

    Args:
        path: where to.
        results: stem and refined masks, read from `source`; None for an image that stays as it came, whatever it holds.
        source: the file that they came from.

    Raises:
        MissingExtraError: pycocotools is not installed.
        OutputError: if the file cannot be written.
    """
    what = str(source.path)
    with atomic_file(path) as file:
        before = b"["
        for stem, masks in results:
            for result in source.entries(stem) if masks is None else _refined(masks):
                file.write(before + dumped(result, what))
                before = b",\n"
        file.write(b"]" if before != b"[" else b"[]")


def recognise(path: Path) -> str | None:
    """What tells that this is a results file with masks, or None."""
    text = peek(path)
    keys = [f'"{key}"' for key in ("image_id", "category_id", "segmentation", "score")]
    if not text.startswith("[") or not all(key in text for key in keys):
        return None
    return "a JSON list of results with image_id, segmentation and score"


def _refined(masks: CoarseMasks) -> Iterator[dict[str, Any]]:
    """The results of an image."""
    layout: ResultLayout = masks.origin[NAME]
    for category, score, probability in zip(layout.categories, layout.scores, masks.probabilities, strict=True):
        pixels = kept(probability, score)
        if pixels.any():
            one = {"image_id": layout.image_id, "category_id": category}
            yield {**one, "segmentation": encode(pixels), "score": score}
    yield from layout.others


def _score(value: object, what: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise MaskError(f"{what}: a score is {short(value)}, expected a number from 0 to 1")
    return float(value)
