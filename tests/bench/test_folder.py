"""The benchmark of folder runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from g4seg_bench.folder import against, as_folder, main, one_by_one
from g4seg_bench.inputs import write_scenes
from g4seg_engine.errors import G4SegError
from g4seg_trt.geometry import load_image
from g4seg_trt.masks import read_mask

Record = Callable[..., dict[str, Any]]


def test_folder_runs_are_measured(record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(main, "--engine", toy_engine, "--count", 3, "--batch-sizes", "1,2", "--size", 96, "--runs", 2)
    assert (record["benchmark"], record["model"], record["count"]) == ("folder", "toy", 3)
    assert list(record["sizes"]) == ["64", "96"]
    printed = capsys.readouterr().out
    for size, found in record["sizes"].items():
        single = found["single"]["runs"]
        assert f"3 images of {size} px" in printed
        for one in single:
            parts = [one[name] for name in ("decode", "prepare", "compute", "write")]
            assert min(parts) > 0
            assert sum(parts) <= one["total"] + 1e-5
        limit = median(one["total"] / one["compute"] for one in single)
        assert found["overlap_limit"] == pytest.approx(limit, abs=1e-3)
        assert set(found["folder"]) == {"1", "2"}
        for folder in found["folder"].values():
            runs = folder["runs"]
            expected = [one["total"] / other["total"] for one, other in zip(single, runs, strict=True)]
            assert folder["ratios"] == pytest.approx(expected, abs=1e-3)
            assert folder["ratio"] == pytest.approx(median(expected), abs=1e-3)
            assert folder["median"]["total"] == pytest.approx(median(one["total"] for one in runs), abs=1e-5)
            assert all(0 < one["compute"] < one["total"] for one in runs)
            assert folder["bound_by"] in ("read", "compute", "write")
            assert folder["bound_percent"] > 0
            assert f"| {folder['ratio']:.2f} |" in printed


def test_what_bounds_a_folder_run() -> None:
    single = [
        {"total": 8.0, "decode": 1.0, "prepare": 1.0, "compute": 4.0, "write": 2.0},
        {"total": 9.0, "decode": 1.0, "prepare": 1.0, "compute": 5.0, "write": 2.0},
        {"total": 6.0, "decode": 1.0, "prepare": 1.0, "compute": 3.0, "write": 1.0},
    ]
    folder = [{"total": 4.0, "prepare": 1.5, "compute": 3.0, "write": 2.0}] * 3
    found = against(single, folder)
    assert found["ratios"] == [2.0, 2.25, 1.5]
    assert found["ratio"] == 2.0
    assert (found["bound_by"], found["bound_percent"]) == ("compute", 75.0)
    assert against(single, [{**one, "prepare": 2.8} for one in folder])["bound_by"] == "read"


def test_both_ways_write_the_same(toy_engine: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 3, 80)
    single = one_by_one(str(toy_engine), tmp_path / "scenes", tmp_path / "single")
    folder = as_folder(str(toy_engine), tmp_path / "scenes", tmp_path / "folder", 1)
    assert min(single.values()) > 0
    assert min(folder.values()) > 0
    for part in ("probability", "label"):
        made = sorted((tmp_path / "single" / part).iterdir())
        assert len(made) == 3
        for path in made:
            assert path.read_bytes() == (tmp_path / "folder" / "refined" / part / path.name).read_bytes()


def test_a_folder_run_that_fails_ends_the_benchmark(
    toy_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "scenes", 2, 64)
    image = min((tmp_path / "scenes" / "images").iterdir())
    image.write_bytes(b"no picture")
    with pytest.raises(G4SegError, match="batch size 1 failed"):
        as_folder(str(toy_engine), tmp_path / "scenes", tmp_path / "folder", 1)
    assert image.stem in capsys.readouterr().err


@pytest.mark.parametrize(("size", "suffix"), [(64, ".png"), (100, ".jpg")])
def test_scenes_are_images_with_soft_masks(size: int, suffix: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 2, size)
    images = sorted((tmp_path / "scenes" / "images").iterdir())
    assert [path.suffix for path in images] == [suffix] * 2
    for path in images:
        assert load_image(path).shape == (size, size, 3)
        mask = read_mask(tmp_path / "scenes" / "masks" / f"{path.stem}.png", "any")
        assert mask.shape == (size, size)
        assert len(np.unique(mask)) > 20
