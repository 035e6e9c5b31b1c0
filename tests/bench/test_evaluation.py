"""The benchmark of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from PIL import Image

from g4seg_bench import evaluation
from g4seg_bench.evaluation import HEIGHT, WIDTH, main, timed, write_set
from g4seg_engine.errors import G4SegError

Record = Callable[..., dict[str, Any]]


def test_evaluations_are_timed(
    record_of: Record, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "DISTINCT", 2)
    record = record_of(main, "--count", 5, "--workers", "1,2", "--runs", 2)
    assert (record["benchmark"], record["count"]) == ("evaluation", 5)
    assert [(one["workers"], one["coarse"]) for one in record["results"]] == [
        (1, False),
        (2, False),
        (1, True),
        (2, True),
    ]
    printed = capsys.readouterr().out
    for one in record["results"]:
        assert len(one["runs"]) == 2
        assert all(0 < spent["reported"] <= spent["seconds"] + 1e-3 for spent in one["runs"])
        assert one["median_seconds"] == pytest.approx(median(spent["seconds"] for spent in one["runs"]))
        assert f"| {one['median_seconds']:.2f} |" in printed


def test_the_set_is_one_of_voc_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "DISTINCT", 2)
    write_set(tmp_path / "set", 3)
    for side in ("predictions", "coarse", "truth"):
        files = sorted((tmp_path / "set" / side).iterdir())
        assert len(files) == 3
        assert files[0].read_bytes() == files[2].read_bytes() != files[1].read_bytes()
        with Image.open(files[1]) as picture:
            assert (picture.mode, picture.size) == ("P", (WIDTH, HEIGHT))
    timed(tmp_path / "set", 1, coarse=True)
    figures = json.loads((tmp_path / "set" / "report.json").read_text(encoding="utf-8"))
    assert figures["images"] == 3
    assert 0.5 < figures["coarse"]["mean_iou"] < figures["figures"]["mean_iou"] < 1


def test_an_evaluation_that_fails_ends_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", 1)
    next((tmp_path / "set" / "truth").iterdir()).write_bytes(b"no picture")
    with pytest.raises(G4SegError, match="with 1 workers failed"):
        timed(tmp_path / "set", 1, coarse=False)
    assert "failed: " in capsys.readouterr().err
