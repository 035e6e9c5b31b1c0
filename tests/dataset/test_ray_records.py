"""What a run on many workers does to the records, with workers in this process in the place of a cluster's."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import DatasetSource, Refiner
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cluster.connection import Room
from g4seg_trt.cluster.permit import Permit
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.cluster.worker import (
    BEFORE,
    OUTCOME,
    PADDING,
    PLACE,
    Ended,
    EngineOptions,
    LookingWorker,
    RefiningWorker,
    Todo,
)
from g4seg_trt.errors import MissingExtraError

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Outputs = Callable[[Path], dict[str, bytes]]
    Lines = Callable[[Path], list[dict[str, object]]]

KINDS = ("probability", "label", "masks")


pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def pool(refiner: Refiner, monkeypatch: pytest.MonkeyPatch) -> RayRefiner:
    """One worker, which takes one row after the other."""

    def mapped(_: RayRefiner, kind: Any, rows: list[tuple[int, bytes]], work: Any) -> Iterator[Any]:
        worker = kind(work)
        for place, before in rows:
            batch = {PLACE: np.array([place]), BEFORE: np.array([before], dtype=object)}
            for row in worker(batch):
                yield pickle.loads(row[OUTCOME][0])

    monkeypatch.setattr(RayRefiner, "_mapped", mapped)
    return RayRefiner(EngineOptions("tiny", threads=1), Room(1, 1, False), refiner.manifest, refiner.execution)


@pytest.fixture(params=["one process", "many"])
def run(request: pytest.FixtureRequest, pool: RayRefiner, refiner: Refiner) -> Any:
    """Has refine_dataset."""
    return pool if request.param == "many" else refiner


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def told(lines: list[dict[str, object]], stem: str) -> list[str]:
    """What the records say of an image, line by line."""
    return ["withdrawn" if "withdrawn" in line else "done" for line in lines if stem in line.values()]


def turn(path: Path) -> None:
    """Another picture in the place of one."""
    Image.fromarray(np.asarray(Image.open(path))[::-1].copy()).save(path)


def test_the_stand_in_does_what_one_process_does(
    pool: RayRefiner, refiner: Refiner, dataset: Dataset, outputs_of: Outputs
) -> None:
    list(refiner.refine_dataset(source_of(dataset), dataset.root / "one"))
    assert {result.state for result in pool.refine_dataset(source_of(dataset), dataset.output)} == {"refined"}
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "one")


def test_a_run_that_ends_after_the_look_loses_only_what_has_changed(
    pool: RayRefiner, dataset: Dataset, lines_of: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(pool.refine_dataset(source_of(dataset), dataset.output))
    turn(dataset.images / "im 001.png")

    def ended(*_: object) -> Iterator[Any]:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(RefiningWorker, "_work", ended)
        with pytest.raises(ZeroDivisionError):
            list(pool.refine_dataset(source_of(dataset), dataset.output, resume=True, overlay=True))
    again = {
        result.stem: result.state for result in pool.refine_dataset(source_of(dataset), dataset.output, resume=True)
    }
    assert again == {stem: "refined" if stem == "im 001" else "skipped" for stem in dataset.stems}
    assert told(lines_of(dataset.output), "im 001") == ["done", "withdrawn", "done"]
    assert told(lines_of(dataset.output), "im 000") == ["done"]


def test_rows_that_come_after_the_end_of_their_worker_are_taken(
    pool: RayRefiner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped(*_: object) -> Iterator[Any]:
        yield 0, Todo(False)
        yield PADDING, Ended("one", (0, 1))  # of a later task: Ray keeps no order between two
        yield 1, Todo(True)
        raise AssertionError("nothing else was on its way")

    monkeypatch.setattr(RayRefiner, "_mapped", mapped)
    asked = iter([False, *[True] * 9])  # the run is stopped at its first result
    with Permit.issue(tmp_path) as permit:
        rows = [(place, b"") for place in range(3)]
        told = list(
            pool._outcomes(LookingWorker, rows, cast("Any", SimpleNamespace(permit=permit)), lambda: next(asked))
        )
    assert told == [(0, Todo(False)), (1, Todo(True))]


def test_a_worker_never_waits_for_the_rows_of_its_task(refiner: Refiner, without_ray: SimpleNamespace) -> None:
    asked: dict[str, Any] = {}

    class Data:
        context = SimpleNamespace()

        def map_batches(self, *_: object, **options: Any) -> Data:
            asked.update(options, buffer=self.context._max_num_blocks_in_streaming_gen_buffer)
            return self

        def iter_batches(self, **_: object) -> Iterator[Any]:
            return iter([])

    data = Data()
    without_ray.data = SimpleNamespace(from_items=lambda *_, **__: data, ActorPoolStrategy=lambda **_: None)
    pool = RayRefiner(EngineOptions("tiny", threads=1), Room(2, 1, False), refiner.manifest, refiner.execution)
    assert list(pool._mapped(RefiningWorker, [(place, b"") for place in range(40)], cast("Any", None))) == []
    assert asked["buffer"] > asked["batch_size"] > 1, "a row for each image, and one that says that the worker ends"


def test_records_are_taken_back_only_for_other_inputs(
    run: Any, dataset: Dataset, outputs_of: Outputs, lines_of: Lines
) -> None:
    list(run.refine_dataset(source_of(dataset), dataset.output))
    first = outputs_of(dataset.output)
    turn(dataset.images / "im 001.png")
    results = list(run.refine_dataset(source_of(dataset), dataset.output, resume=True, overlay=True))
    assert {result.state for result in results} == {"refined"}
    after, lines = outputs_of(dataset.output), lines_of(dataset.output)
    assert {name for name in first if after[name] != first[name]} <= {f"{kind}/im 001.png" for kind in KINDS}
    assert [told(lines, stem) for stem in dataset.stems] == [
        ["done", "withdrawn", "done"] if stem == "im 001" else ["done", "done"] for stem in dataset.stems
    ]


def test_a_failure_after_a_killed_run_leaves_nothing_of_the_one_before(
    run: Any, dataset: Dataset, outputs_of: Outputs
) -> None:
    list(run.refine_dataset(source_of(dataset), dataset.output))
    before = outputs_of(dataset.output)
    with (dataset.output / "records" / "all.jsonl").open("a") as file:
        file.write(json.dumps({"withdrawn": "im 001"}) + "\n")  # and then it was killed
    (dataset.images / "im 001.png").write_bytes(b"no picture")
    results = run.refine_dataset(source_of(dataset), dataset.output, resume=True)
    states = {result.stem: result.state for result in results}
    assert states == {stem: "failed" if stem == "im 001" else "skipped" for stem in dataset.stems}
    assert outputs_of(dataset.output) == {name: data for name, data in before.items() if "im 001" not in name}


def test_a_failure_keeps_the_record_of_the_same_inputs(
    run: Any, dataset: Dataset, outputs_of: Outputs, lines_of: Lines
) -> None:
    source = source_of(dataset, truth=dataset.truth)
    list(run.refine_dataset(source, dataset.output))
    before = outputs_of(dataset.output)
    for number in (1, 2):
        (dataset.truth / f"im 00{number}.png").write_bytes(b"no picture")
    np.save(dataset.truth / "im 003.npy", np.zeros((64, 64), np.float32))  # which of the two is it?
    for number in (2, 3):
        turn(dataset.images / f"im 00{number}.png")
    source = source_of(dataset, truth=dataset.truth)
    results = {result.stem: result for result in run.refine_dataset(source, dataset.output, resume=True)}
    failed = {stem: result.kept for stem, result in results.items() if result.state == "failed"}
    assert failed == {"im 001": True, "im 002": False, "im 003": False}
    kept = {name: data for name, data in before.items() if "im 002" not in name and "im 003" not in name}
    assert outputs_of(dataset.output) == kept
    lines = lines_of(dataset.output)
    assert [told(lines, stem) for stem in dataset.stems] == [
        ["done", "withdrawn"] if stem in ("im 002", "im 003") else ["done"] for stem in dataset.stems
    ]


def test_masks_that_cannot_be_told_are_others(run: Any, dataset: Dataset, outputs_of: Outputs) -> None:
    list(run.refine_dataset(source_of(dataset), dataset.output))
    before = outputs_of(dataset.output)
    (dataset.masks / "im 001.png").write_bytes(b"no mask")
    (dataset.masks / "im 002.png").unlink()
    for config, lost in ((run.config, ["im 001"]), (replace(run.config, beta=0.3), ["im 001", "im 002"])):
        results = list(run.refine_dataset(source_of(dataset), dataset.output, resume=True, config=config))
        assert {result.stem for result in results if result.state == "failed"} == {"im 001", "im 002"}
        after = outputs_of(dataset.output)
        assert set(after) == {name for name in before if not any(stem in name for stem in lost)}


def test_a_missing_package_is_the_failure_of_its_image(
    pool: RayRefiner, refiner: Refiner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(dataset, truth=dataset.truth)
    list(pool.refine_dataset(source, dataset.output))
    turn(dataset.truth / "im 001.png")

    def missing(*_: object) -> None:
        raise MissingExtraError.for_package("scipy", "mat")

    monkeypatch.setattr("g4seg_trt.dataset.done.read_done", missing)
    found = [list(run.refine_dataset(source, dataset.output, resume=True)) for run in (refiner, pool)]
    for results in found:
        (failed,) = [result for result in results if result.state == "failed"]
        assert (failed.stem, failed.kept, type(failed.error)) == ("im 001", True, MissingExtraError)


def test_figures_of_another_ground_truth_are_recorded(pool: RayRefiner, dataset: Dataset, lines_of: Lines) -> None:
    source = source_of(dataset, truth=dataset.truth)
    list(pool.refine_dataset(source, dataset.output))
    turn(dataset.truth / "im 001.png")
    for expected in (True, False):
        results = {one.stem: one for one in pool.refine_dataset(source, dataset.output, resume=True)}
        assert {result.state for result in results.values()} == {"skipped"}
        assert [stem for stem, result in results.items() if result.remeasured] == ["im 001"] * expected
    assert told(lines_of(dataset.output), "im 001") == ["done", "done"]


def test_a_file_of_all_images_goes_with_the_first_that_changes(
    pool: RayRefiner, refiner: Refiner, dataset: Dataset
) -> None:
    rle = pytest.importorskip("pycocotools.mask")
    found = []
    for number, stem in enumerate(dataset.stems):
        mask = (np.asarray(Image.open(dataset.truth / f"{stem}.png")) > 0).astype(np.uint8)
        code = rle.encode(np.asfortranarray(mask))
        code["counts"] = code["counts"].decode()
        found.append({"image_id": number, "category_id": 18, "segmentation": code, "score": 0.75})
        (dataset.images / f"{stem}.png").rename(dataset.images / f"{number:012d}.png")
    (dataset.root / "res.json").write_text(json.dumps(found), "ascii")
    source = DatasetSource.from_folders(
        dataset.images, dataset.root / "res.json", table=ClassTable.of_dataset("coco-object")
    )
    back = dataset.output / "masks" / "res.json"
    list(pool.refine_dataset(source, dataset.output))
    whole = back.read_bytes()
    part = list(pool.refine_dataset(source, dataset.output, resume=True, limit=2))
    assert {result.state for result in part} == {"skipped"}
    assert back.read_bytes() == whole
    other = replace(refiner.config, beta=0.3)
    list(pool.refine_dataset(source, dataset.output, resume=True, limit=2, config=other))
    assert not back.exists()
    list(pool.refine_dataset(source, dataset.output, resume=True, config=other))
    list(refiner.refine_dataset(source, dataset.root / "one", config=other))
    assert back.read_bytes() == (dataset.root / "one" / "masks" / "res.json").read_bytes()
