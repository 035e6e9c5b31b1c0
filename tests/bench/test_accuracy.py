"""The accuracy benchmark: its figures by hand, eager PyTorch brought to labels by another way, the whole command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from g4seg_bench import accuracy
from g4seg_bench.accuracy import available_sides, is_accurate, main, with_eager, with_engine
from g4seg_bench.choices import EngineChoice
from g4seg_bench.samples import (
    Given,
    Result,
    Scene,
    agreement,
    gains,
    mean_and_error,
    on_the_grid,
    scenes,
    uncertain_pixels,
)
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_export.tiny.scenes import make_samples
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.geometry import pool_to_grid
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import engine_directory
from g4seg_trt.update import apply_residual, mix

Record = Callable[..., dict[str, Any]]

TINY = engine_directory("tiny")


def result(probability: list[list[float]], indices: list[int]) -> Result:
    return Result(np.array(probability, np.float32), np.array(indices))


def scene(coarse: list[list[float]], truth: list[list[int]]) -> Scene:
    size = len(coarse)
    return Scene(
        np.zeros((size, size, 3), np.uint8), np.array(coarse, np.float32), np.array(truth, np.bool_), "something"
    )


def test_agreement_by_hand() -> None:
    among = [scene([[0.6, 0.4], [0.0, 0.0]], [[1, 1], [0, 0]]), scene([[0.6, 0.6], [0.0, 0.0]], [[1, 0], [0, 0]])]
    reference = [result([[0.6, 0.5], [0.0, 0.0]], [0, 1]), result([[0.6, 0.6], [0.0, 0.0]], [0, 1])]
    other = [result([[0.6, 0.4999], [0.0, 0.0]], [0, 1]), result([[0.6, 0.4], [0.0, 0.7]], [1, 1])]
    uncertain = [np.array([[True, True], [False, False]]), np.array([[False, True], [False, False]])]
    found = agreement(other, reference, among, uncertain)
    # 3 of 8 labels differ, 2 of the 3 uncertain ones; 1 of 4 matches. IoU before: 1/2, 1/2. Reference: 1, 1/2.
    # Other: 1/2, 1/2. Gains 50, 0 and 0, 0; differences -50, 0 with deviation 50 / sqrt(2).
    assert found == {
        "labels_percent": 62.5,
        "uncertain_labels_percent": pytest.approx(100 / 3),
        "probability_max": pytest.approx(0.7),
        "matches_percent": 75.0,
        "gain": 0.0,
        "gain_error": 0.0,
        "gain_difference": -25.0,
        "gain_difference_error": pytest.approx(50.0),
    }
    assert gains(reference, among).tolist() == [50.0, 0.0]


def test_agreement_without_an_uncertain_pixel() -> None:
    among = [scene([[0.9]], [[1]])]
    same = [result([[0.9]], [0])]
    found = agreement(same, same, among, [np.array([[False]])])
    assert found["uncertain_labels_percent"] is None
    assert (found["labels_percent"], found["gain"], found["gain_error"]) == (100.0, 0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 7))
def test_agreement_counts_pixels(seed: int, number: int, side: int) -> None:
    rng = np.random.default_rng(seed)

    def draw() -> NDArray[np.float32]:
        return rng.random((side, side), dtype=np.float32)

    among = [Scene(np.zeros((side, side, 3), np.uint8), draw(), draw() > 0.5, "x") for _ in range(number)]
    ours, theirs = ([Result(draw(), rng.integers(0, 4, 4)) for _ in range(number)] for _ in range(2))
    uncertain = [draw() > 0.3 for _ in range(number)]
    found = agreement(ours, theirs, among, uncertain)
    same = total = 0
    for one, other in zip(ours, theirs, strict=True):
        for p, q in zip(one.probability.flat, other.probability.flat, strict=True):
            same += (p < 0.5) == (q < 0.5)
            total += 1
    assert found["labels_percent"] == pytest.approx(100 * same / total)
    assert found["gain_difference"] == pytest.approx(found["gain"] - gains(theirs, among).mean())
    back = agreement(theirs, ours, among, uncertain)
    assert back["gain_difference"] == pytest.approx(-found["gain_difference"])
    for name in ("labels_percent", "uncertain_labels_percent", "probability_max", "matches_percent"):
        assert back[name] == found[name]
    itself = agreement(ours, ours, among, uncertain)
    assert (itself["labels_percent"], itself["probability_max"], itself["gain_difference"]) == (100.0, 0.0, 0.0)


def test_two_standard_errors() -> None:
    assert mean_and_error(np.array([5.0, -2.0, 0.0])) == pytest.approx((1.0, 2 * (13 / 3) ** 0.5))
    assert mean_and_error(np.array([5.0])) == (5.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "difference", "verdict"),
    [(99.9, 0.1, True), (100.0, -0.1, True), (99.899, 0.0, False), (100.0, 0.101, False), (99.95, -0.2, False)],
)
def test_the_verdict(labels: float, difference: float, verdict: bool) -> None:
    assert is_accurate({"labels_percent": labels, "gain_difference": difference}) is verdict


@pytest.mark.parametrize("square", [64, 40, 96])
def test_scenes_have_the_model_s_size(square: int) -> None:
    found = list(scenes(3, 5, square))
    for one, sample in zip(found, make_samples(3, 5), strict=True):
        assert one.image.shape == (square, square, 3)
        assert one.coarse.shape == one.truth.shape == (square, square)
        share = sample.scene.masks[sample.scene.target].mean()
        assert one.truth.mean() == pytest.approx(share, abs=0.03)
        if square == 64:
            assert np.array_equal(one.image, sample.scene.image)
            assert np.array_equal(one.coarse, sample.coarse)


def test_the_training_scenes_are_refused() -> None:
    with pytest.raises(G4SegError, match="seed is 0, allowed: 1 or more"):
        list(scenes(1, 0, 64))
    with pytest.raises(SystemExit, match="2"):
        main(["--seed", "0"])


@pytest.fixture(scope="module")
def tiny() -> tuple[Manifest, RefineConfig, PromptEncoder]:
    import torch

    torch.set_num_threads(1)
    manifest = load_engine(TINY)
    config = on_the_grid(resolve_config(recommended=manifest.recommended))
    return manifest, config, PromptEncoder.of_engine(TINY, manifest)


Tiny = tuple[Manifest, RefineConfig, PromptEncoder]
Eager = tuple[list[Scene], list[Result], list[NDArray[np.bool_]]]


@pytest.fixture(scope="module")
def eager(tiny: Tiny) -> Eager:
    """Three scenes, the last with a mask of two values, which is softened before it is refined."""
    manifest, config, _ = tiny
    among = list(scenes(3, 31, 64))
    among[2] = replace(among[2], coarse=(among[2].coarse >= 0.5).astype(np.float32))
    return among, *with_eager(among, TINY, manifest, config)


def test_eager_pytorch_s_labels_are_those_of_its_matches(tiny: Tiny, eager: Eager) -> None:
    manifest, config, prompts = tiny
    for one, found, uncertain in zip(*eager, strict=True):
        prepared = Given.of(one, prompts, manifest.dims, config).one
        residual = mix(pool_to_grid(prepared.square, manifest.dims.grid), found.indices, config.beta)
        expected = apply_residual(prepared.given, prepared.probability, residual, config.certainty_filter)
        np.testing.assert_allclose(found.probability, expected, atol=1e-6)
        assert uncertain.any()
        assert not uncertain.all()
        assert np.array_equal(found.probability[~uncertain], one.coarse[~uncertain])
    assert prepared.softened > 0
    assert not np.array_equal(found.probability, one.coarse)


def test_a_mask_that_cannot_change_has_no_uncertain_pixel(tiny: Tiny) -> None:
    manifest, config, prompts = tiny
    empty = replace(next(scenes(1, 31, 64)), coarse=np.zeros((64, 64), np.float32))
    assert not uncertain_pixels(empty, Given.of(empty, prompts, manifest.dims, config), config).any()


def test_another_way_to_refine_is_not_accurate_enough(tiny: Tiny, eager: Eager) -> None:
    _, config, _ = tiny
    among, reference, uncertain = eager
    side = EngineChoice("onnxruntime")
    precision, same = with_engine(among, TINY, side, config)
    assert precision == "fp32"
    figures = agreement(same, reference, among, uncertain)
    assert figures["labels_percent"] == 100.0
    assert figures["probability_max"] < 1e-5
    assert is_accurate(figures)
    _, other = with_engine(among, TINY, side, replace(config, timestep=900, emi_self=0.0, emi_cross=0.0))
    figures = agreement(other, reference, among, uncertain)
    assert 0.0 < figures["matches_percent"] < 90.0
    assert figures["labels_percent"] < 99.9
    assert not is_accurate(figures)


@pytest.mark.usefixtures("tiny")
def test_the_command(record_of: Record, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    record = record_of(main, "--count", 4, "--seed", 7, "--sides", "onnxruntime,openvino:fp32")
    assert (record["benchmark"], record["engine"], record["count"], record["seed"]) == ("accuracy", "tiny", 4, 7)
    assert list(record["sides"]) == ["onnxruntime", "openvino:fp32"]
    printed = capsys.readouterr().out
    for name, one in record["sides"].items():
        assert (one["backend"], one["compute_precision"]) == (name.partition(":")[0], "fp32")
        assert one["labels_percent"] == one["uncertain_labels_percent"] == 100.0
        assert one["matches_percent"] > 99.0
        assert one["gain"] == pytest.approx(record["eager"]["gain"], abs=1e-4)
        assert one["gain_difference"] == 0.0
        assert one["accurate"] is True
        assert f"| {name}" in printed
    assert 0.0 < record["uncertain_percent"] < 30.0
    assert f"| eager fp32 |  |  | {record['eager']['gain']:+.3f} ± {record['eager']['gain_error']:.3f} |" in printed
    assert record["config"]["resolution"] == "grid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sides", "abacus"], "backend is 'abacus', allowed: "),
        (["--sides", "onnxruntime:bf16"], "compute precision is 'bf16', allowed with backend onnxruntime: none"),
        (["--model", "no/such/place"], "no/such/place"),
    ],
)
def test_what_cannot_run(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "1", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_engine_made_from_a_folder_needs_its_name(toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "1", "--engine", str(toy_engine)]) == 1
    assert "--model DIR" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("sides", ["", "openvino:", "onnxruntime,,openvino"])
def test_sides_that_are_no_names(sides: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--sides", sides])


def test_the_sides_that_a_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime", "openvino"}
    monkeypatch.setattr(accuracy, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(accuracy, "cpu_precisions", lambda: ("fp32", "bf16"))
    assert [side.name for side in available_sides()] == ["onnxruntime", "openvino:fp32", "openvino:bf16"]
    monkeypatch.setattr(accuracy, "cpu_precisions", lambda: ("fp32",))
    assert [side.name for side in available_sides()] == ["onnxruntime", "openvino:fp32"]
    installed.clear()
    assert available_sides() == ()
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_pytorch_is_not_loaded_before_its_threads_are_told_to_sleep() -> None:
    program = "import sys, g4seg_bench.accuracy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
