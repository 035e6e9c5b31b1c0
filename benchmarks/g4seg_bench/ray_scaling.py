"""Workers on Ray against one of them, and against a single process: ``python -m g4seg_bench.ray_scaling``.

All refine the same images and write their files; they take turns, and ratios are taken pair by pair. Networks and numpy
have one thread in each worker; in the single process numpy has as many if the command is run with
OPENBLAS_NUM_THREADS=1.
Starting Ray and the workers is not counted: a run counts from the image on at which a third of them are done. What is
lost on the way to a ratio of the number of workers is told apart: seconds that an image computes longer while others
compute beside it, and the share of the time in which workers do not compute. As many plain processes, a shard each,
tell what the machine has to give.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from tqdm import tqdm

from g4seg_bench.inputs import write_scenes
from g4seg_bench.options import count
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import read_manifest
from g4seg_export.tiny.scenes import SIZE
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.cluster.worker import without_arrays
from g4seg_trt.config import RESOLUTIONS, RefineConfig
from g4seg_trt.dataset.names import read_classes
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.timing import STAGES

GOAL = 1.7
"""What two workers should reach of one, on work that the networks bound."""

SINGLE = "single process"
PLAIN = "as many plain processes"

Refine = Callable[[Path], Iterable[Result]]


def timed(refine: Refine, workers: int, number: int) -> dict[str, float]:
    """One run into a new folder, counted from the image on at which a third of them are done.

    Returns:
        Images a second; milliseconds that an image computes; the share of the time in which workers compute, and the
        cores that the process that gathers the results keeps busy.

    Raises:
        G4SegError: if an image fails.
    """
    ended: list[float] = []
    computing: list[float] = []
    busy = 0.0
    with TemporaryDirectory(prefix="g4seg-bench-") as folder:
        for result in refine(Path(folder) / "refined"):
            if result.refinement is None:
                raise G4SegError(f"{result.stem} could not be refined: {result.error}")
            ended.append(perf_counter())
            computing.append(sum(result.refinement.timings.get(stage, 0.0) for stage in STAGES))
            if len(ended) == number // 3:
                busy = process_time()
        busy = process_time() - busy
    begin = max(number // 3, 1)
    seconds, images = ended[-1] - ended[begin - 1], len(ended) - begin
    return {
        "images_per_s": round(images / seconds, 4),
        "compute_ms": round(1000 * sum(computing[begin:]) / images, 3),
        "computing_share": round(sum(computing[begin:]) / (workers * seconds), 4),
        "gathering_cores": round(busy / seconds, 4),
    }


def in_processes(
    engine: str, source: DatasetSource, config: RefineConfig, workers: int, output: Path
) -> Generator[Result, None, None]:
    """Refine in plain processes that know nothing of one another, a shard each; yields results as they come.

    Raises:
        G4SegError: if a process dies.
    """
    context = multiprocessing.get_context("spawn")
    results: Queue[Result] = context.Queue()
    processes = [
        context.Process(target=_one_process, args=(engine, source, config, (index, workers), output, results))
        for index in range(1, workers + 1)
    ]
    for process in processes:
        process.start()
    try:
        for _ in range(len(source)):
            yield _next(results, processes)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()  # one that hands over what nobody takes any more would not end
            process.join()


def _next(results: Queue[Result], processes: Sequence[BaseProcess]) -> Result:
    while True:
        try:
            return results.get(timeout=1.0)
        except Empty:
            if any(process.exitcode for process in processes):
                raise G4SegError("a plain process ended before its images were done") from None


def _one_process(
    engine: str, source: DatasetSource, config: RefineConfig, shard: tuple[int, int], output: Path, to: Queue[Result]
) -> None:
    with Refiner.from_engine(engine, threads=1) as refiner:
        for result in refiner.refine_dataset(source, output, config=config, shard=shard):
            to.put(without_arrays(result))


def compare(
    sides: Mapping[str, tuple[Refine, int]], number: int, runs: int, done: Callable[[], object]
) -> dict[str, Any]:
    """Sides in turns.

    Args:
        sides: name -> how it refines into a folder, and its workers.
        number: of images.
        runs: of each side.
        done: called after every run.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, (refine, workers) in sides.items():
            found[name].append(timed(refine, workers, number))
            done()
    return {
        name: {"runs": many, "median": {key: median(one[key] for one in many) for key in many[0]}}
        for name, many in found.items()
    }


