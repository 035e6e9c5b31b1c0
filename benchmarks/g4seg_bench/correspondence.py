"""Time and memory of the correspondence search: ``python -m g4seg_bench.correspondence``.

On the CPU: all pixels and a tenth of them, the ratio to brute force, the grid search against torch. On a CUDA device,
where there is one: the kernels against torch, each replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from g4seg_bench.correspondence_cuda import measure_cuda
from g4seg_bench.features import SEED, Pair, of_photographs, synthetic
from g4seg_bench.options import count
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.correspondence.pixel import cells_searched
from g4seg_trt.correspondence.reference import positions_of

SLICE = 256
WIDTH, GRID, SIDE = 512, 32, 512
GRID_SIDE = 64


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each call, the calls taking turns; one turn before does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + 1):
        for name, call in calls.items():
            took = seconds(call)
            if number > 0:
                found[name].append(round(took, 5))
    return found


def peak_mb(call: Callable[[], object]) -> float:
    """The most memory that Python and numpy held more than before, in 10^6 bytes."""
    tracemalloc.start()
    try:
        call()
        return round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
    finally:
        tracemalloc.stop()


def brute_force(queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> NDArray[np.int64]:
    """The plain way: products of unit features [n,P] with all unit features of the original [m,P], then argmax."""
    best: NDArray[np.int64] = (queries @ candidates.T).argmax(axis=1)
    return best


def pixels(pair: Pair, side: int, runs: int) -> dict[str, Any]:
    """All pixels and a random tenth of them; brute force on a slice of the queries."""
    generated, original = pair
    size = (side, side)
    generator = np.random.default_rng(SEED)
    tenth = np.sort(generator.choice(side * side, max(side * side // 10, 1), replace=False))
    few = np.sort(generator.choice(side * side, min(SLICE, side * side), replace=False))
    candidates = positions_of(original, size).astype(np.float32)
    wanted = positions_of(generated, size)[few].astype(np.float32)
    took = in_turns(
        {
            "all": lambda: nearest_positions(generated, original, size),
            "tenth": lambda: nearest_positions(generated, original, size, tenth),
            "brute_force_slice": lambda: brute_force(wanted, candidates),
        },
        runs,
    )
    loose, compared = cells_searched(generated, original, size)
    middle = {name: median(values) for name, values in took.items()}
    whole = middle["brute_force_slice"] * side * side / len(few)
    return {
        "seconds": took,
        "median_seconds": {name: round(value, 4) for name, value in middle.items()},
        "brute_force_seconds_extrapolated": round(whole, 1),
        "brute_force_queries": len(few),
        "times_brute_force": round(whole / middle["all"], 1),
        "extra_mb": peak_mb(lambda: nearest_positions(generated, original, size)),
        "cells_after_loose_bound": round(loose, 2),
        "cells_compared": round(compared, 2),
    }


def grid(width: int, side: int, runs: int) -> dict[str, Any]:
    """The grid search against torch: normalise, multiply, argmax."""
    generated, original = synthetic(width, side)["related"]
    tensors = [torch.from_numpy(features).reshape(width, -1) for features in (generated, original)]

    def by_torch() -> torch.Tensor:
        one, other = (torch.nn.functional.normalize(features, dim=0) for features in tensors)
        return (one.T @ other).argmax(dim=1)

    took = in_turns({"numpy": lambda: nearest_positions(generated, original), "torch": by_torch}, runs)
    pairs = [round(torch_took / own, 3) for own, torch_took in zip(took["numpy"], took["torch"], strict=True)]
    return {
        "features": [width, side, side],
        "seconds": took,
        "median_seconds": {name: median(values) for name, values in took.items()},
        "torch_over_numpy": pairs,
        "median_torch_over_numpy": median(pairs),
    }


def on_photographs(engine: str, files: Sequence[Path], side: int) -> dict[str, Any]:
    """Cells searched for each pixel, with features of an engine's image encoder."""
    found = [cells_searched(*pair, (side, side)) for pair in tqdm(of_photographs(engine, files), total=len(files))]
    loose, compared = np.mean(found, axis=0)
    return {
        "engine": engine,
        "photographs": len(files),
        "cells_after_loose_bound": round(float(loose), 2),
        "cells_compared": round(float(compared), 2),
    }


def tell(record: Mapping[str, Any]) -> None:
    """Print the record as Markdown."""
    width, grid_side, side = record["width"], record["grid"], record["side"]
    print(f"CPU, {record['threads']} threads: {grid_side}x{grid_side}x{width} features, {side}x{side} pixels, ", end="")
    print(f"median of {record['runs']} runs in turns\n")
    rows = [["features", "all pixels, s", "a tenth, s", "times brute force", "extra memory, MB"]]
    rows[0] += ["cells after the loose bound", "cells compared"]
    rows.append(["---"] * len(rows[0]))
    for name, one in record["pixels"].items():
        took = one["median_seconds"]
        rows.append([name, f"{took['all']:.2f}", f"{took['tenth']:.2f}", f"{one['times_brute_force']:.0f}"])
        rows[-1] += [f"{one['extra_mb']:.0f}", f"{one['cells_after_loose_bound']:.1f}", f"{one['cells_compared']:.2f}"]
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    print(f"\nBrute force was run for {SLICE} queries and extrapolated to all pixels.")
    if "photographs" in record:
        one = record["photographs"]
        print(
            f"{one['photographs']} photographs, features of {one['engine']}: {one['cells_after_loose_bound']} cells "
            f"after the loose bound, {one['cells_compared']} compared for each pixel"
        )
    one = record["grid_search"]
    took = one["median_seconds"]
    print(f"\nGrid {'x'.join(map(str, one['features']))}: {took['numpy']:.3f} s, torch {took['torch']:.3f} s, ", end="")
    print(f"torch over ours {one['median_torch_over_numpy']:.2f} (pair by pair: {one['torch_over_numpy']})")
    for line in record.get("cuda", {}).get("table", ()):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.correspondence", "Time and memory of the correspondence search.")
    add = parser.add_argument
    add("--runs", type=count, default=5, help="runs of each search (default: %(default)s)")
    add("--width", type=count, default=WIDTH, help="numbers in a feature (default: %(default)s)")
    add("--grid", type=count, default=GRID, help="side of the feature grid (default: %(default)s)")
    add("--side", type=count, default=SIDE, help="side of the picture in pixels (default: %(default)s)")
    add("--grid-side", type=count, default=GRID_SIDE, help="side of the grid search's grid (default: %(default)s)")
    add("--engine", default="tiny", metavar="DIR|tiny", help="whose image encoder looks at the photographs")
    add("--photographs", type=Path, metavar="DIR", help="folder of photographs to count searched cells on")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    record: dict[str, Any] = {
        "runs": options.runs,
        "threads": torch.get_num_threads(),
        "width": options.width,
        "grid": options.grid,
        "side": options.side,
        "pixels": {
            name: pixels(pair, options.side, options.runs)
            for name, pair in tqdm(synthetic(options.width, options.grid).items(), desc="pixels", file=sys.stderr)
        },
        "grid_search": grid(options.width, options.grid_side, options.runs),
    }
    if options.photographs is not None:
        files = sorted(file for file in options.photographs.iterdir() if file.suffix.lower() in (".jpg", ".png"))
        if not files:
            raise G4SegError(f"{options.photographs}: no .jpg or .png file")
        record["photographs"] = on_photographs(options.engine, files, options.side)
    if torch.cuda.is_available():
        record["cuda"] = measure_cuda(options.runs)
    tell(record)
    if options.json is not None:
        write_record(options.json, "correspondence", record)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
