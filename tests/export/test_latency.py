"""The latency benchmark with a baseline, on the miniature model and its engine, which this folder's tests build."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from g4seg_bench import baseline
from g4seg_bench.baseline import BaselineSide, baseline_source
from g4seg_bench.choices import BaselineChoice
from g4seg_bench.cli import main
from g4seg_bench.sides import Task, difference
from g4seg_engine.errors import EngineMismatchError, G4SegError
from g4seg_engine.manifest import AutoencoderRecord, Manifest

EAGER = BaselineChoice("eager")


@pytest.mark.slow  # beside this process, another loads PyTorch and diffusers
def test_engine_against_eager(
    engine: tuple[Path, Manifest], half_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, manifest = engine
    file = tmp_path / "record.json"
    options = ["--engine", str(directory), "--model", str(half_folder), "--runs", "3", "--threads", "1", "--memory"]
    assert main([*options, "--json", str(file)]) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["engine"]["model"], record["settings"]["baseline_model"]) == ("half", str(half_folder))
    assert record["settings"]["config"]["timestep"] == manifest.recommended["timestep"]
    sides = record["sides"]
    assert [(name, side["role"], side["compute_precision"]) for name, side in sides.items()] == [
        ("onnxruntime", "engine", "fp32"),
        ("eager", "baseline", "fp32"),
    ]
    totals = {name: [one["total"] for one in side["runs"]] for name, side in sides.items()}
    pairs = [slow / fast for fast, slow in zip(totals["onnxruntime"], totals["eager"], strict=True)]
    assert list(record["ratios"]) == ["onnxruntime"]
    assert record["ratios"]["onnxruntime"]["pairs"] == pytest.approx(pairs, abs=1e-3)
    assert record["ratios"]["onnxruntime"]["median"] == pytest.approx(median(pairs), abs=1e-3)
    for side in sides.values():
        for one in side["runs"]:
            assert all(seconds > 0 for seconds in one.values()), "a stage did not run"
            assert sum(one.values()) == pytest.approx(2 * one["total"], abs=1e-5)
        assert set(side["shares"]) == {*record["work"], "total"}
        for stage, floor in side["floors"].items():
            assert side["shares"][stage] == pytest.approx(floor / side["stages"][stage]["median"], rel=0.02, abs=1e-4)
    assert 30 < sides["onnxruntime"]["peak_mb"] < sides["eager"]["peak_mb"] / 2, "it holds what only a baseline needs"
    assert record["ceilings"]["gflops"]["fp32"] > 0

    found = sides["onnxruntime"]["difference"]
    assert 0 < found["denoised_relative"] < 1e-4
    assert found["matches"] == manifest.dims.grid**2
    assert found["clear_matches_differing"] == 0
    assert sides["eager"]["difference"] is None
    assert "| total |" in capsys.readouterr().out


def side(engine: tuple[Path, Manifest], folder: Path, chosen: BaselineChoice = EAGER) -> BaselineSide:
    directory, manifest = engine
    return BaselineSide(chosen, baseline_source(chosen, manifest, str(folder), None), directory, manifest, threads=1)


def test_several_classes_share_the_image_s_stages(
    engine: tuple[Path, Manifest], half_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = side(engine, half_folder)
    encoded: list[torch.Tensor] = []
    pipeline = opened._pipeline
    encode = pipeline._encode

    def counted(image: torch.Tensor) -> torch.Tensor:
        encoded.append(image)
        return encode(image)

    monkeypatch.setattr(pipeline, "_encode", counted)
    task = Task.of(engine[1], 3)
    together = opened.refine(task, 0)
    assert len(encoded) == 1
    assert together.denoised.shape[0] == together.probability.shape[0] == together.indices.shape[0] == 3
    assert len({one.tobytes() for one in together.denoised}) == 3, "each class has a mask and a text of its own"
    alone = opened.refine(replace(task, classes=1), 0)
    np.testing.assert_array_equal(alone.denoised[0], together.denoised[0])
    assert sum(together.seconds.values()) == pytest.approx(2 * together.seconds["total"], abs=1e-5)


def test_a_baseline_in_bfloat16(engine: tuple[Path, Manifest], half_folder: Path) -> None:
    task = Task.of(engine[1])
    exact = side(engine, half_folder).refine(task, 0)
    coarser = side(engine, half_folder, BaselineChoice("eager", "bf16")).refine(task, 0)
    found = difference(coarser, exact)
    assert 1e-4 < found["denoised_relative"] < 0.1
    assert found["probability_max"] < 0.2


@pytest.mark.slow  # tracing takes seconds
def test_compiled_modules_do_the_same_and_are_compiled_once(
    engine: tuple[Path, Manifest], half_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch.compile's own tracing and a backend that needs no compiler."""
    compile_with: Callable[..., None] = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compile_with(module, backend="eager"))
    eager, compiled = side(engine, half_folder), side(engine, half_folder, BaselineChoice("compile"))
    task = Task.of(engine[1])
    graphs = []
    for first in range(3):
        expected, found = eager.refine(task, first), compiled.refine(task, first)
        np.testing.assert_allclose(found.denoised, expected.denoised, atol=1e-5)
        np.testing.assert_array_equal(found.indices, expected.indices)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 1
    assert graphs[1:] == graphs[:1] * 2, "each run is compiled anew"


