"""The latency benchmark on an engine alone, and its figures by hand; tests/export/test_latency.py has both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from g4seg_bench.latency import check_memory, main, ratios
from g4seg_bench.sides import Outcome, Task, difference
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import load_engine

Record = Callable[..., dict[str, Any]]

PARTS = ("text", "vae_encoder", "unet", "vae_decoder", "image_encoder", "correspondence", "rest")


def test_the_engine_alone(record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(main, "--engine", toy_engine, "--baseline", "none", "--runs", 2, "--threads", 1)
    assert (record["benchmark"], record["model"], record["baseline"]) == ("latency", "toy", None)
    assert set(record["seconds"]) == set(record["peak_mb"]) == {"engine"}
    assert not {"ratio", "difference"} & set(record)
    runs = record["seconds"]["engine"]
    assert len(runs) == 2
    for one in runs:
        assert set(one) == {*PARTS, "total"}
        assert sum(one[part] for part in PARTS) == pytest.approx(one["total"], abs=1e-5)
        assert all(one[part] > 0 for part in PARTS), "a stage did not run"
    medians = record["median_seconds"]["engine"]
    assert medians == {part: pytest.approx(median(one[part] for one in runs), abs=2e-6) for part in runs[0]}
    printed = capsys.readouterr().out
    assert "| stage | engine, s |" in printed
    assert f"| total | {medians['total']:.3f} |" in printed


def test_the_task_leaves_nothing_to_resize_and_something_to_change(toy_engine: Path) -> None:
    manifest = load_engine(toy_engine)
    task = Task.of(manifest)
    assert task.image.shape == (manifest.dims.square, manifest.dims.square, 3)
    assert task.coarse.shape == task.image.shape[:2]
    assert task.config.to_mapping()["certainty_filter"] == manifest.recommended["certainty_filter"]
    low, high = task.config.certainty_filter or (0.0, 1.0)
    assert ((task.coarse >= low) & (task.coarse <= high)).mean() > 0.02
    assert task.class_name(1) != task.class_name(2)


def test_the_difference_of_two_outcomes() -> None:
    latent = np.array([[[1.0, -4.0]]], dtype=np.float32)
    mask = np.full((2, 2), 0.5, dtype=np.float32)
    margins = np.array([0.0, 1e-5, 0.3, 0.2], dtype=np.float32)
    baseline = Outcome({}, latent, mask, np.array([0, 1, 2, 3]), margins)
    changed = mask.copy()
    changed[0, 1] = 0.25
    engine = Outcome({}, latent + np.float32(0.5), changed, np.array([0, 3, 2, 0]))
    assert difference(engine, baseline) == {
        "denoised_relative": 0.125,
        "probability_max": 0.25,
        "matches": 4,
        "matches_differing": 2,
        "clear_matches_differing": 1,
    }


def test_ratios_go_pair_by_pair() -> None:
    seconds = {
        "engine": [{"total": 1.0}, {"total": 2.0}, {"total": 4.0}],
        "baseline": [{"total": 3.0}, {"total": 2.0}, {"total": 5.0}],
    }
    assert ratios(seconds) == {"pairs": [3.0, 1.0, 1.25], "median": 1.25}


def test_sides_that_do_not_fit_are_refused() -> None:
    peaks = {"engine": 6000.0, "baseline": 7000.0}
    check_memory(peaks, 13000.0)
    check_memory(peaks, None)
    with pytest.raises(G4SegError, match="13000 MB and 12999 MB are available"):
        check_memory(peaks, 12999.0)


@pytest.mark.parametrize("option", [["--runs", "0"], ["--threads", "x"], ["--alone", "baseline"]])
def test_wrong_usage(option: list[str], toy_engine: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--engine", str(toy_engine), "--baseline", "none", *option])


def test_a_missing_engine_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(tmp_path / "no"), "--baseline", "none"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
