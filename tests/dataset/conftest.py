"""Data sets of small synthetic images with coarse masks, refined by the embedded engine in real processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from g4seg_trt.cluster.worker import EngineOptions
from g4seg_trt.refiner import Refiner
from tests.folders import DataFolder, outputs

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background would ignore it
from g4seg_trt.cli.refine import main
sys.exit(main())
"""


class Dataset(DataFolder):
    """Masks are .png or .npz."""

    def command(self, *more: object, output: Path | None = None) -> list[str]:
        arguments = ["--engine", "tiny", "--images", self.images, "--masks", self.masks]
        arguments += ["--class-name", "disc", "--output", output or self.output, "--threads", 1, *more]
        return [sys.executable, "-c", PROGRAM, *map(str, arguments)]

    def refine(
        self, *more: object, output: Path | None = None, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command as a process of its own."""
        command = self.command(*more, output=output)
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)

    def start(self, *more: object, output: Path | None = None) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return subprocess.Popen(
            self.command(*more, output=output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def make_dataset(root: Path, count: int, size: int = 64) -> Dataset:
    """Discs on noise; every third mask is an archive, the names have no digits in common order."""
    for part in ("images", "masks", "truth"):
        (root / part).mkdir(parents=True)
    stems = tuple(f"im {number:03d}" for number in range(count))
    for number, stem in enumerate(stems):
        random = np.random.default_rng(number)
        rows, columns = np.mgrid[:size, :size]
        centre = random.uniform(size / 3, 2 * size / 3, 2)
        away = np.hypot(rows - centre[0], columns - centre[1])
        ground = random.integers(0, 120, (size, size, 3), dtype=np.uint8)
        region = away < size / 5
        ground[region] += np.uint8(110)
        Image.fromarray(ground).save(root / "images" / f"{stem}.png")
        soft = (1 / (1 + np.exp((away - size / 5 - random.uniform(-4, 4)) / 4))).astype(np.float32)
        if number % 3:
            Image.fromarray(np.rint(soft * 255).astype(np.uint8)).save(root / "masks" / f"{stem}.png")
        else:
            np.savez(root / "masks" / f"{stem}.npz", disc=soft)
        Image.fromarray(region.astype(np.uint8) * np.uint8(255)).save(root / "truth" / f"{stem}.png")
    return Dataset(root, stems)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Five images."""
    return make_dataset(tmp_path / "set", 5)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int], Dataset]:
    """make(count) -> a data set of that many images."""
    return lambda count: make_dataset(tmp_path / f"set of {count}", count)


@pytest.fixture(scope="session")
def refiner() -> Iterator[Refiner]:
    """The embedded engine on one thread."""
    with Refiner.from_engine("tiny", threads=1) as opened:
        opened.wait_until_open()  # it outlives the test, and would meet what the next one has patched
        yield opened


@pytest.fixture(scope="session")
def outputs_of() -> Callable[[Path], dict[str, bytes]]:
    """outputs_of(folder) -> its outputs with their bytes."""
    return outputs


def read_lines(folder: Path) -> list[dict[str, object]]:
    """All whole lines of the records."""
    return [
        json.loads(line)
        for path in sorted((folder / "records").glob("*.jsonl"))
        for line in path.read_bytes().split(b"\n")[:-1]
    ]


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[dict[str, object]]]:
    """lines_of(folder) -> the lines of its records."""
    return read_lines


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What takes the place of the module ray: an object store, and one worker, which is this process.

    Its engines are closed after the test: Ray would end the process.
    """
    store = SimpleNamespace(
        put=pickle.dumps,
        get=pickle.loads,
        exceptions=SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError),
        get_runtime_context=lambda: SimpleNamespace(get_actor_id=lambda: "one"),
    )
    for module in ("worker", "refiner"):
        monkeypatch.setattr(f"g4seg_trt.cluster.{module}.import_ray", lambda: store)
    open_engine = EngineOptions.open
    with ExitStack() as engines:
        monkeypatch.setattr(EngineOptions, "open", lambda self: engines.enter_context(open_engine(self)))
        yield store
