"""RayRefiner: a pool of Refiners on Ray Data that refines data sets as one Refiner does."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

from g4seg_engine.manifest import Manifest
from g4seg_trt.backends import AUTO as AUTO_BACKEND
from g4seg_trt.backends import BACKENDS, Execution, fingerprint_of
from g4seg_trt.cluster.connection import LOCAL, Room, connect, disconnect, import_ray, make_room, nodes
from g4seg_trt.cluster.permit import Permit
from g4seg_trt.cluster.worker import (
    BEFORE,
    OUTCOME,
    PADDING,
    PLACE,
    Assignment,
    Ended,
    EngineOptions,
    LookingWorker,
    Outcome,
    RefiningWorker,
    Todo,
    Unfinished,
    Worker,
    bare_record,
    describe,
    full_record,
    working_folder,
)
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.dataset.folder import OutputFolder
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import make_plan, recorded_job, recorder, refine_into
from g4seg_trt.dataset.settings import RunOptions, asked_for
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import ClusterError, ConfigError, G4SegError
from g4seg_trt.postprocess import PostProcess
from g4seg_trt.update import BackgroundRule

_IMAGES_IN_TASK = 8
"""Images that a worker takes at a time: they are read ahead of one another, and done again if the worker dies."""

_TASKS_OF_WORKER = 4
"""Tasks that a worker should have at least, so that all of them end at about the same time."""


class RayRefiner:
    """Refines data sets with a pool of workers, each with a Refiner of its own.

    A Ray Data dataset of names, and of nothing else, goes through `map_batches` with an actor pool. Each worker reads
    its images and masks, refines them and writes the outputs, in the threads that a single process does this with.
    Stages of their own for reading and writing would put an image, its masks and probabilities into the object store,
    there and back (on two cores 5 ms for an image of 500 x 375 pixels with 2 maps, 18 with 21), and take CPUs from the
    workers, for what a thread of the worker does beside the networks. So only names and figures travel. The files are
    the same, byte for byte, for any number of workers: a result depends on the batch size, never on its neighbours.

    This process alone holds the output folder and appends to the records: it withdraws the record of an image whose
    inputs have changed before a worker is given it, and adds one when the worker has written all its files. A worker
    that dies is replaced by Ray, and the task that it had is begun again.

    Use it as a context manager, or call `close`.

        with RayRefiner.from_engine("tiny", workers=2, threads=1) as refiner:
            for result in refiner.refine_dataset(source, "refined", resume=True):
                print(result.stem, result.error or result.state)

    Args:
        engine: how the workers open it.
        room: the workers.
        manifest: what the engine says about itself.
        execution: how it runs.
        config: the settings unless a call brings its own.
        owns_ray: whether Ray ends with it.
    """

    def __init__(
        self,
        engine: EngineOptions,
        room: Room,
        manifest: Manifest,
        execution: Execution,
        *,
        config: RefineConfig | None = None,
        owns_ray: bool = False,
    ) -> None:
        self.room = room
        self.manifest = manifest
        self.execution = execution
        self.config = config if config is not None else resolve_config(recommended=manifest.recommended)
        self._engine = engine
        self._owns_ray = owns_ray

    @classmethod
    def from_engine(
        cls,
        engine: str | Path,
        *,
        address: str = LOCAL,
        workers: int | None = None,
        threads: int | None = None,
        backend: str = "onnxruntime",
        device: str | None = None,
        batch_size: int | None = None,
        compute_precision: str | None = None,
        low_memory: bool = False,
        cache: bool = True,
        config: RefineConfig | None = None,
        verify: bool = False,
    ) -> RayRefiner:
        """Start Ray on this machine or join a cluster, and look at the engine from there; workers open it in a run.

        Args:
            engine: as in Refiner.from_engine; every machine needs it under the same path.
            address: "local" starts Ray on this machine; "auto" or "HOST:PORT" joins the cluster it belongs to. A
                process that uses Ray already keeps the cluster it has.
            workers: how many; None for one on each GPU, or as many as there are CPUs for.
            threads: CPU threads of each; None for up to 4, beside a GPU for 1.
            backend, device, batch_size, compute_precision, low_memory, cache, verify: as in Refiner.from_engine; the
                device has no number, for Ray gives each worker its own GPU.
            config: the settings; None takes the engine's recommended ones.

        Raises:
            MissingExtraError: if Ray is not installed.
            ClusterError: if the cluster cannot be reached or has no room for the workers.
            ConfigError, EngineError: as Refiner.from_engine.
        """
        if device is not None and device.startswith("cuda:"):
            raise ConfigError(f"device is {device!r}, allowed with Ray: cuda, cpu; Ray gives each worker its own GPU")
        options = EngineOptions(
            str(engine), backend, device, batch_size, None, compute_precision, low_memory, cache, verify
        )
        owns_ray = connect(address)
        try:
            machines = nodes()
            room = make_room(machines, workers, threads, _wants_gpu(options, any(node.gpus for node in machines)))
            manifest, execution = _described(options, room)
            if room.gpu and execution.device == "cpu":
                room = make_room(machines, workers, threads, gpu=False)
        except BaseException:
            if owns_ray:
                disconnect()
            raise
        precision = execution.compute_precision if execution.backend == "openvino" else None
        opened = replace(
            options,
            backend=execution.backend,
            device=execution.device,
            threads=threads if room.gpu else room.threads,
            compute_precision=precision,
        )
        return cls(opened, room, manifest, execution, config=config, owns_ray=owns_ray)

    @property
    def batch_size(self) -> int | None:
        """(image, class) pairs in one run; None for the largest that was built."""
        if self._engine.batch_size is None and self.execution.device == "cpu":
            return 1
        return self._engine.batch_size

    def __enter__(self) -> RayRefiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End Ray, if `from_engine` began it."""
        if self._owns_ray:
            disconnect()
            self._owns_ray = False

    def fingerprint(self) -> dict[str, str]:
        """As Refiner.fingerprint."""
        return fingerprint_of(self.manifest, self.execution)

    def refine_dataset(
        self,
        source: DatasetSource,
        output: str | Path,
        *,
        background: BackgroundRule | str | None = None,
        config: RefineConfig | None = None,
        post: PostProcess | str | None = None,
        resume: bool = False,
        overlay: bool = False,
        matches: bool = False,
        shard: tuple[int, int] | None = None,
        limit: int | None = None,
        prefetch: int = 2,
    ) -> Generator[Result, None, None]:
        """Refine the masks of a data set; arguments, files and records as of Refiner.refine_dataset.

        Yields:
            A Result for each image as soon as its files are whole and recorded, in any order. Its refinement has no
            arrays: those are in the files.

        Raises:
            ConfigError, MissingExtraError, OutputError, EngineError: as Refiner.refine_dataset.
            ClusterError: if the workers do not see the same files, or keep dying. What was finished stays.
        """
        part = source.part(shard, limit)
        settings, options = asked_for(
            self.fingerprint(), source.table, config or self.config, background, post, prefetch=prefetch
        )
        layout = Layout(Path(output), overlay, matches, source.keeps_names)
        return refine_into(self.refine_items, part, settings, options, layout, resume=resume, shard=shard)

    def refine_items(
        self, source: DatasetSource, settings: Mapping[str, Any], options: RunOptions, folder: OutputFolder
    ) -> Generator[Result, None, None]:
        """As g4seg_trt.dataset.run.refine_items, in any order; raises ClusterError too."""
        records, told = folder.records, recorder(folder)
        with Permit.issue(folder.layout.records) as permit:
            plan = make_plan(source, settings, options, folder.layout)
            work = Assignment(
                self._engine,
                self.fingerprint(),
                plan,
                import_ray().put(source),
                permit,
                options.prefetch,
                options.keep,
                working_folder(),
            )
            stems = [entry.stem for entry in source.entries]
            recorded: list[tuple[int, bytes]] = []
            todo: list[int] = []
            for place, stem in enumerate(stems):
                before = records.find(stem)
                if before is None:
                    todo.append(place)
                else:
                    recorded.append((place, full_record(before)))
            with closing(self._outcomes(LookingWorker, recorded, work, options.stopped)) as looked:
                for place, outcome in looked:
                    if isinstance(outcome, Todo):
                        if outcome.stale:  # before any worker may change the image's outputs
                            told.withdraw(stems[place])
                        todo.append(place)
                    elif isinstance(outcome, Result):
                        if outcome.remeasured and outcome.record is not None:
                            told.add(outcome.record)
                        yield outcome
            del recorded
            rows = [
                (place, bare_record(records.find(stems[place]), withdrawn=records.was_withdrawn(stems[place])))
                for place in sorted(todo)
            ]
            with closing(self._outcomes(RefiningWorker, rows, work, options.stopped)) as results:
                for place, outcome in results:
                    if isinstance(outcome, Unfinished):
                        recorded_job(source.item(place), plan, records).discard()
                        yield outcome.result
                    elif isinstance(outcome, Result):
                        if outcome.record is not None:
                            told.add(outcome.record)
                        yield outcome

    def _outcomes(
        self, kind: type[Worker], rows: Sequence[tuple[int, bytes]], work: Assignment, stopped: Callable[[], bool]
    ) -> Generator[tuple[int, Result | Todo | Unfinished], None, None]:
        """Places with what a pool of workers says of them; raises ClusterError, and what ended a worker's task."""
        if not rows or stopped():
            return
        ray, permit = import_ray(), work.permit
        fatal: G4SegError | None = None
        ended: dict[str, set[int]] = {}
        waiting = {place for place, _ in rows}
        try:
            with closing(self._mapped(kind, rows, work)) as outcomes:
                for place, outcome in outcomes:
                    if isinstance(outcome, Ended):
                        ended.setdefault(outcome.worker, set()).update(outcome.told)
                    elif isinstance(outcome, G4SegError):
                        fatal = fatal or outcome
                        waiting.discard(place)
                    elif place in waiting:  # once, whatever Ray begins again
                        waiting.discard(place)
                        yield place, outcome
                    if fatal is not None or stopped():
                        permit.recall()
                    if len(ended) == self.room.workers and all(map(waiting.isdisjoint, ended.values())):
                        break
        except ray.exceptions.RayTaskError:  # a bug, with its traceback
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Ray gave up: {str(error).splitlines()[0]}") from error
        if fatal is not None:
            raise fatal
        if stopped():
            return
        if ended:
            raise ClusterError(f"{permit.path.parent} was out of a worker's sight; go on when it is there again")
        if waiting:
            raise ClusterError(f"Ray has lost the results of {len(waiting)} images: go on with --resume")

    def _mapped(
        self, kind: type[Worker], rows: Sequence[tuple[int, bytes]], work: Assignment
    ) -> Generator[tuple[int, Outcome], None, None]:
        """The rows through Ray Data: places and what becomes of them."""
        ray = import_ray()
        room = self.room if kind is RefiningWorker else replace(self.room, gpu=False)
        most = max(_IMAGES_IN_TASK, 4 * (self.batch_size or 1))
        size = min(most, ceil(len(rows) / (_TASKS_OF_WORKER * room.workers)))
        tasks = ceil(len(rows) / size)
        items = [{PLACE: place, BEFORE: before} for place, before in rows]
        # All tasks of one size: Ray Data would put smaller ones together.
        items += [{PLACE: PADDING, BEFORE: b""}] * (tasks * size - len(rows))
        dataset = ray.data.from_items(items, override_num_blocks=tasks)
        dataset.context.enable_progress_bars = False
        dataset.context.target_max_block_size = 1  # every row comes back as soon as it is there
        # Else a worker stands still while two rows of its task have not been taken.
        dataset.context._max_num_blocks_in_streaming_gen_buffer = size + 1
        mapped = dataset.map_batches(
            kind,
            fn_constructor_args=(work,),
            batch_size=size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(room.workers, tasks), max_tasks_in_flight_per_actor=2),
            **room.resources(),
        )
        for batch in mapped.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for data in batch[OUTCOME]:
                yield pickle.loads(data)


def _wants_gpu(engine: EngineOptions, there: bool) -> bool:
    """Whether workers need a GPU; with the backend "auto" they take what is there."""
    if engine.backend == AUTO_BACKEND:
        return engine.device == "cuda" or (there and engine.device is None and engine.compute_precision is None)
    return (engine.device or BACKENDS.get(engine.backend, ("cpu",))[0]) == "cuda"


def _described(engine: EngineOptions, room: Room) -> tuple[Manifest, Execution]:
    """The engine as a worker sees it; raises G4SegError."""
    ray = import_ray()
    task = ray.remote(describe).options(max_retries=0, **room.resources())
    try:
        found = ray.get(task.remote(engine, working_folder()))
    except ray.exceptions.RayError as error:
        if "No module named" in str(error):
            last = str(error).strip().splitlines()[-1]
            raise ClusterError(f"a worker lacks a package ({last}): every machine needs the same g4seg-trt") from error
        raise
    if isinstance(found, G4SegError):
        raise found
    manifest, execution = found
    return manifest, execution