def ratio(sides: Mapping[str, Any], name: str, beside: str) -> float:
    """The median over pairs of images a second of one side over another's."""
    pairs = zip(sides[name]["runs"], sides[beside]["runs"], strict=True)
    found: float = median(one["images_per_s"] / other["images_per_s"] for one, other in pairs)
    return round(found, 4)


def account(sides: Mapping[str, Any], name: str, beside: str) -> dict[str, float]:
    """Factors whose product, times the number of workers, is about the ratio of two sides.

    Returns:
        "compute": how fast an image is computed beside others, over alone; "share": of the time in which workers
        compute, likewise.
    """
    many, one = sides[name]["median"], sides[beside]["median"]
    return {
        "compute": round(one["compute_ms"] / many["compute_ms"], 4),
        "share": round(many["computing_share"] / one["computing_share"], 4),
    }


def tell(sides: Mapping[str, Any], many: str, one: str, number: int, workers: int) -> None:
    """Print a table and what it comes to."""
    print(f"\n{number} images\n\n| side | images/s | compute, ms an image | computing | gathering, cores |")
    print("| --- " * 5 + "|")
    for name, side in sides.items():
        found = side["median"]
        print(
            f"| {name} | {found['images_per_s']:.2f} | {found['compute_ms']:.1f} | "
            f"{100 * found['computing_share']:.0f} % | {found['gathering_cores']:.2f} |"
        )
    factors = account(sides, many, one)
    print(
        f"\n{many} reach {ratio(sides, many, one):.2f} times {one}: {workers} workers x {factors['compute']:.2f} "
        f"(an image computes longer beside others) x {factors['share']:.2f} (time in which they compute). "
        f"{one} reaches {ratio(sides, one, SINGLE):.2f} times a {SINGLE}, {PLAIN} {ratio(sides, PLAIN, SINGLE):.2f} "
        f"times, and {many} {ratio(sides, many, PLAIN):.2f} times those."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.ray_scaling", "Workers on Ray against one of them.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory (default: %(default)s)")
    add("--count", type=count, default=96, help="images (default: %(default)s)")
    add("--workers", type=count, default=2, help="on one thread each (default: %(default)s)")
    add(
        "--resolution",
        choices=RESOLUTIONS,
        default="pixel",
        help="of the correspondences; pixel makes more work of an image (default: %(default)s)",
    )
    add("--runs", type=count, default=3, help="of each side, in turns (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.workers < 2 or options.count < 6 * options.workers:
        parser.error("--workers is 2 or more, and --count six times that")
    model = read_manifest(engine_directory(options.engine)).model.id
    many, one = f"{options.workers} workers", "1 worker"
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory(prefix="g4seg-bench-")))
        write_scenes(root / "scenes", options.count, SIZE)
        classes = read_classes(root / "scenes" / "classes.json")
        source = DatasetSource.from_folders(root / "scenes" / "images", root / "scenes" / "masks", classes=classes)
        pools = {
            workers: stack.enter_context(RayRefiner.from_engine(options.engine, workers=workers, threads=1))
            for workers in (options.workers, 1)
        }
        single = stack.enter_context(Refiner.from_engine(options.engine, threads=1))
        config = replace(single.config, resolution=options.resolution)
        sides: dict[str, tuple[Refine, int]] = {
            SINGLE: (partial(single.refine_dataset, source, config=config), 1),
            one: (partial(pools[1].refine_dataset, source, config=config), 1),
            many: (partial(pools[options.workers].refine_dataset, source, config=config), options.workers),
            PLAIN: (partial(in_processes, options.engine, source, config, options.workers), options.workers),
        }
        bar = stack.enter_context(tqdm(total=len(sides) * options.runs, desc="run", file=sys.stderr))
        found = compare(sides, options.count, options.runs, bar.update)
    print(f"{model}, resolution {options.resolution}, median of {options.runs} runs in turns")
    tell(found, many, one, options.count, options.workers)
    reached = ratio(found, many, one)
    if options.workers == 2:
        print(f"The goal for two workers is {GOAL}: {'reached' if reached >= GOAL else 'missed'}.")
    if options.json is not None:
        record = {
            "model": model,
            "count": options.count,
            "resolution": options.resolution,
            "workers": options.workers,
            "runs": options.runs,
            "sides": found,
            "ratio": reached,
            "account": account(found, many, one),
            "one_worker_to_single": ratio(found, one, SINGLE),
        }
        write_record(options.json, "ray-scaling", record)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
