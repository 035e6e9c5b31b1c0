"""Cold starts and memory, each in a process of its own.

A start is measured three ways: without a cache, with one that is empty, and with the one that this made. Each is
measured twice over: until all networks are open and the first mask's compute has nothing to wait for ("ready"), and
until the first mask is done, with computing under way while networks are still being opened ("mask"). The engine's
files have been read just before, so that no start waits for the disk more than another.

``python -m g4seg_bench.cold`` is the process that is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from time import monotonic
from typing import TYPE_CHECKING, Any

from g4seg_bench.choices import choice
from g4seg_bench.options import count
from g4seg_bench.processes import Usage, run_measured
from g4seg_engine.cache import FOLDER
from g4seg_engine.errors import G4SegError
from g4seg_trt.cli.common import DONE, new_parser, run

if TYPE_CHECKING:
    from g4seg_bench.plans import Plan, Setup

READY, MASK = "ready", "mask"
_CHUNK = 2**24


def cold_starts(setup: Setup, plan: Plan, rounds: int, done: Callable[[], object]) -> dict[str, dict[str, Any]]:
    """Measure the starts of an engine's side; the engine's own cache is neither used nor changed.

    Args:
        setup: the engine; not in low memory mode, where networks are never all open.
        plan: the side.
        rounds: how often.
        done: called after each process, PROCESSES times in each round.

    Returns:
        By "no_cache", "first" and "second": the seconds of each round from the start of the process until "ready" and
        until "mask", and the largest "peak_mb" of the latter.

    Raises:
        G4SegError: if a process fails, or there is no room for a copy of the engine.
    """

    with linked_copy(setup.directory) as folder:
        copied = setup.at(folder)
        found: dict[str, dict[str, Any]] = {
            name: {READY: [], MASK: [], "peak_mb": 0.0} for name in ("no_cache", "first", "second")
        }
        for _ in range(rounds):
            for name, one in found.items():
                for until in (READY, MASK):
                    if name == "first":
                        shutil.rmtree(folder / FOLDER, ignore_errors=True)
                    options = ["--no-cache"] if name == "no_cache" else []
                    said, usage = run_alone(copied, plan, "--until", until, *options)
                    one[until].append(round(said[until] - usage.started, 4))
                    done()
                one["peak_mb"] = max(one["peak_mb"], usage.peak_mb)
    return found


PROCESSES = 6
"""What each round of `cold_starts` starts."""


def side_memory(setup: Setup, plan: Plan) -> tuple[float, float | None]:
    """The most memory that a process of its own takes for one refinement, and what it holds of the device's, in MB.

    An engine's process finds its cache, as every one but the first does.
    """
    if not plan.is_baseline and not setup.low_memory:
        run_alone(setup, plan, "--until", READY)
    said, usage = run_alone(setup, plan, "--until", MASK)
    return usage.peak_mb, said["device_mb"]


def run_alone(setup: Setup, plan: Plan, *options: str) -> tuple[dict[str, Any], Usage]:
    """Run this module for a side; what it says, and what it took."""
    usage = run_measured([sys.executable, "-m", "g4seg_bench.cold", *setup.arguments(plan), *options])
    said: dict[str, Any] = json.loads(usage.output.splitlines()[-1])
    return said, usage


@contextmanager
def linked_copy(directory: Path) -> Iterator[Path]:
    """A temporary copy of an engine directory without its cache, of hard links where the file system lets it.

    Raises:
        G4SegError: if neither links nor room for copies are to be had.
    """
    files = [path for path in directory.rglob("*") if path.is_file() and path.relative_to(directory).parts[0] != FOLDER]
    with TemporaryDirectory(prefix="g4seg-bench-", dir=_same_disk(directory)) as root:
        for path in files:
            target = Path(root) / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(path.resolve())
            except OSError:
                _copy(path, target)
            _read(target)
        yield Path(root)


def _same_disk(directory: Path) -> Path | None:
    """Where links to the engine's files can lie; None for the usual temporary folder."""
    usual, beside = Path(gettempdir()), directory.resolve().parent
    elsewhere = usual.stat().st_dev != directory.stat().st_dev
    return beside if elsewhere and os.access(beside, os.W_OK) else None


def _copy(path: Path, target: Path) -> None:
    needed, free = path.stat().st_size, shutil.disk_usage(target.parent).free
    if needed > free:
        raise G4SegError(
            f"no room for a copy of {path}: {needed / 1e6:.0f} MB are needed in {target.parent} and {free / 1e6:.0f} "
            "are free: set TMPDIR to a folder on the engine's disk"
        )
    try:
        shutil.copyfile(path, target)
    except OSError as error:
        raise G4SegError(f"cannot copy {path} to {target.parent}: {error.strerror}") from error


def _read(path: Path) -> None:
    """Bring a file into the system's cache of files."""
    with path.open("rb", buffering=0) as stream:
        while stream.read(_CHUNK):
            pass


def main(argv: Sequence[str] | None = None) -> int:
    """Be the process that is measured; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.cold", "Open one side, refine once, and say when that was done.")
    add = parser.add_argument
    add("--engine", required=True, metavar="DIR|tiny", help="engine directory, or tiny")
    add("--side", required=True, type=choice, help="as --backend or --baseline of g4seg-bench")
    add("--model", help="the baseline's weights")
    add("--vae", help="the baseline's autoencoder, where it is not the model's own")
    add("--device", help="where it runs")
    add("--classes", type=count, default=1, help="masks of the image (default: %(default)s)")
    add("--batch-size", type=count, default=1, help="masks in one run of a network (default: %(default)s)")
    add("--threads", type=count, required=True, help="CPU threads")
    add("--low-memory", action="store_true", help="keep one network at a time")
    add("--no-cache", action="store_true", help="without the engine's cache")
    add("--until", choices=(READY, MASK), default=MASK, help="when to end (default: %(default)s)")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from g4seg_bench.plans import Setup
    from g4seg_bench.sides import Task

    setup = Setup.of(options, options.classes)
    (plan,) = setup.plans([options.side])
    before = _device_mb(plan.device)
    side = setup.open(plan, cache=not options.no_cache)
    if options.until == READY:
        side.wait_until_open()
    else:
        side.refine(Task.of(setup.manifest, setup.classes), 0)
    said: dict[str, float | None] = {options.until: monotonic()}
    after = _device_mb(plan.device)
    said["device_mb"] = None if before is None or after is None else round(after - before, 1)
    side.close()
    print(json.dumps(said))
    return DONE


def _device_mb(device: str) -> float | None:
    """What the GPU's memory holds, whoever allocated it, in 10^6 bytes; None on a CPU."""
    if device == "cpu":
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e6


if __name__ == "__main__":
    sys.exit(main())
