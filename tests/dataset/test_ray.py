"""A pool of two workers on Ray leaves the same files and records as a single process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from g4seg_trt.dataset.result import FAILED, REFINED, SKIPPED, Result
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.refiner import Refiner
from tests.dataset.ray_cluster import PATIENCE, WORKERS, Cluster, ray_cluster

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds processes by /proc")

Make = Callable[[int], "Dataset"]
Outputs = Callable[[Path], dict[str, bytes]]
Lines = Callable[[Path], list[dict[str, object]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Until the module ends."""
    with ray_cluster() as started:
        yield started


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def states(results: list[Result]) -> Counter[str]:
    return Counter(result.state for result in results)


def stems_of(lines: list[dict[str, object]]) -> list[str]:
    """The images that the records call done, line by line."""
    return sorted(str(line["stem"]) for line in lines if "stem" in line)


def test_files_and_records_are_those_of_a_single_process(
    cluster: Cluster, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(11)
    (dataset.masks / "im 004.png").write_bytes(b"no picture")
    source, one, many = source_of(dataset, truth=dataset.truth), dataset.root / "one", dataset.root / "many"
    expected = {result.stem: result for result in refiner.refine_dataset(source, one, overlay=True)}
    found = {result.stem: result for result in cluster.refine(source, many, overlay=True)}
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
    cluster: Cluster, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(9)
    list(refiner.refine_dataset(source_of(dataset), dataset.output))
    whole = outputs_of(dataset.output)
    shutil.copy(dataset.masks / "im 002.png", dataset.masks / "im 001.png")
    shutil.copy(dataset.images / "im 005.png", dataset.images / "im 004.png")
    (dataset.output / "label" / "im 007.png").unlink()
    (dataset.images / "im 008.png").write_bytes(b"no picture")
    results = {result.stem: result for result in cluster.refine(source_of(dataset), dataset.output, resume=True)}
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
    cluster: Cluster, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(17)
    list(refiner.refine_dataset(source_of(dataset), dataset.root / "one"))
    results = refine_with_a_killed_worker(cluster, dataset, "im 009")  # in the middle of a task
    assert states(results) == {REFINED: 17}
    assert sorted(result.stem for result in results) == sorted(dataset.stems)
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "one")
    assert stems_of(lines_of(dataset.output)) == sorted(dataset.stems)


def test_a_worker_that_dies_late_in_its_task_loses_and_repeats_no_image(
    cluster: Cluster, refiner: Refiner, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(64)
    list(refiner.refine_dataset(source_of(dataset), dataset.output))
    whole = outputs_of(dataset.output)
    for path in (dataset.output / "label").iterdir():
        path.unlink()
    # Of the task of 008 to 015. Ray is to take what the worker that looks has said until then.
    results = refine_with_a_killed_worker(cluster, dataset, "im 014", wait=1, resume=True)
    assert sorted(result.stem for result in results) == sorted(dataset.stems)
    assert states(results) == {REFINED: 64}
    assert outputs_of(dataset.output) == whole
    assert stems_of(lines_of(dataset.output)) == sorted([*dataset.stems, *dataset.stems])


def refine_with_a_killed_worker(
    cluster: Cluster, dataset: Dataset, stem: str, *, wait: float = 0, **more: Any
) -> list[Result]:
    """A whole run whose worker is killed, after some seconds, while it reads this image."""
    image, real = dataset.images / f"{stem}.png", dataset.root / "real.png"
    image.replace(real)
    os.mkfifo(image)  # who reads it waits for a writer
    with cluster.start(source_of(dataset), dataset.output, **more) as run:
        pipe = write_end(image, run.process)
        time.sleep(wait)
        os.kill(reader(image), signal.SIGKILL)
        real.replace(image)
        os.close(pipe)
        return run.results()


def write_end(fifo: Path, run: subprocess.Popen[bytes]) -> int:
    """Open a pipe for writing as soon as somebody reads it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert run.poll() is None, run.communicate()
            time.sleep(0.02)
    raise AssertionError(f"nobody reads {fifo}")


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
    cluster: Cluster, make: Make, outputs_of: Outputs, lines_of: Lines
) -> None:
    dataset = make(40)
    last = dataset.images / f"{dataset.stems[-1]}.png"
    real = dataset.root / "real.png"
    last.replace(real)
    os.mkfifo(last)  # the run cannot end before it is asked to
    command = dataset.command("--ray", cluster.address, "--workers", WORKERS, "--json", "-")
    records = dataset.output / "records" / "all.jsonl"
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=cluster.environment, start_new_session=True
    )
    try:
        while process.poll() is None and (not records.exists() or records.read_bytes().count(b'"stem"') < 2):
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        asked = time.monotonic()
        while process.poll() is None and time.monotonic() < asked + PATIENCE:
            try:
                os.close(os.open(last, os.O_WRONLY | os.O_NONBLOCK))  # lets a worker that has come this far go on
            except OSError:
                time.sleep(0.05)
    finally:
        process.kill()
        out, error = process.communicate()
    assert process.returncode == 130, error
    report = json.loads(out)
    done = stems_of(lines_of(dataset.output))
    assert report["refined"] == len(done)
    assert 2 <= len(done) < 40
    assert sorted(path.stem for path in (dataset.output / "label").iterdir()) == done, "what is written is recorded"
    assert report["ray"] == {"address": cluster.address, "workers": WORKERS, "threads": 1, "gpu": False}
    assert f"interrupted: {len(done)} of 40 images are done, go on with --resume" in error
    assert not [path for path in (dataset.output / "records").iterdir() if path.suffix == ".part"]
    last.unlink()
    real.replace(last)
    rest = dataset.refine("--resume")
    assert rest.returncode == 0, rest.stderr
    assert f"40 images: {40 - len(done)} refined, {len(done)} skipped" in rest.stdout
    assert dataset.refine(output=dataset.root / "whole").returncode == 0
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "whole")


def test_the_command_says_the_same_as_without_ray(cluster: Cluster, make: Make, outputs_of: Outputs) -> None:
    dataset = make(8)
    for number in (6, 1):
        (dataset.masks / f"im 00{number}.{'npz' if number == 6 else 'png'}").unlink()
    options = ("--ground-truth", dataset.truth, "--post", "pamr")
    one = dataset.refine(*options, output=dataset.root / "one")
    many = dataset.refine(*options, "--ray", cluster.address, "--workers", WORKERS, environment=cluster.environment)
    assert (one.returncode, many.returncode) == (3, 3), many.stderr

    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if " s: " not in line and str(dataset.root) not in line]

    def failures(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("failed: ")]

    assert told(many.stdout) == told(one.stdout)
    assert len(failures(one.stderr)) == 2
    assert failures(many.stderr) == failures(one.stderr)
    assert outputs_of(dataset.output) == outputs_of(dataset.root / "one")


def test_a_cluster_that_asks_for_a_token_says_so(cluster: Cluster, make: Make) -> None:
    dataset = make(1)
    done = dataset.refine("--ray", cluster.address, environment={**os.environ, "RAY_AUTH_MODE": "disabled"})
    assert done.returncode == 1
    assert f"no Ray cluster can be joined at {cluster.address} (it asks for its token: set RAY_AUTH_MODE" in done.stderr
    assert "\n  " not in done.stderr, "no traceback"
    assert not dataset.output.exists()


def test_the_product_does_not_load_ray_without_being_asked() -> None:
    program = "import sys; import g4seg_trt.cli.folder; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
