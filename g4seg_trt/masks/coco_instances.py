"""Format "coco-instances": images, annotations and categories in one JSON file, as COCO's ground truth has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from g4seg_trt.arrays import Bools
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.coarse import CoarseMasks, Naming, ids_of_names
from g4seg_trt.masks.coco import digest, dumped, is_whole, load_json, peek, short
from g4seg_trt.masks.coco_maps import Instance, class_maps, kept
from g4seg_trt.masks.coco_rle import encode

NAME = "coco-instances"
_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class InstanceLayout:
    """What `write_collection` gives back.

    Attributes:
        image: the image's record.
        categories: the category id of each map.
        others: annotations of categories that were not asked for, as they came.
    """

    image: dict[str, Any]
    categories: tuple[int, ...]
    others: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Content:
    """The parts of the file.

    Attributes:
        whole: the file as it is, without images and annotations in their places (None).
        images: image records by the stem of their file.
        annotations: annotations by image id.
        categories: category names by their id, in the order of the ids.
    """

    whole: dict[str, Any]
    images: dict[str, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: dict[int, str]


class InstanceCollection:
    """The masks of all images in an instances file, decoded image by image. Stems are those of the file names.

    Attributes:
        path: the file.
    """

    remark: str | None = None

    def __init__(self, path: Path, naming: Naming, content: Content) -> None:
        self.path = path
        self._naming = naming
        self.content = content

    @classmethod
    def open(cls, path: Path, naming: Naming) -> InstanceCollection:
        """Read the file.

        Args:
            path: an object with images (id, file_name, height, width), annotations (image_id, category_id,
                segmentation) and categories (id, name).
            naming: its table gives class ids to the categories by their names; without one they are 1, 2, .. in the
                order of the category ids.

        Raises:
            MaskError: if the file is missing, no JSON or of another form, an id, name or stem is there twice, or an
                annotation is of an unknown image or category.
        """
        content = load_json(path)
        if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in _PARTS):
            raise MaskError(f"{path}: expected an object with the lists {', '.join(_PARTS)}")
        images = _images(content["images"], path)
        categories = _categories(content["categories"], path)
        annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images.values()}
        for place, annotation in enumerate(content["annotations"]):
            _check(annotation, {"image_id": int, "category_id": int}, f"{path}, annotations[{place}]")
            for kind, known in (("image", annotations), ("category", categories)):
                if annotation[f"{kind}_id"] not in known:
                    what = f"{path}, annotation {short(annotation.get('id'))}"
                    raise MaskError(f"{what}: the file has no {kind} {annotation[f'{kind}_id']}")
            annotations[annotation["image_id"]].append(annotation)
        whole = {key: None if key in ("images", "annotations") else value for key, value in content.items()}
        return cls(path, naming, Content(whole, images, annotations, categories))

    @staticmethod
    def key_of(stem: str) -> str:
        """The stem that `stems` has for the same image: itself."""
        return stem

    def stems(self) -> tuple[str, ...]:
        """The stems of the images' file names, in the order of the file."""
        return tuple(self.content.images)

    def digest(self, stem: str) -> str:
        """sha256 of what the file says about an image; raises MaskError if that is nothing."""
        image = self._image(stem)
        annotations = self.content.annotations[image["id"]]
        return digest([image, annotations, self.content.whole["categories"]], f"{self.path}, image {stem}")

    def read(self, stem: str, naming: Naming | None = None) -> CoarseMasks:
        """The masks of one image: for each class with an instance the pixels of any.

        Args:
            stem: the image's.
            naming: names and size for this image, in place of those that the file was opened with.

        Raises:
            MaskError: if the file has no such image, a segmentation is malformed or of another size, or the image
                does not have a class asked for.
            ClassNameError: for a category whose name the table does not have, or such a name.
        """
        asked = self._naming if naming is None else replace(naming, table=self._naming.table)
        image = self._image(stem)
        what = f"{self.path}, image {stem}"
        size = image["height"], image["width"]
        instances = [
            Instance(
                one["category_id"],
                1.0,
                one.get("segmentation"),
                f"{what}, annotation {short(one.get('id'))}",
                one,
            )
            for one in self.content.annotations[image["id"]]
        ]
        present = {one.category for one in instances}
        names = {one: name for one, name in self.content.categories.items() if one in present}
        table = self._naming.table
        of_table = names if table is None else {one: table.named(name, what).name for one, name in names.items()}
        found = class_maps(instances, of_table, asked, size, what)
        chosen = tuple(names[one] for one in found.categories)
        return CoarseMasks(
            self._ids(found.categories, chosen, what),
            chosen,
            found.maps,
            origin={NAME: InstanceLayout(image, found.categories, found.others)},
        )

    def _ids(self, categories: tuple[int, ...], names: tuple[str, ...], what: str) -> tuple[int, ...]:
        if self._naming.table is not None:
            return ids_of_names(names, self._naming, what)
        order = list(self.content.categories)
        return tuple(order.index(one) + 1 for one in categories)

    def _image(self, stem: str) -> dict[str, Any]:
        image = self.content.images.get(stem)
        if image is None:
            raise MaskError(f"{self.path}: has no image {stem}")
        return image


