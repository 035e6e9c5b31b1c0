"""Cold starts: in processes of their own, on a copy, so that the engine's own cache is left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from g4seg_bench import cold
from g4seg_bench.choices import BaselineChoice, EngineChoice
from g4seg_bench.cold import PROCESSES, cold_starts, linked_copy, side_memory
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.processes import Usage
from g4seg_engine.cache import FOLDER
from g4seg_engine.errors import EngineError, G4SegError
from g4seg_engine.manifest import load_engine
from g4seg_engine.runner import open_runner
from g4seg_engine.spec import NETWORKS
from g4seg_trt import chain

PLAN = Plan(EngineChoice("onnxruntime"), "onnxruntime", "cpu", "fp32")


@pytest.fixture
def cached_engine(toy_engine: Path, tmp_path: Path) -> Path:
    """An engine with something in its cache."""
    engine = shutil.copytree(toy_engine, tmp_path / "engine")
    (engine / FOLDER / "entry").mkdir(parents=True)
    (engine / FOLDER / "entry" / "file").touch()
    return engine


def setup(engine: Path) -> Setup:
    return Setup(str(engine), "tiny", None, None, classes=2, batch_size=1, threads=1, low_memory=False)


def tree(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_a_copy_of_links_without_the_cache(cached_engine: Path) -> None:
    before = tree(cached_engine)
    with linked_copy(cached_engine) as copied:
        load_engine(copied, verify=True)
        files = {name: inode for name, inode in before.items() if not name.startswith(FOLDER)}
        assert tree(copied) == files, "these are copies, or files are missing"
        (copied / FOLDER).mkdir()
        (copied / FOLDER / "made").touch()
    assert not copied.exists()
    assert tree(cached_engine) == before


def test_files_are_copied_where_they_cannot_be_linked(cached_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with linked_copy(cached_engine) as copied:
        load_engine(copied, verify=True)
        assert not set(tree(copied).values()) & set(tree(cached_engine).values())
        assert not (copied / FOLDER).exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(G4SegError, match=r"no room for a copy of .* set TMPDIR"), linked_copy(cached_engine):
        pass


def test_each_start_finds_the_cache_that_it_should(cached_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, bool, bool]] = []

    def start(given: Setup, plan: Plan, *options: str) -> tuple[dict[str, Any], Usage]:
        assert given.directory != cached_engine
        assert plan is PLAN
        kept, until = given.directory / FOLDER, options[options.index("--until") + 1]
        found.append((until, "--no-cache" in options, kept.exists()))
        if "--no-cache" not in options:
            kept.mkdir(exist_ok=True)
        return {until: 100.0 + len(found)}, Usage(1.0, 1.0, 10.0 * len(found), 100.0, "")

    monkeypatch.setattr(cold, "run_alone", start)
    before = tree(cached_engine)
    done: list[None] = []
    starts = cold_starts(setup(cached_engine), PLAN, 1, lambda: done.append(None))
    assert found == [
        ("ready", True, False),
        ("mask", True, False),
        ("ready", False, False),
        ("mask", False, False),
        ("ready", False, True),
        ("mask", False, True),
    ]
    assert starts == {
        "no_cache": {"ready": [1.0], "mask": [2.0], "peak_mb": 20.0},
        "first": {"ready": [3.0], "mask": [4.0], "peak_mb": 40.0},
        "second": {"ready": [5.0], "mask": [6.0], "peak_mb": 60.0},
    }
    assert len(done) == PROCESSES
    assert tree(cached_engine) == before


def test_starts_of_an_engine(toy_engine: Path) -> None:
    starts = cold_starts(setup(toy_engine), PLAN, 2, lambda: None)
    assert list(starts) == ["no_cache", "first", "second"]
    for one in starts.values():
        for until in ("ready", "mask"):
            assert len(one[until]) == 2
            assert all(0.05 < seconds < 60 for seconds in one[until])
        assert one["peak_mb"] > 30


def test_memory_of_a_side(toy_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def alone(_: Setup, plan: Plan, *options: str) -> tuple[dict[str, Any], Usage]:
        asked.append(f"{plan.name} {options[-1]}")
        return {"device_mb": 7.0}, Usage(1.0, 1.0, 55.0, 0.0, "")

    monkeypatch.setattr(cold, "run_alone", alone)
    assert side_memory(setup(toy_engine), PLAN) == (55.0, 7.0)
    assert side_memory(setup(toy_engine), Plan(BaselineChoice("eager"), "pytorch", "cpu", "fp32")) == (55.0, 7.0)
    assert asked == ["onnxruntime ready", "onnxruntime mask", "eager mask"], "an engine finds its cache"


def test_the_process_that_is_measured(toy_engine: Path) -> None:
    line = [sys.executable, "-m", "g4seg_bench.cold", *setup(toy_engine).arguments(PLAN)]
    done = subprocess.run([*line, "--until", "ready"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert set(said) == {"ready", "device_mb"}
    assert said["device_mb"] is None


@pytest.mark.parametrize("low_memory", [False, True])
def test_ready_means_that_every_network_is_open(
    toy_engine: Path, low_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def slowly(directory: Path, network: str, *arguments: Any, **options: Any) -> Any:
        sleep(0.05)
        opened.append(network)
        return open_runner(directory, network, *arguments, **options)

    monkeypatch.setattr(chain, "open_runner", slowly)
    side = replace(setup(toy_engine), low_memory=low_memory).open(PLAN)
    side.wait_until_open()
    assert sorted(opened) == ([] if low_memory else sorted(NETWORKS))
    side.close()


def test_a_network_that_cannot_be_opened_is_told_when_waiting(
    toy_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, network: str, *__: Any, **___: Any) -> Any:
        raise EngineError(f"no {network} today")

    monkeypatch.setattr(chain, "open_runner", refuse)
    side = setup(toy_engine).open(PLAN)
    with pytest.raises(EngineError, match="today"):
        side.wait_until_open()
    side.close()
