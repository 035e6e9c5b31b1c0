"""What a comparison was made with: its records count for the same parameters only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from g4seg_trt import DatasetSource, Refiner
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import refine_into, refine_items
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.postprocess import PostChain, PostProcess

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset


class Cut(PostProcess):
    """Leaves nothing below a limit."""

    def __init__(self, limit: float, name: str = "cut") -> None:
        self.limit = limit
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def parameters(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def check(self) -> None:
        return

    def _process(self, _: Bytes, probabilities: Floats, *_rest: Any) -> Floats:
        return probabilities * (probabilities >= np.float32(self.limit))


def compared(refiner: Refiner, source: DatasetSource, output: Path, compare: PostProcess | None) -> list[Result]:
    """As the command does with --resume --compare."""
    settings = run_settings(refiner.fingerprint(), refiner.config, None, source.table)
    options = RunOptions(refiner.config, compare=compare)
    layout = Layout(output, named=source.keeps_names)
    refine = partial(refine_items, refiner)
    return list(refine_into(refine, source, settings, options, layout, resume=True, shard=None))


def counts_of(results: list[Result], row: str) -> list[Any]:
    return [None if result.counts is None else result.counts[row] for result in results]


def test_other_parameters_of_a_comparison_are_compared_anew(refiner: Refiner, dataset: Dataset, tmp_path: Path) -> None:
    source = DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", truth=dataset.truth)
    before = compared(refiner, source, dataset.output, Cut(0.6))
    assert {result.state for result in before} == {"refined"}
    assert {result.state for result in compared(refiner, source, dataset.output, Cut(0.6))} == {"skipped"}
    after = compared(refiner, source, dataset.output, Cut(0.9))
    alone = compared(refiner, source, tmp_path / "alone", Cut(0.9))
    assert {result.state for result in after} == {"refined"}
    for row in ("coarse + cut", "refined + cut"):
        assert counts_of(after, row) == counts_of(alone, row)
        assert counts_of(after, row) != counts_of(before, row)
    for compare, state in (
        (None, "skipped"),
        (Cut(0.9), "skipped"),
        (Cut(0.9, "other"), "refined"),
        (PostChain([Cut(0.9)]), "refined"),
        (PostChain([Cut(0.9), Cut(0.9)]), "refined"),
        (PostChain([Cut(0.9), Cut(0.9)]), "skipped"),
    ):
        assert {result.state for result in compared(refiner, source, dataset.output, compare)} == {state}, compare


def test_another_ground_truth_is_compared_anew(refiner: Refiner, dataset: Dataset) -> None:
    source = DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", truth=dataset.truth)
    compared(refiner, source, dataset.output, Cut(0.6))
    for stem in dataset.stems[:2]:
        Image.new("L", (64, 64), 255).save(dataset.truth / f"{stem}.png")
    # Without a comparison an image is measured again, and its figures are those of no comparison.
    assert [result.state for result in compared(refiner, source, dataset.output, None)] == ["skipped"] * 5
    states = [result.state for result in compared(refiner, source, dataset.output, Cut(0.6))]
    assert states == ["refined"] * 2 + ["skipped"] * 3


def test_an_image_without_classes_and_table_is_compared_once(refiner: Refiner, dataset: Dataset) -> None:
    empty = dataset.stems[0]
    classes = dict.fromkeys(dataset.stems, ("disc",)) | {empty: ()}
    for stem in dataset.stems:
        next(dataset.masks.glob(f"{stem}.*")).unlink()
        truth = np.asarray(Image.open(dataset.truth / f"{stem}.png"))
        Image.fromarray((truth > 0).astype(np.uint8) * (stem != empty)).save(dataset.masks / f"{stem}.png")
    source = DatasetSource.from_folders(
        dataset.images, dataset.masks, classes=classes, truth=dataset.truth, format="index-png"
    )
    first = compared(refiner, source, dataset.output, Cut(0.6))
    assert [(result.state, result.counts is None) for result in first] == [
        ("refined", result.stem == empty) for result in first
    ]
    assert [result.state for result in compared(refiner, source, dataset.output, Cut(0.6))] == ["skipped"] * 5
    assert [result.state for result in compared(refiner, source, dataset.output, Cut(0.9))] == ["refined"] * 5