def test_no_compiler_is_one_line(
    engine: tuple[Path, Manifest], half_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no working C++ compiler found\nin g++, clang++")

        return call

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: setattr(module, "forward", refuse()))
    with pytest.raises(G4SegError, match=r"does not work here \(no working C\+\+ compiler found\)"):
        side(engine, half_folder, BaselineChoice("compile"))


def test_a_baseline_of_another_kind_is_refused(engine: tuple[Path, Manifest], half_folder: Path) -> None:
    manifest = engine[1]
    other = replace(manifest, prediction_type="epsilon")
    with pytest.raises(EngineMismatchError, match="made from half and the baseline is"):
        baseline_source(EAGER, other, str(half_folder), None)
    with pytest.raises(EngineMismatchError, match="made from half and the baseline is tiny"):
        baseline_source(EAGER, manifest, "tiny", None)


def test_the_baseline_has_the_engine_s_autoencoder(
    engine: tuple[Path, Manifest], half_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def load(_: str, **options: Any) -> Any:
        asked.append(options)
        return source

    source = baseline_source(EAGER, engine[1], str(half_folder), None)
    monkeypatch.setattr("g4seg_export.sources.load_source", load)
    other = replace(engine[1], autoencoder=AutoencoderRecord(decoder="random:taesd"))
    baseline_source(EAGER, other, str(half_folder), None)
    baseline_source(replace(EAGER, own_vae=True), other, str(half_folder), None)
    baseline_source(EAGER, other, str(half_folder), "distilled")
    assert asked == [{"vae_decoder": "random:taesd"}, {}, {"vae_decoder": "distilled"}]
    lost = replace(engine[1], autoencoder=AutoencoderRecord(encoder="distilled"))
    with pytest.raises(G4SegError, match=r"local folder called 'distilled': .* --vae DIR"):
        baseline_source(EAGER, lost, str(half_folder), None)


def test_the_baseline_has_the_engine_s_square() -> None:
    """No weights depend on it."""
    from g4seg_engine.manifest import load_engine
    from g4seg_trt.refiner import EMBEDDED

    tiny = load_engine(EMBEDDED["tiny"])
    larger = replace(tiny, dims=replace(tiny.dims, square=128, grid=32))
    assert baseline_source(EAGER, larger, None, None).dims == larger.dims


def test_precisions() -> None:
    assert baseline.baseline_precision(EAGER, "cpu") == "fp32"
    assert baseline.baseline_precision(EAGER, "cuda:1") == "fp16"
    assert baseline.baseline_precision(BaselineChoice("eager", "bf16"), "cuda") == "bf16"
