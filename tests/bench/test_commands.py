"""The benchmark of whole commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g4seg_bench.commands import DEMO_CLASS, main, summary
from g4seg_bench.inputs import enlarge, first_sample
from g4seg_bench.processes import Usage

Record = Callable[..., dict[str, Any]]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    sample = first_sample()
    image, coarse = enlarge(sample, 64)
    folder = tmp_path / "in puts"
    folder.mkdir()
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(np.rint(coarse * 255).astype(np.uint8)).save(folder / "mask.png")
    truth = sample.scene.masks[sample.scene.target]
    Image.fromarray(truth.astype(np.uint8) * np.uint8(255)).save(folder / "ground_truth.png")
    return folder


def test_commands_are_measured(
    record_of: Record, toy_engine: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(main, "--engine", toy_engine, "--inputs", inputs, "--class-name", "ring", "--runs", 2)
    assert (record["benchmark"], record["model"], record["runs"]) == ("commands", "toy", 2)
    assert list(record["commands"]) == ["--help", "--version", "one image"]
    printed = capsys.readouterr().out
    for name, one in record["commands"].items():
        assert len(one["seconds"]) == len(one["cpu_seconds"]) == len(one["peak_mb"]) == 2
        assert one["min_seconds"] == min(one["seconds"])
        assert one["max_seconds"] == max(one["seconds"])
        assert one["median_seconds"] == pytest.approx(median(one["seconds"]), abs=1e-4)
        assert one["max_peak_mb"] == max(one["peak_mb"])
        assert min(one["cpu_seconds"]) > 0
        assert min(one["peak_mb"]) > 5
        assert f"| {name} | {one['min_seconds']:.2f} |" in printed
    help_mb, one_mb = (record["commands"][name]["max_peak_mb"] for name in ("--help", "one image"))
    assert one_mb > help_mb + 20, "one image loads numpy and onnxruntime, --help neither"


def test_a_command_that_fails_ends_the_benchmark(
    tmp_path: Path, toy_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    assert main(["--engine", str(toy_engine), "--inputs", str(tmp_path), "--runs", "1", "--json", str(record)]) == 1
    assert "mask.png: no such file" in capsys.readouterr().err
    assert not record.exists()


def test_a_summary() -> None:
    found = summary([Usage(2.0, 1.0, 30.0), Usage(1.0, 3.0, 50.0), Usage(4.0, 2.0, 40.0)])
    assert (found["min_seconds"], found["median_seconds"], found["max_seconds"]) == (1.0, 2.0, 4.0)
    assert (found["median_cpu_seconds"], found["max_peak_mb"]) == (2.0, 50.0)


def test_the_class_is_the_demo_s() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert f"DEMO_CLASS := {DEMO_CLASS}\n" in makefile
