"""Post-processing in runs over data sets: what is written, what makes a run do images again, baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import ConfigError, DatasetSource, Refiner, load_image
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.run import refine_into, refine_items
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.dataset.untouched import Untouched
from g4seg_trt.errors import MaskError
from g4seg_trt.evaluate.predictions import Predictions, labels_under
from g4seg_trt.masks import read_index_png, read_mask, read_masks
from g4seg_trt.postprocess import Pamr, PostChain, PostProcess
from g4seg_trt.update import BackgroundRule, label_map

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Outputs = Callable[[Path], dict[str, bytes]]


class Halved(PostProcess):
    """Halves every probability; fails on images without a bright pixel."""

    @property
    def name(self) -> str:
        return "halved"

    def parameters(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        return

    def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
        if image.max() < 100:
            raise MaskError("too dark")
        assert background is None
        assert str(rule) == "constant:0.3"
        return probabilities * np.float32(0.5)


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def test_what_is_written_is_post_processed(refiner: Refiner, dataset: Dataset, tmp_path: Path) -> None:
    plain = refiner.refine_dataset(source_of(dataset), tmp_path / "plain", background="constant:0.3")
    Image.new("RGB", (64, 64)).save(dataset.images / f"{dataset.stems[4]}.png")
    results = list(
        zip(
            plain,
            refiner.refine_dataset(
                source_of(dataset, truth=dataset.truth), dataset.output, background="constant:0.3", post=Halved()
            ),
            strict=True,
        )
    )
    for before, after in results[:4]:
        assert before.refinement is not None
        assert after.refinement is not None
        halved = before.refinement.probabilities["disc"] * np.float32(0.5)
        assert np.array_equal(after.refinement.probabilities["disc"], halved)
        assert "post" in after.refinement.timings
        stored = read_mask(dataset.output / "probability" / f"{after.stem}.png", "disc")
        assert np.allclose(stored, halved, atol=1e-5)
        label = read_index_png(dataset.output / "label" / f"{after.stem}.png")
        assert ((label > 0) == (label_map([halved], "constant:0.3") > 0)).all()
        assert after.classes["disc"].area_after == (label > 0).sum()
        assert after.record is not None
        assert after.record.details["timings"]["post"] >= 0
    assert str(results[4][1].error) == "too dark"
    assert not (dataset.output / "label" / f"{dataset.stems[4]}.png").exists()


def test_another_post_processing_does_all_again(refiner: Refiner, dataset: Dataset) -> None:
    def states(post: PostProcess | str | None) -> set[str]:
        results = refiner.refine_dataset(source_of(dataset), dataset.output, resume=True, post=post)
        return {result.state for result in results}

    for post in (None, "pamr", "pamr,pamr", None):
        assert states(post) == {"refined"}
        assert states(post) == {"skipped"}
    with pytest.raises(ConfigError, match="post-processing 'blur', allowed: crf"):
        states("blur")


class Cut(PostProcess):
    """Leaves nothing below a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    @property
    def name(self) -> str:
        return "cut"

    def parameters(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def check(self) -> None:
        return

    def _process(self, _: Bytes, probabilities: Floats, *_rest: Any) -> Floats:
        return probabilities * (probabilities >= np.float32(self.limit))


def test_another_parameter_of_the_same_post_processing_does_all_again(refiner: Refiner, dataset: Dataset) -> None:
    for post, state in (
        (Cut(0.1), "refined"),
        (Cut(0.1), "skipped"),
        (Cut(0.2), "refined"),
        (PostChain([Cut(0.2)]), "refined"),
        (PostChain([Cut(0.2), Cut(0.3)]), "refined"),
        (PostChain([Cut(0.3), Cut(0.2)]), "refined"),
        (PostChain([Cut(0.3), Cut(0.2)]), "skipped"),
    ):
        results = refiner.refine_dataset(source_of(dataset), dataset.output, resume=True, post=post)
        assert {result.state for result in results} == {state}, post.parameters()


def run_untouched(source: DatasetSource, output: Path, post: PostProcess, **more: Any) -> list[Any]:
    """As the command does with --no-refine."""
    untouched = Untouched()
    settings = run_settings(untouched.fingerprint(), None, None, source.table, post)
    options = RunOptions(RefineConfig(), post=post, **more)
    layout = Layout(output, named=source.keeps_names)

    return list(
        refine_into(partial(refine_items, untouched), source, settings, options, layout, resume=True, shard=None)
    )


def test_masks_left_as_they_are_are_a_baseline(refiner: Refiner, dataset: Dataset) -> None:
    results = run_untouched(source_of(dataset), dataset.output, Pamr())
    for result in results:
        image = load_image(dataset.images / result.image)
        given = read_mask(next(dataset.masks.glob(f"{result.stem}.*")), "disc")
        expected = Pamr().apply(image, given[None], BackgroundRule())
        assert np.array_equal(result.refinement.probabilities["disc"], expected[0])
        assert result.record.key.engine_sha256 == ""
    assert {result.state for result in run_untouched(source_of(dataset), dataset.output, Pamr())} == {"skipped"}
    again = refiner.refine_dataset(source_of(dataset), dataset.output, resume=True, post="pamr")
    assert {(result.state, result.redone) for result in again} == {("refined", ("settings", "engine"))}


def test_rule_and_background_are_those_of_the_masks(dataset: Dataset) -> None:
    seen: list[tuple[str, Any]] = []

    class Noted(Halved):
        def _process(self, image: Bytes, probabilities: Floats, rule: BackgroundRule, background: Any) -> Floats:
            seen.append((str(rule), background))
            return np.minimum(probabilities, np.float32(image.max()))

    for stem in dataset.stems:
        mask = read_mask(next(dataset.masks.glob(f"{stem}.*")), "disc")
        next(dataset.masks.glob(f"{stem}.*")).unlink()
        np.savez(dataset.masks / f"{stem}.npz", disc=mask, background=1 - mask)
    run_untouched(source_of(dataset), dataset.output, Noted())
    assert [rule for rule, _ in seen] == ["channel"] * 5
    first = read_masks(dataset.masks / f"{dataset.stems[0]}.npz")
    assert np.array_equal(seen[0][1], first["background"])


def test_an_image_without_classes_is_background_in_every_output(refiner: Refiner, dataset: Dataset) -> None:
    table = ClassTable.of_dataset("voc12")
    for stem in dataset.stems:
        next(dataset.masks.glob(f"{stem}.*")).unlink()
        labels = np.zeros((64, 64), np.uint8)
        labels[20:40, 20:40] = 12 * (stem != dataset.stems[1])
        Image.fromarray(labels).save(dataset.masks / f"{stem}.png")
        labels[0] = 255
        labels[30:50] = 12
        Image.fromarray(labels).save(dataset.truth / f"{stem}.png")
    source = DatasetSource.from_folders(dataset.images, dataset.masks, table=table, truth=dataset.truth)
    results = {result.stem: result for result in refiner.refine_dataset(source, dataset.output, post="pamr")}
    empty = results[dataset.stems[1]]
    assert empty.state == "refined", empty.error
    assert set(read_masks(dataset.output / "probability" / f"{empty.stem}.npz")) == {"background"}
    predictions = Predictions.find(dataset.output / "probability", table, dataset.stems)
    under, _ = labels_under(predictions.read(empty.stem), table, None, ())
    assert under.shape == (64, 64)
    assert not under.any()
    assert empty.counts is not None, "what it misses counts"
    assert empty.counts["refined"].pixels == {("", ""): 63 * 64 - 20 * 64, ("dog", ""): 20 * 64}


def test_records_hold_what_a_resumed_run_needs(refiner: Refiner, dataset: Dataset) -> None:
    source = source_of(dataset, truth=dataset.truth)
    first = list(refiner.refine_dataset(source, dataset.output))
    lines = (dataset.output / "records" / "all.jsonl").read_text().splitlines()
    assert all(len(line) < 4000 for line in lines)
    assert json.loads(lines[-1])["size"] == [64, 64]
    second = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [result.state for result in second] == ["skipped"] * 5
    assert [result.counts for result in second] == [result.counts for result in first]
    for path in (dataset.output / "records").glob("*.jsonl"):  # as if made with another ground truth
        path.write_text(path.read_text().replace('"truth_sha256": "', '"truth_sha256": "0'))
    third = list(refiner.refine_dataset(source, dataset.output, resume=True))
    assert [result.state for result in third] == ["skipped"] * 5
    assert [result.counts for result in third] == [result.counts for result in first]
