"""What runs in the workers: each takes names of images, reads, refines and writes, and returns small results."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_engine.manifest import Manifest, load_engine
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.backends import Execution, choose
from g4seg_trt.cluster.connection import import_ray
from g4seg_trt.cluster.permit import Permit
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.plan import DoneBefore, Finished, Plan
from g4seg_trt.dataset.record import Record
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import StopRun, failed, refine_jobs, skipped
from g4seg_trt.dataset.settings import RunOptions
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.dataset.writing import Work
from g4seg_trt.errors import ClusterError, G4SegError
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.update import BackgroundRule

PLACE, BEFORE, OUTCOME = "place", "before", "outcome"
"""Columns: of the rows that go to the workers, and of those that come back."""

PADDING = -1
"""The place of a row that only fills a task up."""

MOST_ATTEMPTS = 3
"""A task that so many workers died over is not begun again."""


@dataclass(frozen=True)
class EngineOptions:
    """An engine and how it runs: the arguments of Refiner.from_engine."""

    engine: str
    backend: str = "onnxruntime"
    device: str | None = None
    batch_size: int | None = None
    threads: int | None = None
    compute_precision: str | None = None
    low_memory: bool = False
    cache: bool = True
    verify: bool = False

    def open(self) -> Refiner:
        """The Refiner; raises as Refiner.from_engine."""
        return Refiner.from_engine(**asdict(self))

    def describe(self) -> tuple[Manifest, Execution]:
        """What it is and what would run it here, without opening it; raises as Refiner.from_engine."""
        manifest = load_engine(engine_directory(self.engine), verify=self.verify)
        return manifest, choose(manifest, self.backend, self.device, self.compute_precision)


@dataclass(frozen=True)
class Assignment:
    """What all workers of a run are told.

    Attributes:
        engine: how to open it.
        fingerprint: what the Refiner's has to be.
        plan: of the run.
        source: the images, as a reference into Ray's object store: arrays in it are shared by a machine's workers.
        permit: whether to go on.
        prefetch: images to load ahead.
        keep: as in RunOptions.
        folder: the working folder, where relative paths begin.
    """

    engine: EngineOptions
    fingerprint: Mapping[str, str]
    plan: Plan
    source: Any
    permit: Permit
    prefetch: int
    keep: frozenset[str]
    folder: str


@dataclass(frozen=True)
class Todo:
    """The image is not done.

    Attributes:
        stale: whether its outputs are of other inputs, not of these and only not all there.
    """

    stale: bool


@dataclass(frozen=True)
class Unfinished:
    """The image could not be refined, and what there is of its outputs is to be removed."""

    result: Result


@dataclass(frozen=True)
class Ended:
    """This worker begins no other image.

    Attributes:
        worker: its id.
        told: the places of all its rows; some may come after this one, which is of a later task.
    """

    worker: str
    told: tuple[int, ...]


Outcome = Result | Todo | Unfinished | Ended | G4SegError
"""What a row that comes back says of an image; an error is one that ends the run."""


class Worker:
    """A callable class as Ray Data's actor pools take it: rows of names go in, rows of results come out.

    What a user can mend goes back as a row too: an error raised here would reach the user as Ray's traceback.

    Args:
        assignment: what to do.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._problem: G4SegError | None = None
        self._told: list[int] = []
        with suppress(OSError):  # on a machine without it, relative paths lead nowhere, which is told
            os.chdir(assignment.folder)
        self._source: DatasetSource = import_ray().get(assignment.source)
        try:
            self._open()
        except G4SegError as error:
            self._problem = type(error)(f"worker on {socket.gethostname()}: {error}")

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Take a task; yields its images' places with their outcomes, one a row, as soon as they are there.

        When a worker dies, Ray begins its task again and leaves out as many rows as it has taken before. So each image
        has one row, and they always come in the same order.
        """
        places = [int(place) for place in batch[PLACE] if place != PADDING]
        for place, outcome in self._outcomes(places, batch[BEFORE]):
            self._told.append(place)
            yield {OUTCOME: np.array([pickle.dumps((place, outcome))], dtype=object)}

    def _open(self) -> None:
        """Get ready; raises G4SegError."""
        permit, images = self._assignment.permit, self._source.images
        if not permit.is_valid():
            folder = permit.path.parent.parent
            raise ClusterError(f"{folder} is not the output folder there: every machine needs it under the same path")
        if not images.is_dir():
            raise ClusterError(f"{images} is no folder there: every machine needs the inputs under the same paths")

    def _outcomes(self, places: list[int], befores: Any) -> Iterator[tuple[int, Outcome]]:
        permit, fatal, left = self._assignment.permit, self._problem, list(places)
        if places and fatal is None and not permit.has_ended():
            with permit.attempt(places[0]) as count:
                try:
                    if count > MOST_ATTEMPTS:
                        names = ", ".join(self._source.item(place).name for place in places)
                        raise ClusterError(
                            f"{MOST_ATTEMPTS} workers died over these images: {names}; is there memory enough for "
                            "--workers engines?"
                        )
                    jobs = [self._job(place, before) for place, before in zip(places, befores, strict=False)]
                    for place, outcome in self._work(dict(zip(places, jobs, strict=True))):
                        left.remove(place)
                        yield place, outcome
                except G4SegError as error:
                    fatal = error.with_traceback(None)
        if fatal is not None:
            yield from ((place, fatal) for place in left)  # of one row alone Ray might have taken another before
        if permit.has_ended():
            yield PADDING, Ended(import_ray().get_runtime_context().get_actor_id(), tuple(self._told))

    def _job(self, place: int, before: bytes) -> _WorkersJob:
        record, withdrawn = pickle.loads(before)
        plan, permit = self._assignment.plan, self._assignment.permit
        return _WorkersJob(self._source.item(place), plan, record, permit, withdrawn=withdrawn)

    def _work(self, jobs: dict[int, _WorkersJob]) -> Iterator[tuple[int, Outcome]]:
        raise NotImplementedError


class LookingWorker(Worker):
    """Says which images are done. It opens no engine."""

    def _work(self, jobs: dict[int, _WorkersJob]) -> Iterator[tuple[int, Outcome]]:
        for place, job in jobs.items():
            if self._assignment.permit.has_ended():
                return
            try:
                job.look()
                job.check()
            except DoneBefore as done:
                yield place, skipped(job, done)
            except G4SegError as error:
                # Of other inputs, whoever refines fails at it too, and what is there is removed.
                yield place, Todo(True) if job.stale else failed(job, error.with_traceback(None))
            else:
                yield place, Todo(not job.holds)


class RefiningWorker(Worker):
    """Refines images with a Refiner of its own, which it keeps from task to task."""

    _refiner: Refiner

    def _open(self) -> None:
        super()._open()
        self._refiner = self._assignment.engine.open()
        wanted, found = self._assignment.fingerprint, self._refiner.fingerprint()
        others = [
            f"{name} {found[name][:12]}, expected {value[:12]}"
            for name, value in wanted.items()
            if value != found[name]
        ]
        if others:
            raise ClusterError(f"the engine is another one there: {'; '.join(others)}")

    def _work(self, jobs: dict[int, _WorkersJob]) -> Iterator[tuple[int, Outcome]]:
        work = self._assignment
        options = RunOptions(work.plan.config, work.plan.rule, work.keep, work.prefetch, work.permit.has_ended)
        places = {job.item.stem: place for place, job in jobs.items()}
        with closing(refine_jobs(self._refiner, jobs.values(), work.plan, options, _Told())) as results:
            for result in results:
                place = places[result.stem]
                yield place, Unfinished(result) if jobs[place].discarded else without_arrays(result)


class _WorkersJob(Job):
    """A job whose image has been looked at, and that writes only as long as the run has the folder.

    It removes nothing: a worker that died may have finished the image before, and the run has it recorded.

    Attributes:
        discarded: whether the run is to remove the image's files.
    """

    def __init__(self, item: Any, plan: Plan, before: Record | None, permit: Permit, *, withdrawn: bool) -> None:
        super().__init__(item, plan, before, withdrawn=withdrawn)
        self.discarded = False
        self._permit = permit

    def discard(self) -> None:
        """Leave that to the run."""
        self.discarded = True

    def load(self) -> tuple[Bytes, dict[str, Floats], BackgroundRule]:
        """Without a check: files that a worker wrote before it died are written again."""
        self.look()
        return self.read()

    def finish(self, work: Work) -> Finished:
        """See Job.finish."""
        if not self._permit.is_valid():
            raise StopRun
        return super().finish(work)


class _Told:
    """In the place of the records: their process withdrew what it had to before, and hears of the rest."""

    def withdraw(self, stem: str) -> None:
        """It was."""

    def add(self, record: Record) -> None:
        """It is in the result."""


def without_arrays(result: Result) -> Result:
    """A result that is small enough to be sent: pixels stay where they are written."""
    if result.refinement is None:
        return result
    bare: dict[str, Any] = {name: {} for name in ("probabilities", "generated", "denoised", "indices", "similarities")}
    return replace(result, refinement=replace(result.refinement, **bare))


def describe(engine: EngineOptions, folder: str) -> tuple[Manifest, Execution] | G4SegError:
    """`EngineOptions.describe` in a worker; the working folder is where relative paths begin."""
    with suppress(OSError):
        os.chdir(folder)
    try:
        return engine.describe()
    except G4SegError as error:
        return type(error)(f"worker on {socket.gethostname()}: {error}")


def bare_record(record: Record | None, *, withdrawn: bool) -> bytes:
    """What a refining worker needs of the record that an image had, not its figures; whether it was withdrawn."""
    return pickle.dumps((None if record is None else replace(record, details={}), withdrawn))


def full_record(record: Record) -> bytes:
    """A whole record, as a looking worker needs it."""
    return pickle.dumps((record, False))


def working_folder() -> str:
    """Where this process's relative paths begin."""
    return str(Path.cwd())
