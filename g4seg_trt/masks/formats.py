"""The formats of coarse masks by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from g4seg_trt.errors import ConfigError
from g4seg_trt.masks import (
    class_folder,
    clip_es,
    coco_instances,
    coco_results,
    diffsegmenter,
    index_png,
    irn,
    mmseg,
    npy,
    npz,
    psa,
    soft_png,
    stack,
)
from g4seg_trt.masks.coarse import CoarseMasks, Naming


class Collection(Protocol):
    """The masks of all images in one file.

    Attributes:
        remark: what reading does to the values, in words, where a user should know it; else None.
    """

    remark: str | None

    def stems(self) -> tuple[str, ...]:
        """The stems of the images, in order."""

    def digest(self, stem: str) -> str:
        """sha256 of what the file says about an image."""

    def read(self, stem: str, naming: Naming | None = None) -> CoarseMasks:
        """The masks of one image; raises MaskError, ClassNameError.

        Args:
            stem: one of `stems`.
            naming: names, size and rules for this image, in place of those that the file was opened with; the table
                stays.
        """


@dataclass(frozen=True)
class Format:
    """A format with a file, or a folder, for each image.

    Attributes:
        name: what --format calls it.
        description: one line.
        suffixes: of its files, lower case; empty for a folder.
        read: path, naming -> the masks; raises MaskError, ClassNameError.
        write: path, masks read by `read` -> a file of the same layout; raises OutputError.
        recognise: path -> what tells that it is this format, or None.
    """

    name: str
    description: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Naming], CoarseMasks]
    write: Callable[[Path, CoarseMasks], None]
    recognise: Callable[[Path], str | None]


@dataclass(frozen=True)
class CollectionFormat:
    """A format with one file for a whole data set.

    Attributes:
        name: what --format calls it.
        description: one line.
        suffixes: of its files, lower case.
        open: path, naming -> the collection; raises MaskError, ClassNameError.
        write: path, stems with masks read from a collection, or None for an image whose masks stay as they came, that
            collection -> a file of the same layout.
        recognise: path -> what tells that it is this format, or None.
        key_of: an image's stem -> the one that `stems` has for it.
        lists_all: whether an image that is not in the file has no masks because it was left out; else because
            nothing was found in it.
    """

    name: str
    description: str
    suffixes: tuple[str, ...]
    open: Callable[[Path, Naming], Collection]
    write: Callable[[Path, Iterable[tuple[str, CoarseMasks | None]], Any], None]
    recognise: Callable[[Path], str | None]
    key_of: Callable[[str], str] = str
    lists_all: bool = True


def _named(*formats: Format | CollectionFormat) -> dict[str, Format | CollectionFormat]:
    return {one.name: one for one in formats}


FORMATS: Mapping[str, Format | CollectionFormat] = _named(
    Format(
        "png",
        "one class in a grey PNG, 0/255 or soft, 8 or 16 bits",
        (".png",),
        soft_png.read,
        soft_png.write,
        soft_png.recognise,
    ),
    Format(
        "index-png",
        "class ids as the values of a palette or grey PNG, or in PASCAL VOC's colours; 255 ignored",
        (".png",),
        index_png.read,
        index_png.write,
        index_png.recognise,
    ),
    Format("npy", "one class in an array [H,W]", (".npy",), npy.read, npy.write, npy.recognise),
    Format(
        "array",
        "all classes in an array [C,H,W] or [H,W,C]",
        (".npy",),
        stack.read,
        stack.write,
        stack.recognise,
    ),
    Format("npz", "an array [H,W] under each class's name", (".npz",), npz.read, npz.write, npz.recognise),
    Format(
        "class-folder",
        "a folder STEM with CLASS.png or CLASS.npy",
        (),
        class_folder.read,
        class_folder.write,
        class_folder.recognise,
    ),
    Format(
        "clip-es",
        "CLIP-ES: a dict with keys and attn_highres",
        (".npy",),
        clip_es.read,
        clip_es.write,
        clip_es.recognise,
    ),
    Format("irn", "IRN: a dict with keys, cam and high_res", (".npy",), irn.read, irn.write, irn.recognise),
    Format(
        "psa",
        "PSA, SEAM, MCTformer: a dict of class index (from 0) to map",
        (".npy",),
        psa.read,
        psa.write,
        psa.recognise,
    ),
    Format(
        "psa-crf",
        "PSA after its CRF: a dict of class id to map, 0 background",
        (".npy",),
        psa.read_crf,
        psa.write_crf,
        psa.recognise_crf,
    ),
    Format(
        "diffsegmenter",
        "DiffSegmenter: a .mat file of class index (from 0) to map of 0..255",
        (".mat",),
        diffsegmenter.read,
        diffsegmenter.write,
        diffsegmenter.recognise,
    ),
    CollectionFormat(
        "mmseg",
        "mmsegmentation's DumpResults: predictions of all images",
        (".pkl", ".pickle"),
        mmseg.PredictionCollection.open,
        mmseg.write_collection,
        mmseg.recognise,
    ),
    CollectionFormat(
        "coco-results",
        "COCO results JSON: masks with scores of all images",
        (".json",),
        coco_results.ResultCollection.open,
        coco_results.write_collection,
        coco_results.recognise,
        coco_results.ResultCollection.key_of,
        lists_all=False,
    ),
    CollectionFormat(
        "coco-instances",
        "COCO instances JSON: images, annotations, categories",
        (".json",),
        coco_instances.InstanceCollection.open,
        coco_instances.write_collection,
        coco_instances.recognise,
    ),
)
"""By name, in the order in which they are looked for."""


def format_named(name: str) -> Format | CollectionFormat:
    """The format that --format calls `name`; raises ConfigError that lists them all."""
    found = FORMATS.get(name)
    if found is None:
        raise ConfigError(f"no mask format is called {name!r}, allowed: {', '.join(FORMATS)}")
    return found
