"""The benchmark of the correspondence search, at a small size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g4seg_bench.correspondence import brute_force, main
from g4seg_bench.features import synthetic
from g4seg_trt.correspondence.reference import nearest_positions_reference, positions_of

Record = Callable[..., dict[str, Any]]
SMALL = ("--runs", 2, "--width", 12, "--grid", 6, "--side", 24, "--grid-side", 9)


def test_searches_are_measured(record_of: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "one.png")
    record = record_of(main, *SMALL, "--photographs", tmp_path)
    assert (record["benchmark"], record["side"]) == ("correspondence", 24)
    printed = capsys.readouterr().out
    for name, one in record["pixels"].items():
        assert f"| {name} |" in printed
        assert set(one["seconds"]) == {"all", "tenth", "brute_force_slice"}
        for part, seconds in one["seconds"].items():
            assert len(seconds) == 2
            assert one["median_seconds"][part] == pytest.approx(median(seconds), abs=1e-4)
        assert 0 < one["cells_compared"] <= one["cells_after_loose_bound"] <= 25
        whole = median(one["seconds"]["brute_force_slice"]) * 24 * 24 / one["brute_force_queries"]
        assert one["brute_force_seconds_extrapolated"] == pytest.approx(whole, abs=0.06)
        assert one["extra_mb"] > 0
    grid = record["grid_search"]
    assert grid["features"] == [12, 9, 9]
    assert grid["median_torch_over_numpy"] == median(grid["torch_over_numpy"])
    assert record["photographs"]["photographs"] == 1
    assert record["photographs"]["cells_compared"] >= 1
    assert "1 photographs, features of tiny" in printed


def test_a_folder_without_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, SMALL), "--photographs", str(tmp_path)]) == 1
    assert "no .jpg or .png file" in capsys.readouterr().err


def test_what_it_compares_with_is_brute_force() -> None:
    generated, original = synthetic(10, 5)["related"]
    rows = [positions_of(features, (11, 13)).astype(np.float32) for features in (generated, original)]
    assert np.array_equal(brute_force(*rows), nearest_positions_reference(generated, original, (11, 13))[0])


def test_kinds_of_features_are_what_they_say() -> None:
    kinds = synthetic(64, 16)
    cosines = {}
    for kind, pair in kinds.items():
        one, other = (positions_of(features) for features in pair)
        assert one.shape == (256, 64)
        cosines[kind] = float(np.einsum("ij,ij->i", one, other).mean())
    assert cosines["smooth"] > 0.7
    assert cosines["related"] > 0.7
    assert abs(cosines["unrelated"]) < 0.1
    smooth = positions_of(kinds["smooth"][1]).reshape(16, 16, 64)
    assert np.einsum("yxk,yxk->yx", smooth[:, 1:], smooth[:, :-1]).mean() > 0.7
    constant = kinds["constant"][1]
    assert (constant == constant[:, :1, :1]).all()
