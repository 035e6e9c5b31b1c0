"""The latency benchmark's figures by hand, and its turns; tests/export/test_latency.py has a real baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_bench import latency
from g4seg_bench.assembly import stage_work
from g4seg_bench.calibration import Calibration
from g4seg_bench.cli import main
from g4seg_bench.figures import by_stage, quantiles, ratios, spread, unsafe_reason
from g4seg_bench.latency import take_turns
from g4seg_bench.memory import check_memory, weights_mb
from g4seg_bench.plans import Setup
from g4seg_bench.sides import Outcome, Task, difference, stage_seconds
from g4seg_bench.work import engine_work
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import MANIFEST_FILE, file_sha256, load_engine
from g4seg_trt.refiner import EMBEDDED

Record = Callable[..., dict[str, Any]]

STAGES = ("text", "vae_encoder", "unet", "vae_decoder", "image_encoder", "correspondence")
EMPTY = np.ones((1, 1), dtype=np.float32)


def setup(engine: Path, **changes: Any) -> Setup:
    plain = Setup(str(engine), None, None, None, classes=1, batch_size=1, threads=1, low_memory=False)
    return replace(plain, **changes)


def test_the_engine_alone(record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--baseline", "none", "--runs", 3, "--threads", 1, "--classes", 2, "--no-ceilings"]
    record = record_of(main, "--engine", toy_engine, *options)
    assert (record["benchmark"], record["schema"]) == ("latency", 3)
    assert record["engine"] == {
        "model": "toy",
        "manifest_sha256": file_sha256(toy_engine / MANIFEST_FILE),
        "precision": "fp32",
        "square": 32,
        "form": "folded",
        "vae": None,
    }
    settings = record["settings"]
    assert {key: settings[key] for key in ("classes", "batch_size", "threads", "warmup", "runs")} == {
        "classes": 2,
        "batch_size": 1,
        "threads": 1,
        "warmup": 1,
        "runs": 3,
    }
    assert settings["waiting_threads"]["OMP_WAIT_POLICY"]
    assert settings["config"]["beta"] == 0.5
    assert (record["ceilings"], record["work"], record["scaling"], record["ratios"]) == (None, None, None, {})
    assert list(record["sides"]) == list(record["noise"]) == ["onnxruntime"]
    side = record["sides"]["onnxruntime"]
    assert (side["backend"], side["compute_precision"], side["device"], side["role"]) == (
        "onnxruntime",
        "fp32",
        "cpu",
        "engine",
    )
    assert len(side["runs"]) == 3
    for one in side["runs"]:
        assert set(one) == {*STAGES, "rest", "total"}
        assert sum(one[part] for part in (*STAGES, "rest")) == pytest.approx(one["total"], abs=1e-5)
        assert all(seconds > 0 for seconds in one.values()), "a stage did not run"
    for stage, found in side["stages"].items():
        assert found["median"] == pytest.approx(median(one[stage] for one in side["runs"]), abs=2e-6)
        assert found["min"] <= found["p20"] <= found["median"] <= found["p80"]
    assert side["masks_per_second"] == pytest.approx(2 / side["stages"]["total"]["median"], abs=1e-5)
    absent = ("peak_mb", "device_mb", "floors", "shares", "cold_start", "difference")
    assert [side[key] for key in absent] == [None] * len(absent)
    assert (record["unsafe_reason"] is None) == record["safe"]
    printed = capsys.readouterr().out
    assert "| stage | onnxruntime, s |" in printed
    assert ("unsafe to compare" in printed) == (not record["safe"])


def test_peak_memory_is_a_process_s_own(record_of: Record, toy_engine: Path) -> None:
    held = bytearray(b"x") * 400_000_000
    options = ["--baseline", "none", "--runs", 1, "--threads", 1, "--memory", "--no-ceilings"]
    record = record_of(main, "--engine", toy_engine, *options)
    side = record["sides"]["onnxruntime"]
    assert 30 < side["peak_mb"] < len(held) / 1e6
    assert side["device_mb"] is None
    assert "1 run does not show the noise" in record["unsafe_reason"]


def test_the_task_leaves_nothing_to_resize_and_something_to_change(toy_engine: Path) -> None:
    manifest = load_engine(toy_engine)
    task = Task.of(manifest, 3)
    assert task.image.shape == (manifest.dims.square, manifest.dims.square, 3)
    assert task.config.to_mapping()["certainty_filter"] == manifest.recommended["certainty_filter"]
    low, high = task.config.certainty_filter or (0.0, 1.0)
    first, second = task.masks(0), task.masks(3)
    assert len(first) == len(second) == 3
    assert not set(first) & set(second), "an engine would know these names"
    for mask in first.values():
        assert mask.shape == task.image.shape[:2]
        assert ((mask >= low) & (mask <= high)).mean() > 0.02
    assert len({mask.tobytes() for mask in first.values()}) == 3, "each class has a mask of its own"


def test_the_difference_of_two_outcomes() -> None:
    latent = np.array([[[[1.0, -4.0]]]], dtype=np.float32)
    mask = np.full((1, 2, 2), 0.5, dtype=np.float32)
    margins = np.array([[0.0, 1e-5, 0.3, 0.2]], dtype=np.float32)
    baseline = Outcome({}, latent, mask, np.array([[0, 1, 2, 3]]), margins)
    changed = mask.copy()
    changed[0, 0, 1] = 0.25
    engine = Outcome({}, latent + np.float32(0.5), changed, np.array([[0, 3, 2, 0]]))
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
        "eager": [{"total": 3.0}, {"total": 2.0}, {"total": 5.0}],
        "other": [{"total": 6.0}, {"total": 8.0}, {"total": 5.0}],
    }
    assert ratios(seconds, "eager") == {
        "engine": {"baseline": "eager", "pairs": [3.0, 1.0, 1.25], "median": 1.25, "min": 1.0, "max": 3.0},
        "other": {"baseline": "eager", "pairs": [0.5, 0.25, 1.0], "median": 0.5, "min": 0.25, "max": 1.0},
    }


def test_quantiles_lie_between_the_nearest_runs() -> None:
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0]) == {"min": 1.0, "p20": 1.8, "median": 3.0, "p80": 4.2}
    assert quantiles([0.25]) == {"min": 0.25, "p20": 0.25, "median": 0.25, "p80": 0.25}


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_quantiles_do_not_depend_on_the_order(seconds: list[float]) -> None:
    found = quantiles(seconds)
    assert found == quantiles(seconds[::-1])
    assert min(seconds) - 1e-6 <= found["min"] <= found["p20"] <= found["median"] <= found["p80"]
    assert found["p80"] <= max(seconds) + 1e-6


def test_a_stage_that_one_run_lacks_is_left_out() -> None:
    runs = [{"unet": 1.0, "rest": 0.1, "total": 2.0}, {"rest": 0.3, "total": 4.0}]
    assert list(by_stage(runs)) == ["rest", "total"]


def test_what_cannot_be_told_apart_is_not_the_rest() -> None:
    staged = stage_seconds({"text": 0.5, "unet": 2.0, "update": 0.25, "opening": 0.125}, 4.0)
    assert staged == {"text": 0.5, "unet": 2.0, "rest": 1.5, "total": 4.0}
    on_gpu = stage_seconds({"text": 0.5, "networks": 3.0, "update": 0.25}, 4.0, together=3.0)
    assert on_gpu == {"text": 0.5, "rest": 0.5, "total": 4.0}
    assert stage_seconds({}, 4.0) == {"total": 4.0}


def test_noise_makes_a_comparison_unsafe() -> None:
    steady = [{"total": seconds} for seconds in (1.0, 1.0, 1.01, 1.02, 1.02)]
    restless = [{"total": seconds} for seconds in (1.0, 1.0, 1.0, 1.5, 1.5)]
    assert spread(steady) < 0.1 < spread(restless)
    assert unsafe_reason({"a": spread(steady)}, 0.05, 5) is None
    reason = unsafe_reason({"a": spread(steady), "b": spread(restless)}, 0.05, 5)
    assert reason is not None
    assert reason.startswith("the seconds of b spread by 50%")
    assert "matrix product varied by 20%" in str(unsafe_reason({"a": 0.0}, 0.2, 5))
    assert "2 runs do not show the noise" in str(unsafe_reason({"a": 0.0}, 0.0, 2))


def test_the_calibration_sees_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4seg_bench.calibration.SECONDS", 0.0)
    calibration = Calibration()
    calibration.measure()
    assert calibration.drift == 0.0
    calibration.seconds = [0.010, 0.010, 0.012]
    assert calibration.drift == pytest.approx(0.2)


class FakeSide:
    """Notes when it is asked, and for which names; takes seconds that it is told."""

    def __init__(self, name: str, log: list[tuple[str, str]], opening: float = 0.0) -> None:
        self._name, self._log, self._opening = name, log, opening

    def refine(self, task: Task, first: int) -> Outcome:
        names = list(task.masks(first))
        self._log += [(self._name, name) for name in names]
        return Outcome({"total": float(first)}, EMPTY, EMPTY, np.zeros((1, 1), np.int64), opening=self._opening)

    def wait_until_open(self) -> None: ...

    def close(self) -> None: ...


def test_sides_take_turns_and_see_the_same_new_names(toy_engine: Path) -> None:
    log: list[tuple[str, str]] = []
    task = Task.of(load_engine(toy_engine), 2)
    turns = take_turns({"a": FakeSide("a", log), "b": FakeSide("b", log, 0.5)}, task, warmup=1, runs=2)
    names = [f"{task.target} {number}" for number in range(6)]
    turn = [(side, name) for first in (0, 2, 4) for side in "ab" for name in names[first : first + 2]]
    assert log == turn
    assert turns.seconds == {"a": [{"total": 2.0}, {"total": 4.0}], "b": [{"total": 2.0}, {"total": 4.0}]}
    assert [(name, outcome.seconds) for name, outcome in turns.outcomes.items()] == [
        ("a", {"total": 0.0}),
        ("b", {"total": 0.0}),
    ]
    assert turns.opening == {"a": 0.0, "b": 0.5}


def test_waiting_for_networks_is_never_counted_silently(toy_engine: Path, record_of: Record) -> None:
    """In low memory mode each run opens every network."""
    options = ["--baseline", "none", "--runs", 2, "--threads", 1, "--low-memory", "--no-ceilings"]
    record = record_of(main, "--engine", toy_engine, *options)
    assert any("waiting for networks to be opened" in note for note in record["settings"]["notes"])
    assert record["settings"]["low_memory"]


def test_the_work_is_that_of_the_task() -> None:
    engine = EMBEDDED["tiny"]
    manifest = load_engine(engine)
    one, two = (engine_work(engine, manifest, batch) for batch in (1, 2))
    single = stage_work(setup(engine, classes=3))
    assert single["text"] == one["text_encoder"].times(3)
    assert single["vae_encoder"] == one["vae_encoder"]
    assert single["unet"] == one["unet"].times(3)
    assert single["image_encoder"] == one["image_encoder"].times(4)
    paired = stage_work(setup(engine, classes=3, batch_size=2))
    assert paired["vae_decoder"] == two["vae_decoder"].times(2), "the fourth place of two batches is filled"
    assert paired["image_encoder"] == one["image_encoder"] + two["image_encoder"].times(2)


def test_sides_that_do_not_fit_are_refused() -> None:
    needed = {"engine": 6000.0, "eager": 7000.0}
    check_memory(needed, 13000.0)
    check_memory(needed, None)
    with pytest.raises(G4SegError, match="engine 6000, eager 7000: 13000 MB are needed at once and 12999 MB are avail"):
        check_memory(needed, 12999.0)


def test_weights_in_another_precision(toy_engine: Path) -> None:
    manifest = load_engine(toy_engine)
    sizes = [sum(file.bytes for file in record.files) for record in manifest.networks.values()]
    assert weights_mb(manifest, "fp32") == pytest.approx(sum(sizes) / 1e6)
    assert weights_mb(manifest, "bf16") == pytest.approx(sum(sizes) / 2e6)
    assert weights_mb(manifest, "fp32", one_network=True) == pytest.approx(max(sizes) / 1e6)


def test_memory_is_asked_before_any_side_is_opened(
    toy_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "available_mb", lambda: 0.001)
    monkeypatch.setattr(Setup, "open", lambda *_: pytest.fail("a side was opened"))
    monkeypatch.setattr(latency, "side_memory", lambda *_: pytest.fail("a process was started"))
    assert main(["--engine", str(toy_engine), "--baseline", "none", "--memory"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "0 MB are available" in err
