"""The benchmark of workers on Ray, without Ray: what it makes of the moments at which images are done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest

from g4seg_bench import ray_scaling
from g4seg_bench.inputs import write_scenes
from g4seg_bench.ray_scaling import GOAL, PLAIN, SINGLE, account, compare, in_processes, main, ratio, tell, timed
from g4seg_engine.errors import G4SegError
from g4seg_export.tiny.scenes import SIZE
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.names import read_classes
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import MaskError
from g4seg_trt.refinement import Refinement
from g4seg_trt.refiner import Refiner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(ray_scaling, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ray_scaling, "process_time", lambda: now[0] / 4)
    return now


def worker(
    clock: list[float], seconds: float, compute: float, start: float = 5.0
) -> Callable[[Path], Iterator[Result]]:
    """Refines an image every so many seconds, after a slow start."""

    def refine(_output: Path) -> Iterator[Result]:
        clock[0] += start
        for number in range(9):
            clock[0] += seconds
            yield Result(f"{number}", "", Refinement({}, {}, [], {"unet": compute, "post": 9.0}, {}, {}, {}, {}))

    return refine


def test_the_start_and_what_is_no_stage_do_not_count(clock: list[float]) -> None:
    found = timed(worker(clock, 0.5, 0.8), 2, 9)
    assert found == {"images_per_s": 2.0, "compute_ms": 800.0, "computing_share": 0.8, "gathering_cores": 0.25}


def test_an_image_that_fails_ends_it() -> None:
    with pytest.raises(G4SegError, match="7 could not be refined: no mask"):
        timed(lambda _: [Result("7", "", error=MaskError("no mask"))], 1, 9)


def test_the_ratio_is_that_of_pairs_and_the_account_explains_it(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    sides: dict[str, Any] = {
        SINGLE: (worker(clock, 0.9, 0.9), 1),
        "1 worker": (worker(clock, 1.0, 0.9), 1),
        "2 workers": (worker(clock, 0.625, 1.0), 2),
        PLAIN: (worker(clock, 0.5, 0.9), 2),
    }
    found = compare(sides, 9, 2, lambda: calls.append(1))
    assert len(calls) == 8
    assert ratio(found, "2 workers", "1 worker") == pytest.approx(1.6, abs=1e-3)
    factors = account(found, "2 workers", "1 worker")
    assert factors == {"compute": 0.9, "share": 0.8889}
    assert 2 * factors["compute"] * factors["share"] == pytest.approx(1.6, abs=1e-3)
    tell(found, "2 workers", "1 worker", 9, 2)
    told = capsys.readouterr().out
    assert "2 workers reach 1.60 times 1 worker: 2 workers x 0.90" in told
    assert f"{PLAIN} 1.80 times, and 2 workers 0.80 times those" in told
    assert GOAL > 1.6


def test_plain_processes_do_all_images_and_one_that_dies_is_told(tmp_path: Path, toy_engine: Path) -> None:
    write_scenes(tmp_path, 5, SIZE)
    classes = read_classes(tmp_path / "classes.json")
    source = DatasetSource.from_folders(tmp_path / "images", tmp_path / "masks", classes=classes)
    with Refiner.from_engine(toy_engine) as refiner:
        config = refiner.config
    done = list(in_processes(str(toy_engine), source, config, 2, tmp_path / "refined"))
    assert sorted(result.stem for result in done) == sorted(classes)
    assert all(result.refinement is not None and result.refinement.timings["unet"] > 0 for result in done)
    with pytest.raises(G4SegError, match="ended before its images were done"):
        list(in_processes(str(tmp_path / "none"), source, config, 2, tmp_path / "other"))


def dies_or_lives_on(
    _engine: str, _source: DatasetSource, _config: RefineConfig, shard: tuple[int, int], output: Path, to: Queue[Result]
) -> None:
    """The first process dies, the others have more to hand over than fits into a queue that nobody reads."""
    if shard[0] == 1:
        sys.exit(1)
    to.put(Result("x" * 10_000_000, ""))
    time.sleep(30)
    output.touch()


def test_the_other_processes_do_not_outlive_one_that_died(
    tmp_path: Path, toy_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 5, SIZE)
    classes = read_classes(tmp_path / "classes.json")
    source = DatasetSource.from_folders(tmp_path / "images", tmp_path / "masks", classes=classes)
    with Refiner.from_engine(toy_engine) as refiner:
        config = refiner.config
    monkeypatch.setattr(ray_scaling, "_one_process", dies_or_lives_on)
    with pytest.raises(G4SegError, match="ended before its images were done"):
        list(in_processes("", source, config, 2, tmp_path / "outlived"))
    assert not (tmp_path / "outlived").exists()


@pytest.mark.parametrize("more", [["--workers", "1"], ["--count", "11"]])
def test_too_little_to_measure_is_refused(more: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(more)
