"""Workers of a run on Ray, in this process and without Ray: what they make of a task, and what ends a run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4seg_trt.cluster.permit import Permit
from g4seg_trt.cluster.worker import (
    BEFORE,
    OUTCOME,
    PADDING,
    PLACE,
    Assignment,
    EngineOptions,
    LookingWorker,
    Outcome,
    RefiningWorker,
    Unfinished,
    bare_record,
    working_folder,
)
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import StopRun, make_plan
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import G4SegError, InputError
from g4seg_trt.refiner import Refiner

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Outputs = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def assignment(refiner: Refiner, dataset: Dataset, without_ray: Any) -> Iterator[Assignment]:
    """What the workers of a run over the data set would be told."""
    layout = Layout(dataset.output)
    for folder in (layout.root, *layout.folders(), layout.records):
        folder.mkdir()
    source, options = (
        DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc"),
        RunOptions(refiner.config),
    )
    plan = make_plan(source, run_settings(refiner.fingerprint(), refiner.config, None, None), options, layout)
    with Permit.issue(layout.records) as permit:
        yield Assignment(
            EngineOptions("tiny", threads=1),
            refiner.fingerprint(),
            plan,
            without_ray.put(source),
            permit,
            2,
            frozenset(),
            working_folder(),
        )


def outcomes(worker: LookingWorker | RefiningWorker, *places: int) -> list[Outcome]:
    """A task given to a worker in this process."""
    column = np.array([bare_record(None, withdrawn=False)] * len(places), dtype=object)
    rows = worker({PLACE: np.array(places), BEFORE: column})
    found = [pickle.loads(row[OUTCOME][0]) for row in rows]
    told = [place for place, _ in found if place != PADDING]
    assert told == [place for place in places if place != PADDING][: len(told)], "in the order of the places"
    return [outcome for _, outcome in found]


def message(worker: LookingWorker | RefiningWorker) -> str:
    """What ends the run at the first task."""
    outcome = outcomes(worker, 0)[0]
    assert isinstance(outcome, G4SegError)
    assert "\n" not in str(outcome)
    return str(outcome)


def test_a_task_ends_where_the_run_ends(assignment: Assignment, outputs_of: Outputs, dataset: Dataset) -> None:
    worker = RefiningWorker(assignment)
    (first,) = outcomes(worker, 3, PADDING, PADDING)
    assert isinstance(first, Result)
    assert first.stem == dataset.stems[3]
    assert len(outputs_of(dataset.output)) == 3
    assignment.permit.path.unlink()  # as if the run had been killed, and its folder were another one's
    job = worker._job(0, bare_record(None, withdrawn=False))
    image, maps, _ = job.load()
    with Refiner.from_engine("tiny", threads=1) as refiner:
        refiner.set_image(image)
        refinement = refiner.refine(maps)
    with pytest.raises(StopRun):
        job.finish(job.work(job.completed(refinement)))
    assert len(outputs_of(dataset.output)) == 3


def test_a_task_that_workers_die_over_is_given_up_by_name(assignment: Assignment, dataset: Dataset) -> None:
    worker = RefiningWorker(assignment)
    for _ in range(3):  # dead workers never come to the end of theirs
        assignment.permit.attempt(1).__enter__()
    outcome, again = outcomes(worker, 1, 2)
    assert isinstance(outcome, G4SegError)
    assert str(again) == str(outcome), "Ray may have taken the row of the first image before"
    assert f"3 workers died over these images: {dataset.stems[1]}.png, {dataset.stems[2]}.png;" in str(outcome)
    assert all(isinstance(one, Result) for one in outcomes(worker, 1, 2)), "counted anew once it is told"


def test_rows_come_in_the_order_of_the_places_whatever_becomes_of_them(
    assignment: Assignment, dataset: Dataset
) -> None:
    next(dataset.masks.glob(f"{dataset.stems[1]}.*")).write_bytes(b"no mask")
    (dataset.images / f"{dataset.stems[3]}.png").write_bytes(b"no picture")
    worker = RefiningWorker(assignment)
    for _ in range(2):
        found = [outcome for outcome in outcomes(worker, 0, 1, 2, 3, 4) if isinstance(outcome, Result)]
        assert [result.stem for result in found] == list(dataset.stems)
        assert [result.state for result in found] == ["refined", "failed", "refined", "failed", "refined"]


def test_workers_leave_it_to_the_run_to_remove_files(
    assignment: Assignment, dataset: Dataset, outputs_of: Outputs
) -> None:
    worker = RefiningWorker(assignment)
    (done,) = outcomes(worker, 2)
    assert isinstance(done, Result)
    assert done.record is not None
    before = outputs_of(dataset.output)
    (dataset.images / f"{dataset.stems[2]}.png").write_bytes(b"no picture")
    rows = worker({PLACE: np.array([2]), BEFORE: np.array([bare_record(done.record, withdrawn=False)], dtype=object)})
    (outcome,) = [pickle.loads(row[OUTCOME][0])[1] for row in rows]
    assert isinstance(outcome, Unfinished)
    assert outcome.result.error is not None
    assert outputs_of(dataset.output) == before


def test_machines_that_see_other_files_are_one_line(assignment: Assignment, dataset: Dataset, tmp_path: Path) -> None:
    elsewhere = replace(assignment, permit=Permit(tmp_path / "other" / "records" / "permit"))
    assert "other is not the output folder there" in message(RefiningWorker(elsewhere))
    assert "not the output folder" in message(LookingWorker(elsewhere))
    engine = replace(assignment, engine=EngineOptions(str(tmp_path / "none")))
    assert f"engine {tmp_path / 'none'} does not exist" in message(RefiningWorker(engine))
    other = replace(assignment, fingerprint={**assignment.fingerprint, "engine manifest sha256": "0" * 64})
    assert "engine is another one there: engine manifest sha256" in message(RefiningWorker(other))
    dataset.images.rename(dataset.root / "moved")
    assert f"{dataset.images} is no folder there" in message(RefiningWorker(assignment))


def test_every_error_of_an_image_comes_through_as_it_is(assignment: Assignment, dataset: Dataset) -> None:
    (dataset.images / f"{dataset.stems[0]}.png").write_bytes(b"no picture")
    (outcome,) = outcomes(LookingWorker(assignment), 0)
    assert not isinstance(outcome, Result), "it is only looked at"
    (result,) = outcomes(RefiningWorker(assignment), 0)
    assert isinstance(result, Result)
    assert isinstance(result.error, InputError)
