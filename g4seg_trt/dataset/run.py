"""The run over a data set: read ahead in one thread, refine, write and record in another, one result per image."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol, TypeVar

from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.collected import CollectedRecords, write_collected
from g4seg_trt.dataset.folder import OutputFolder, check_inputs
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.lock import Shard
from g4seg_trt.dataset.plan import DoneBefore, NothingToRefine, Plan
from g4seg_trt.dataset.record import Record, Records, settings_digest
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.settings import RunOptions
from g4seg_trt.dataset.source import DatasetSource, Item
from g4seg_trt.errors import G4SegError, OutputError
from g4seg_trt.matches import NEEDED
from g4seg_trt.refinement import Refinement
from g4seg_trt.stream import Loaded

Key = TypeVar("Key")

_WRITES_WAITING = 4
"""Refined images that may wait for the disk; more would only fill the memory."""

_NO_MORE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a file system says that will take no other file either."""


class Recorder(Protocol):
    """What is told of the images that are done: see Records."""

    def withdraw(self, stem: str) -> None:
        """Before the outputs of an image become those of other inputs than its record has."""

    def add(self, record: Record) -> None:
        """After they are whole."""


class RefineItems(Protocol):
    """`refine_items` of one Refiner, or of many."""

    def __call__(
        self,
        source: DatasetSource,
        settings: Mapping[str, Any],
        options: RunOptions,
        folder: OutputFolder,
    ) -> Generator[Result, None, None]:
        """See `refine_items`."""


class ManyRefiner(Protocol):
    """What a run needs of a Refiner."""

    def refine_many(
        self,
        items: Iterable[tuple[Key, Callable[[], Loaded]]],
        *,
        config: RefineConfig | None = None,
        keep: Collection[str] = (),
        prefetch: int = 2,
    ) -> Generator[tuple[Key, Refinement | G4SegError], None, None]:
        """See Refiner.refine_many."""


def refine_items(
    refiner: ManyRefiner,
    source: DatasetSource,
    settings: Mapping[str, Any],
    options: RunOptions,
    folder: OutputFolder | None = None,
) -> Generator[Result, None, None]:
    """Refine every image of a source.

    Args:
        refiner: does the work.
        source: the images.
        settings: see `run_settings`.
        options: how.
        folder: where the outputs go; None writes nothing.

    Yields:
        A result for each image, in order.

    Raises:
        OutputError: if the disk is full or read-only; what was finished is recorded.
        EngineError: if a network fails.
    """
    plan = make_plan(source, settings, options, None if folder is None else folder.layout)
    if folder is None:
        return refine_jobs(refiner, (Job(item, plan, None) for item in source), plan, options, None)
    records = folder.records
    jobs = (recorded_job(item, plan, records) for item in source)
    return refine_jobs(refiner, jobs, plan, options, recorder(folder))


def recorded_job(item: Item, plan: Plan, records: Records) -> Job:
    """The job of an image with what its folder's records say of it."""
    return Job(item, plan, records.find(item.stem), withdrawn=records.was_withdrawn(item.stem))


def recorder(folder: OutputFolder) -> Recorder:
    """What the images of a run are recorded with."""
    return CollectedRecords(folder.records, folder.layout)


def make_plan(source: DatasetSource, settings: Mapping[str, Any], options: RunOptions, layout: Layout | None) -> Plan:
    """What is the same for all images of a run; arguments as of `refine_items`."""
    others = dict(settings)
    engine = others.pop("engine manifest sha256")
    return Plan(
        settings_digest(others),
        engine,
        options.config,
        options.rule,
        source.table,
        layout,
        options.post,
        options.compare,
    )


def refine_jobs(
    refiner: ManyRefiner, jobs: Iterable[Job], plan: Plan, options: RunOptions, records: Recorder | None
) -> Generator[Result, None, None]:
    """`refine_items` with jobs that are made already, of this plan.

    Args:
        records: is told what becomes of them; None if nothing is written.
    """
    keep = {*options.keep, *(NEEDED if plan.layout is not None and plan.layout.matches else ())}
    loads = _loads(jobs, options.stopped)
    stream = refiner.refine_many(loads, config=options.config, keep=keep, prefetch=options.prefetch)
    return _Writer(records).results(stream, options.stopped)


def refine_into(
    refine: RefineItems,
    source: DatasetSource,
    settings: Mapping[str, Any],
    options: RunOptions,
    layout: Layout,
    *,
    resume: bool,
    shard: Shard | None,
) -> Generator[Result, None, None]:
    """`refine_items` with an output folder that is taken at the first result and given back after the last.

    Raises:
        OutputError: as OutputFolder.open and `refine_items`, and if an output would take the place of an input.
        EngineError: if a network fails.
    """
    lost: set[str] = set()
    check_inputs(layout, source.files())
    with (
        OutputFolder.open(layout, settings, resume=resume, shard=shard) as folder,
        closing(refine(source, settings, options, folder)) as results,
    ):
        for result in results:
            if result.error is not None and not result.kept:
                lost.add(result.stem)
            yield result
        write_collected(source, make_plan(source, settings, options, layout), folder.records, lost)


