"""What records say of an image: changed pixels, and the rule that decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from g4seg_trt import DatasetSource, Refiner
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.masks import read_index_png
from g4seg_trt.postprocess import PostProcess

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset


class Whole(PostProcess):
    """All of an image is of its first class."""

    @property
    def name(self) -> str:
        return "whole"

    def parameters(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        return

    def _process(self, _: Bytes, probabilities: Floats, *_rest: Any) -> Floats:
        return np.ones_like(probabilities)


def test_pixels_without_a_label_do_not_change(refiner: Refiner, dataset: Dataset) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[20:40, 20:40] = 255
    labels[21:39, 21:39] = 12
    for stem in dataset.stems:
        next(dataset.masks.glob(f"{stem}.*")).unlink()
        Image.fromarray(labels).save(dataset.masks / f"{stem}.png")
    source = DatasetSource.from_folders(dataset.images, dataset.masks, table=ClassTable.of_dataset("voc12"))
    for post in (None, Whole()):
        for result in refiner.refine_dataset(source, dataset.output, resume=True, post=post):
            assert result.record is not None, result.error
            written = read_index_png(dataset.output / "label" / f"{result.stem}.png")
            changed = int((written != labels).sum())
            assert result.record.details["changed_pixels"] == changed
            assert result.classes["dog"].changed_pixels == changed
            if post is not None:
                assert changed == (labels == 0).sum()


def test_no_background_is_told_as_none(refiner: Refiner, dataset: Dataset) -> None:
    table = ClassTable("things", (ClassEntry(1, "disc", "disc"), ClassEntry(2, "ground", "ground")), background=False)
    first = dataset.stems[0]
    for stem in dataset.stems[1:]:
        (dataset.images / f"{stem}.png").unlink()
    disc = np.load(dataset.masks / f"{first}.npz")["disc"]
    np.savez(dataset.masks / f"{first}.npz", disc=disc, ground=disc / 2)
    source = DatasetSource.from_folders(dataset.images, dataset.masks, table=table)
    (result,) = refiner.refine_dataset(source, dataset.output)
    assert result.record is not None, result.error
    assert result.record.details["background"] == "none"
    assert result.refinement is not None
    (warning,) = [one for one in result.refinement.warnings if "guided" in one]
    assert "'ground'" in warning
    assert "under the background rule none:" in warning
