"""A pool of two workers on Ray leaves the same files and records as a single process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4seg_trt.cluster.connection import import_ray
from g4seg_trt.cluster.permit import Permit
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.cluster.worker import (
    BEFORE,
    OUTCOMES,
    PADDING,
    PLACE,
    Assignment,
    EngineOptions,
    LookingWorker,
    Outcome,
    RefiningWorker,
    bare_record,
    working_folder,
)
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import FAILED, REFINED, SKIPPED, Result
from g4seg_trt.dataset.run import StopRun, make_plan
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import G4SegError, InputError
from g4seg_trt.refiner import Refiner

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds processes by /proc")

Make = Callable[[int], "Dataset"]
Outputs = Callable[[Path], dict[str, bytes]]
Lines = Callable[[Path], list[dict[str, object]]]


@pytest.fixture(scope="module")
def pool() -> Iterator[RayRefiner]:
    """Two workers of one thread; Ray runs on this machine until the module ends."""
    with RayRefiner.from_engine("tiny", workers=2, threads=1) as refiner:
        yield refiner


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def states(results: list[Result]) -> Counter[str]:
    return Counter(result.state for result in results)


def stems_of(lines: list[dict[str, object]]) -> list[str]:
    """The images that the records call done, line by line."""
    return sorted(str(line["stem"]) for line in lines if "stem" in line)


def test_files_and_records_are_those_of_a_single_process(
    pool: RayRefiner, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(11)
    (dataset.masks / "im 004.png").write_bytes(b"no picture")
    source, one, many = source_of(dataset, truth=dataset.truth), dataset.root / "one", dataset.root / "many"
    expected = {result.stem: result for result in refiner.refine_dataset(source, one, overlay=True)}
    found = {result.stem: result for result in pool.refine_dataset(source, many, overlay=True)}
    assert outputs_of(many) == outputs_of(one)
    assert len(outputs_of(many)) == 4 * 10
    assert sorted(found) == sorted(expected)
    for stem, result in found.items():
        other = expected[stem]
        assert (result.state, str(result.error), result.classes) == (other.state, str(other.error), other.classes)
        assert result.counts == other.counts
        assert result.taken_for == other.taken_for
        if result.refinement is not None and other.refinement is not None:
            assert not result.refinement.probabilities, "pixels stay where they are written"
            assert result.refinement.softened == other.refinement.softened
            assert result.refinement.warnings == other.refinement.warnings
    assert found["im 004"].state == FAILED

    def recorded(folder: Path) -> dict[str, object]:
        """All that the records say but how long it took."""
        return {str(line["stem"]): {**line, "timings": None} for line in lines_of(folder) if "stem" in line}

    assert recorded(many) == recorded(one)
    assert not list(many.rglob("*.part"))


def test_a_resumed_run_does_what_differs_and_skips_the_rest(
    pool: RayRefiner, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(9)
    list(refiner.refine_dataset(source_of(dataset), dataset.output))
    whole = outputs_of(dataset.output)
    shutil.copy(dataset.masks / "im 002.png", dataset.masks / "im 001.png")
    shutil.copy(dataset.images / "im 005.png", dataset.images / "im 004.png")
    (dataset.output / "label" / "im 007.png").unlink()
    (dataset.images / "im 008.png").write_bytes(b"no picture")
    results = {result.stem: result for result in pool.refine_dataset(source_of(dataset), dataset.output, resume=True)}
    assert {stem: result.redone for stem, result in results.items() if result.state == REFINED} == {
        "im 001": ("masks",),
        "im 004": ("image",),
        "im 007": (),
    }
    assert [stem for stem, result in results.items() if result.state == FAILED] == ["im 008"]
    assert sorted(stem for stem, result in results.items() if result.state == SKIPPED) == [
        f"im 00{number}" for number in (0, 2, 3, 5, 6)
    ]
    fresh = dataset.root / "fresh"
    list(refiner.refine_dataset(source_of(dataset), fresh))
    assert outputs_of(dataset.output) == outputs_of(fresh)
    assert outputs_of(fresh) != whole
    lines = lines_of(dataset.output)
    for stem in ("im 001", "im 004", "im 007"):
        told = ["withdrawn" in line for line in lines if stem in (line.get("stem"), line.get("withdrawn"))]
        if stem == "im 007":  # the same inputs: what is there stays true
            assert told == [False, False]
        else:
            assert told == [False, True, False], "done, taken back before its files change, done again"
    again = list(refiner.refine_dataset(source_of(dataset), dataset.output, resume=True))
    assert states(again) == {SKIPPED: 8, FAILED: 1}


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    pool: RayRefiner, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(17)
    list(refiner.refine_dataset(source_of(dataset), dataset.root / "one"))
    image = dataset.images / "im 009.png"  # in the middle of a task
    real = dataset.root / "real.png"
    image.replace(real)
    os.mkfifo(image)  # who reads it waits for a writer
    results: list[Result] = []
    run = threading.Thread(
        target=lambda: results.extend(pool.refine_dataset(source_of(dataset), dataset.output)), daemon=True
    )
    run.start()
    pipe = write_end(image, run)
    try:
        worker = reader(image)
        os.kill(worker, signal.SIGKILL)
    finally:  # a run that is still there when Ray ends takes this process with it
        real.replace(image)
        os.close(pipe)
        run.join(300)
    assert not run.is_alive()
    assert states(results) == {REFINED: 17}
    assert sorted(result.stem for result in results) == sorted(dataset.stems)
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "one")
    assert stems_of(lines_of(dataset.output)) == sorted(dataset.stems)


def write_end(fifo: Path, run: threading.Thread) -> int:
    """Open a pipe for writing as soon as somebody reads it."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert run.is_alive()
            time.sleep(0.02)


