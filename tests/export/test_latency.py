"""The latency benchmark with both sides, on the miniature model and its engine, which this folder's tests build."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from g4seg_bench.latency import main
from g4seg_bench.sides import BaselineSide
from g4seg_engine.errors import EngineMismatchError
from g4seg_engine.manifest import Manifest


@pytest.mark.slow  # beside this process, another loads PyTorch and diffusers
def test_engine_against_eager(
    engine: tuple[Path, Manifest], half_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, manifest = engine
    file = tmp_path / "record.json"
    options = ["--engine", str(directory), "--baseline", str(half_folder), "--runs", "3", "--threads", "1"]
    assert main([*options, "--json", str(file)]) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["benchmark"], record["model"], record["baseline"]) == ("latency", "half", str(half_folder))
    assert (record["threads"], record["square"]) == (1, manifest.dims.square)
    assert record["config"]["timestep"] == manifest.recommended["timestep"]

    totals = {side: [one["total"] for one in runs] for side, runs in record["seconds"].items()}
    pairs = [slow / fast for fast, slow in zip(totals["engine"], totals["baseline"], strict=True)]
    assert len(pairs) == 3
    assert record["ratio"]["pairs"] == pytest.approx(pairs, abs=1e-3)
    assert record["ratio"]["median"] == pytest.approx(median(pairs), abs=1e-3)
    for side, runs in record["seconds"].items():
        for one in runs:
            assert all(seconds > 0 for seconds in one.values()), "a stage did not run"
            assert sum(one.values()) == pytest.approx(2 * one["total"], abs=1e-5)
        assert record["median_seconds"][side]["total"] == pytest.approx(median(totals[side]), abs=2e-6)
    peaks = record["peak_mb"]
    assert 30 < peaks["engine"] < peaks["baseline"] / 2, "the engine's process holds what only the baseline needs"

    found = record["difference"]
    assert 0 < found["denoised_relative"] < 1e-4
    assert found["matches"] == manifest.dims.grid**2
    assert found["clear_matches_differing"] == 0
    assert found["matches_differing"] > 0 or found["probability_max"] < 1e-4

    printed = capsys.readouterr().out
    both = (record["median_seconds"][side]["total"] for side in ("engine", "baseline"))
    row = " | ".join(f"{seconds:.3f}" for seconds in both)
    assert f"| total | {row} | {record['ratio']['median']:.2f} |" in printed


def test_a_baseline_of_another_kind_is_refused(engine: tuple[Path, Manifest], half_folder: Path) -> None:
    directory, manifest = engine
    other = replace(manifest, prediction_type="epsilon")
    with pytest.raises(EngineMismatchError, match="made from half and the baseline is"):
        BaselineSide(str(half_folder), directory, other, 1)