def _loads(jobs: Iterable[Job], stopped: Callable[[], bool]) -> Iterator[tuple[Job, Callable[[], Loaded]]]:
    for job in jobs:
        if stopped():
            return
        yield job, job.load


class StopRun(Exception):
    """The disk takes no more, or nothing may be written any longer: as if the image's turn had not come."""


class _Writer:
    """Takes refinements, writes and records them in a thread of its own, and gives the results in order."""

    def __init__(self, records: Recorder | None) -> None:
        self._records = records
        self._waiting: deque[Result | Future[Result]] = deque()
        self._full: OutputError | None = None

    def results(
        self, stream: Generator[tuple[Job, Refinement | G4SegError], None, None], stopped: Callable[[], bool]
    ) -> Generator[Result, None, None]:
        """A result for each job of the stream; raises what ended it, after the results of what was finished."""
        fatal: G4SegError | None = None
        # Leaving the blocks waits for the writer, also after an interrupt: what was handed to it is recorded.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="g4seg-write") as pool, closing(stream):
            while fatal is None and not stopped():
                try:
                    job, outcome = next(stream)
                except StopIteration:
                    break
                except G4SegError as error:
                    fatal = error
                    break
                self._waiting.append(self._begin(job, outcome, pool))
                yield from self._settled(_WRITES_WAITING)
                fatal = self._full
            stream.close()
            yield from self._settled(0)
        fatal = fatal or self._full
        if fatal is not None:
            raise fatal

    def _begin(self, job: Job, outcome: Refinement | G4SegError, pool: ThreadPoolExecutor) -> Result | Future[Result]:
        if isinstance(outcome, DoneBefore):
            return pool.submit(self._remeasured, job, outcome) if outcome.remeasured else skipped(job, outcome)
        if isinstance(outcome, NothingToRefine):
            return pool.submit(self._finish, job, Refinement({}, {}, [str(outcome)], {}, {}, {}, {}, {}))
        if isinstance(outcome, G4SegError):
            return pool.submit(self._fail, job, outcome)
        return pool.submit(self._finish, job, outcome)

    def _settled(self, waiting: int) -> Iterator[Result]:
        """Take from the front what is finished, and wait for it while more than `waiting` are there."""
        while self._waiting:
            front = self._waiting[0]
            if isinstance(front, Future):
                if len(self._waiting) <= waiting and not front.done():
                    return
                try:
                    front = front.result()
                except StopRun:
                    self._waiting.popleft()
                    continue
            self._waiting.popleft()
            yield front

    def _remeasured(self, job: Job, done: DoneBefore) -> Result:
        """Runs in the writer's thread."""
        if self._full is not None:
            raise StopRun
        try:
            if self._records is not None:
                self._records.add(done.record)
        except OutputError as error:
            return self._fail(job, error.with_traceback(None))
        return skipped(job, done)

    def _finish(self, job: Job, refinement: Refinement) -> Result:
        """Runs in the writer's thread."""
        if self._full is not None:
            raise StopRun
        begun = False
        try:
            refinement = job.completed(refinement)
            start = perf_counter()
            work = job.work(refinement)
            begun = True
            # Of the same inputs the same bytes are written again, file by file: the record stays true meanwhile.
            if job.stale and self._records is not None:
                self._records.withdraw(job.item.stem)
            finished = job.finish(work)
            record = finished.record(job.item.stem)
            if self._records is not None:
                self._records.add(record)
        except G4SegError as error:
            return self._fail(job, error.with_traceback(None), begun=begun)
        timings = {**refinement.timings, **finished.details["timings"]}
        return Result(
            job.item.stem,
            job.item.name,
            replace(refinement, timings=timings),
            classes=finished.classes,
            counts=finished.counts,
            record=record if self._records is not None else None,
            redone=job.stale,
            taken_for=job.taken_for,
            write_seconds=perf_counter() - start - timings.get("compare", 0.0),
        )

    def _fail(self, job: Job, error: G4SegError, *, begun: bool = False) -> Result:
        """Runs in the writer's thread. `begun`: some outputs of these inputs may be there."""
        job.drop()
        try:
            if job.stale and not begun and self._records is not None:
                self._records.withdraw(job.item.stem)
            if job.stale or job.withdrawn or (begun and not job.holds):
                job.discard()
        except OutputError as second:
            error = second
        if isinstance(error, OutputError) and _takes_no_more(error):
            self._full = error
            raise StopRun
        return failed(job, error)


def failed(job: Job, error: G4SegError) -> Result:
    """The result of an image that could not be refined."""
    return Result(
        job.item.stem,
        job.item.name,
        error=error,
        kept=job.keeps_outputs(),
        redone=job.stale,
        taken_for=job.taken_for,
    )


def skipped(job: Job, done: DoneBefore) -> Result:
    """The result of an image that was done before."""
    return Result(
        job.item.stem,
        job.item.name,
        classes=done.classes,
        counts=done.counts,
        record=done.record,
        remeasured=done.remeasured,
        taken_for=job.taken_for,
    )


def _takes_no_more(error: OutputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_MORE