def reader(fifo: Path) -> int:
    """The other process that has a file open, as soon as its call to open it has come back."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if link.readlink() == fifo and int(link.parts[2]) != os.getpid():
                    return int(link.parts[2])
            except OSError:
                continue
    raise AssertionError(f"nobody has {fifo} open")


def test_ctrl_c_keeps_what_is_finished_and_a_single_process_goes_on(
    pool: RayRefiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    assert pool.room.workers == 2
    dataset = make(40)
    last = dataset.images / f"{dataset.stems[-1]}.png"
    real = dataset.root / "real.png"
    last.replace(real)
    os.mkfifo(last)  # the run cannot end before it is asked to
    address = import_ray().get_runtime_context().gcs_address
    command = dataset.command("--ray", address, "--workers", 2, "--json", "-")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    records = dataset.output / "records" / "all.jsonl"
    while process.poll() is None and (not records.exists() or records.read_bytes().count(b'"stem"') < 2):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    asked = time.monotonic()
    while process.poll() is None and time.monotonic() < asked + 300:
        try:
            os.close(os.open(last, os.O_WRONLY | os.O_NONBLOCK))  # lets a worker that has come this far go on
        except OSError:
            time.sleep(0.05)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    report = json.loads(out)
    done = stems_of(lines_of(dataset.output))
    assert report["refined"] == len(done)
    assert 2 <= len(done) < 40
    assert report["ray"] == {"address": address, "workers": 2, "threads": 1, "gpu": False}
    assert f"interrupted: {len(done)} of 40 images are done, go on with --resume" in error
    assert not [path for path in (dataset.output / "records").iterdir() if path.suffix == ".part"]
    last.unlink()
    real.replace(last)
    rest = dataset.refine("--resume")
    assert rest.returncode == 0, rest.stderr
    assert f"40 images: {40 - len(done)} refined, {len(done)} skipped" in rest.stdout
    assert dataset.refine(output=dataset.root / "whole").returncode == 0
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "whole")


def test_the_command_says_the_same_as_without_ray(pool: RayRefiner, make: Make, outputs_of: Outputs) -> None:
    assert pool.room.workers == 2
    dataset = make(8)
    for number in (6, 1):
        (dataset.masks / f"im 00{number}.{'npz' if number == 6 else 'png'}").unlink()
    address = import_ray().get_runtime_context().gcs_address
    options = ("--ground-truth", dataset.truth, "--post", "pamr")
    one = dataset.refine(*options, output=dataset.root / "one")
    many = dataset.refine(*options, "--ray", address, "--workers", 2)
    assert (one.returncode, many.returncode) == (3, 3), many.stderr

    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if " s: " not in line and str(dataset.root) not in line]

    def failures(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("failed: ")]

    assert told(many.stdout) == told(one.stdout)
    assert len(failures(one.stderr)) == 2
    assert failures(many.stderr) == failures(one.stderr)
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "one")


@pytest.fixture
def assignment(pool: RayRefiner, dataset: Dataset) -> Iterator[Assignment]:
    """What the workers of a run over the data set would be told."""
    layout = Layout(dataset.output)
    for folder in (layout.root, *layout.folders(), layout.records):
        folder.mkdir()
    source, options = source_of(dataset), RunOptions(pool.config)
    plan = make_plan(source, run_settings(pool.fingerprint(), pool.config, None, None), options, layout)
    with Permit.issue(layout.records) as permit:
        yield Assignment(
            EngineOptions("tiny", threads=1),
            pool.fingerprint(),
            plan,
            import_ray().put(source),
            permit,
            2,
            frozenset(),
            working_folder(),
        )


def outcomes(worker: LookingWorker | RefiningWorker, *places: int) -> list[Outcome]:
    """A task given to a worker in this process."""
    column = np.array([bare_record(None, withdrawn=False)] * len(places), dtype=object)
    rows = worker({PLACE: np.array(places), BEFORE: column})
    return [outcome for row in rows for outcome in pickle.loads(row[OUTCOMES][0])]


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
    (outcome,) = outcomes(worker, 1, 2)
    assert isinstance(outcome, G4SegError)
    assert f"3 workers died over these images: {dataset.stems[1]}.png, {dataset.stems[2]}.png;" in str(outcome)
    assert all(isinstance(one, Result) for one in outcomes(worker, 1, 2)), "counted anew once it is told"


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


def test_the_product_does_not_load_ray_without_being_asked() -> None:
    program = "import sys; import g4seg_trt.cli.folder; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