def write_collection(path: Path, results: Iterable[tuple[str, CoarseMasks | None]], source: InstanceCollection) -> None:
    """Write the refined masks as an instances file, atomically: the images in the order given, no others.

    Each class of an image is one annotation, as a run-length code: the pixels of a probability of at least 0.5.
    Instances are not told apart again, and a class without a pixel is left out. Categories and whatever else the
    file says stay.

    Args:
        path: where to.
        results: stem and refined masks, read from `source`; None for an image whose annotations stay as they came, but
            for their ids.
        source: the file that they came from.

    Raises:
        MissingExtraError: pycocotools is not installed.
        OutputError: if the file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem, masks in results:
        if masks is None:
            image = source.content.images[stem]
            others: Sequence[dict[str, Any]] = source.content.annotations[image["id"]]
        else:
            layout: InstanceLayout = masks.origin[NAME]
            image, others = layout.image, layout.others
            for category, probability in zip(layout.categories, masks.probabilities, strict=True):
                pixels = kept(probability, 1.0)
                if pixels.any():
                    annotations.append(_annotation(len(annotations) + 1, image["id"], category, pixels))
        images.append(image)
        annotations += [{**one, "id": number} for number, one in enumerate(others, len(annotations) + 1)]
    content = {**source.content.whole, "images": images, "annotations": annotations}
    with atomic_file(path) as file:
        file.write(dumped(content, str(source.path)))


def recognise(path: Path) -> str | None:
    """What tells that this is an instances file, or None."""
    text = peek(path)
    found = [part for part in _PARTS if f'"{part}"' in text]
    # One part alone may fill a large file between the ends that are looked at.
    if not text.startswith("{") or len(found) < 2:
        return None
    return f"a JSON object with {' and '.join(found)}"


def _annotation(number: int, image: int, category: int, pixels: Bools) -> dict[str, Any]:
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": encode(pixels),
        "area": int(pixels.sum()),
        "bbox": [int(side) for side in box],
        "iscrowd": 0,
    }


def _images(records: list[Any], path: Path) -> dict[str, dict[str, Any]]:
    images: dict[str, dict[str, Any]] = {}
    ids: set[int] = set()
    for place, image in enumerate(records):
        _check(image, {"id": int, "file_name": str, "height": int, "width": int}, f"{path}, images[{place}]")
        stem = PurePosixPath(image["file_name"]).stem
        if image["id"] in ids:
            raise MaskError(f"{path}: two images have the id {image['id']}")
        if stem in images:
            raise MaskError(f"{path}: two images are called {stem}")
        if image["height"] < 1 or image["width"] < 1:
            raise MaskError(f"{path}: the image {stem} is {image['width']}x{image['height']} pixels")
        ids.add(image["id"])
        images[stem] = image
    return images


def _categories(records: list[Any], path: Path) -> dict[int, str]:
    categories: dict[int, str] = {}
    for place, category in enumerate(records):
        _check(category, {"id": int, "name": str}, f"{path}, categories[{place}]")
        if any("\ud800" <= letter <= "\udfff" for letter in category["name"]):  # halves of UTF-16 pairs
            raise MaskError(
                f"{path}: the category {category['id']} is called {short(category['name'])}, no Unicode text"
            )
        if category["id"] in categories:
            raise MaskError(f"{path}: two categories have the id {category['id']}")
        if category["name"] in categories.values():
            raise MaskError(f"{path}: two categories are called {category['name']!r}")
        categories[category["id"]] = category["name"]
    return dict(sorted(categories.items()))


def _check(record: object, keys: dict[str, type], what: str) -> None:
    """Check that a record is an object with these keys, texts or whole numbers."""
    for key, kind in keys.items():
        value = record.get(key) if isinstance(record, dict) else None
        if not (is_whole(value) if kind is int else isinstance(value, kind)):
            raise MaskError(f"{what}: {key} is {short(value)}, expected {'a whole number' if kind is int else 'text'}")
