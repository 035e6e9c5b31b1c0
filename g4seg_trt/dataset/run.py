"""The run over a data set: read ahead in one thread, refine, write and record in another, one result per image."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, TypeVar

from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.collected import write_collected
from g4seg_trt.dataset.folder import OutputFolder
from g4seg_trt.dataset.job import DoneBefore, Job, NothingToRefine, Plan
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.lock import Shard
from g4seg_trt.dataset.measures import ClassFigures
from g4seg_trt.dataset.record import Record, settings_digest
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import G4SegError, OutputError
from g4seg_trt.matches import NEEDED
from g4seg_trt.refinement import Refinement
from g4seg_trt.stream import Loaded
from g4seg_trt.update import BackgroundRule

Key = TypeVar("Key")

REFINED, SKIPPED, FAILED = "refined", "skipped", "failed"

_WRITES_WAITING = 4
"""Refined images that may wait for the disk; more would only fill the memory."""

_NO_MORE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a file system says that will take no other file either."""


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


@dataclass(frozen=True)
class RunOptions:
    """How to refine.

    Attributes:
        config: the settings.
        rule: the background rule asked for, None for the masks' own.
        keep: what refinements hand out beside the probabilities.
        prefetch: images to load ahead.
        stopped: asked between images; once it is true no other image is begun, and the run ends well.
    """

    config: RefineConfig
    rule: BackgroundRule | None = None
    keep: frozenset[str] = frozenset()
    prefetch: int = 2
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        stem: its stem.
        image: its file, relative to the folder of the images.
        refinement: with the names of the masks; None for images that were skipped or failed.
        error: why it failed.
        classes: figures of each class, of skipped images those of the record.
        record: what the output folder's records say; None if it failed or nothing is written.
        redone: in what its inputs differ from those of the record that it had.
        taken_for: the format of its masks, and why.
        write_seconds: spent on its outputs.
    """

    stem: str
    image: str
    refinement: Refinement | None = None
    error: G4SegError | None = None
    classes: Mapping[str, ClassFigures] = field(default_factory=dict)
    record: Record | None = None
    redone: tuple[str, ...] = ()
    taken_for: tuple[str, str] = ("", "")
    write_seconds: float = 0.0

    @property
    def state(self) -> str:
        """REFINED, SKIPPED (done before) or FAILED."""
        if self.error is not None:
            return FAILED
        return SKIPPED if self.refinement is None else REFINED


def run_settings(
    fingerprint: Mapping[str, str], config: RefineConfig, rule: BackgroundRule | None, table: ClassTable | None
) -> dict[str, Any]:
    """What results depend on beside images and masks, as the records hold it.

    Args:
        fingerprint: of the Refiner.
        config: the settings of the refinement.
        rule: the background rule asked for.
        table: the data set's classes.
    """
    classes = None if table is None else settings_digest({"classes": [vars(entry) for entry in table.classes]})
    background = "the masks' own" if rule is None else str(rule)
    return {**fingerprint, "background": background, "classes sha256": classes, **config.to_mapping()}


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
    others = dict(settings)
    engine = others.pop("engine manifest sha256")
    layout = None if folder is None else folder.layout
    plan = Plan(settings_digest(others), engine, options.config, options.rule, source.table, layout)
    keep = {*options.keep, *(NEEDED if layout is not None and layout.matches else ())}
    loads = _loads(source, plan, folder, options.stopped)
    stream = refiner.refine_many(loads, config=options.config, keep=keep, prefetch=options.prefetch)
    return _Writer(folder).results(stream, options.stopped)


def refine_into(
    refiner: ManyRefiner,
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
        OutputError: as OutputFolder.open and `refine_items`.
        EngineError: if a network fails.
    """
    failed: set[str] = set()
    with (
        OutputFolder.open(layout, settings, resume=resume, shard=shard) as folder,
        closing(refine_items(refiner, source, settings, options, folder)) as results,
    ):
        for result in results:
            if result.error is not None:
                failed.add(result.stem)
            yield result
        write_collected(source, layout, failed)


def _loads(
    source: DatasetSource, plan: Plan, folder: OutputFolder | None, stopped: Callable[[], bool]
) -> Iterator[tuple[Job, Callable[[], Loaded]]]:
    for item in source:
        if stopped():
            return
        job = Job(item, plan, None if folder is None else folder.records.find(item.stem))
        yield job, job.load


class _StopRun(Exception):
    """The disk takes no more: the image is left as if its turn had not come."""


class _Writer:
    """Takes refinements, writes and records them in a thread of its own, and gives the results in order."""

    def __init__(self, folder: OutputFolder | None) -> None:
        self._records = None if folder is None else folder.records
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
        item = job.item
        if isinstance(outcome, DoneBefore):
            return Result(item.stem, item.name, classes=outcome.classes, record=outcome.record, taken_for=job.taken_for)
        if isinstance(outcome, NothingToRefine):
            return pool.submit(self._finish, job, Refinement({}, {}, [str(outcome)], {}, {}, {}, {}, {}))
        if isinstance(outcome, G4SegError):
            return pool.submit(self._fail, job, outcome)
        return pool.submit(self._finish, job, job.renamed(outcome))

    def _settled(self, waiting: int) -> Iterator[Result]:
        """Take from the front what is finished, and wait for it while more than `waiting` are there."""
        while self._waiting:
            front = self._waiting[0]
            if isinstance(front, Future):
                if len(self._waiting) <= waiting and not front.done():
                    return
                try:
                    front = front.result()
                except _StopRun:
                    self._waiting.popleft()
                    continue
            self._waiting.popleft()
            yield front

    def _finish(self, job: Job, refinement: Refinement) -> Result:
        """Runs in the writer's thread."""
        if self._full is not None:
            raise _StopRun
        start = perf_counter()
        try:
            if job.before is not None and self._records is not None:
                self._records.withdraw(job.item.stem)
            finished = job.finish(refinement)
            record = finished.record(job.item.stem)
            if self._records is not None:
                self._records.add(record)
        except OutputError as error:
            return self._fail(job, error, begun=True)
        return Result(
            job.item.stem,
            job.item.name,
            refinement,
            classes=finished.classes,
            record=record if self._records is not None else None,
            redone=job.stale,
            taken_for=job.taken_for,
            write_seconds=perf_counter() - start,
        )

    def _fail(self, job: Job, error: G4SegError, *, begun: bool = False) -> Result:
        """Runs in the writer's thread. `begun`: some outputs may be there."""
        job.drop()
        try:
            if job.stale and not begun and self._records is not None:
                self._records.withdraw(job.item.stem)
            if job.stale or begun:
                job.discard()
        except OutputError as second:
            error = second
        if isinstance(error, OutputError) and _takes_no_more(error):
            self._full = error
            raise _StopRun
        return Result(job.item.stem, job.item.name, error=error, redone=job.stale, taken_for=job.taken_for)


def _takes_no_more(error: OutputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_MORE
