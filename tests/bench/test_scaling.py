"""What grows with what: the points, the slopes, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_bench.choices import EngineChoice
from g4seg_bench.cli import main
from g4seg_bench.figures import slope
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.scaling import Axis, axes_of, growth, measure_scaling, steps
from g4seg_bench.sides import Outcome, Task
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import ArtefactRecord

Record = Callable[..., dict[str, Any]]

PLAN = Plan(EngineChoice("onnxruntime"), "onnxruntime", "cpu", "fp32")
EMPTY = np.ones((1, 1), dtype=np.float32)


def setup(engine: Path, **changes: Any) -> Setup:
    plain = Setup(str(engine), None, None, None, classes=1, batch_size=1, threads=2, low_memory=False)
    return replace(plain, **changes)


class FakeSide:
    """Takes 2 s for an image and 0.5 s for each mask, halved by each thread more; the first run of all takes 60 s."""

    def __init__(self, seen: list[str], batch_size: int | None, threads: int | None) -> None:
        self._seen, self._batch, self._threads, self._warm = seen, batch_size or 1, threads or 1, False

    def refine(self, task: Task, first: int) -> Outcome:
        names = list(task.masks(first))
        assert not set(names) & set(self._seen), "the text of this name is known already"
        self._seen += names
        seconds = (2.0 + 0.5 * task.classes) / self._threads if self._warm else 60.0
        self._warm = True
        return Outcome({"total": seconds}, EMPTY, EMPTY, np.zeros((1, 1), np.int64))

    def wait_until_open(self) -> None: ...

    def close(self) -> None: ...


def test_points_and_slopes(toy_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: Setup, __: Plan, *, batch_size: int | None = None, threads: int | None = None) -> FakeSide:
        return FakeSide([], batch_size, threads)

    monkeypatch.setattr(Setup, "open", opened)
    other = Axis("square", (32, 64), {32: toy_engine, 64: toy_engine})
    axes = [Axis("classes", (1, 2, 4)), Axis("batch", (1, 4)), Axis("threads", (1, 2)), other]
    done: list[None] = []
    found = measure_scaling(setup(toy_engine), [PLAN], axes, 2, lambda: done.append(None))
    assert len(done) == steps(axes, 1, 2) == 27

    def points(key: str, *pairs: tuple[int, float]) -> list[dict[str, Any]]:
        return [{"side": "onnxruntime", key: value, "runs": [seconds, seconds]} for value, seconds in pairs]

    assert found == {
        "classes": points("classes", (1, 2.5), (2, 3.0), (4, 4.0)),
        "batch": points("batch_size", (1, 2.5), (4, 1.0)),
        "threads": points("threads", (1, 2.5), (2, 1.25)),
        "square": points("square", (32, 2.5), (64, 2.5)),
        "slopes": {"classes": {"onnxruntime": 0.5}},
    }


def test_one_point_has_no_slope(toy_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setup, "open", lambda *_, **__: FakeSide([], 1, 1))
    found = measure_scaling(setup(toy_engine), [PLAN], [Axis("classes", (2,))], 1, lambda: None)
    assert found["slopes"] == {"classes": {}}


@given(
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True),
)
def test_the_slope_of_a_line(start: float, rise: float, places: list[int]) -> None:
    assert slope({place: start + rise * place for place in places}) == pytest.approx(rise, abs=2e-6)


def test_the_slope_is_that_of_least_squares() -> None:
    # Means 2 and 3; covariance (1 + 0 + 1) over variance 2, by hand.
    assert slope({1: 2.0, 2: 4.0, 3: 3.0}) == pytest.approx(0.5)


def test_axes(toy_engine: Path) -> None:
    engine = setup(toy_engine, threads=6)
    most = min(record.max_batch for record in engine.manifest.networks.values() if record.max_batch > 1)
    axes = axes_of(("threads", "batch", "classes"), (1, 3, most, most + 1), (), engine, [PLAN])
    assert axes == [
        Axis("classes", (1, 3, most, most + 1)),
        Axis("batch", (1, 3, most)),
        Axis("threads", (1, 2, 4, 6)),
    ]
    assert axes_of((), (1, 2), (), engine, [PLAN]) == []


def test_only_batches_that_were_built(toy_engine: Path) -> None:
    engine = setup(toy_engine)
    plan = ArtefactRecord("unet", "tensorrt", (), "10", "GPU", "9.0", "1", (1, 4), {})
    engine.__dict__["manifest"] = replace(engine.manifest, artefacts=(plan,))
    on_gpu = Plan(EngineChoice("tensorrt"), "tensorrt", "cuda", "fp16")
    assert axes_of(("batch",), (1, 2, 4), (), engine, [on_gpu]) == [Axis("batch", (1, 4))]
    assert axes_of(("batch",), (1, 2, 4), (), engine, [PLAN]) == [Axis("batch", (1, 2, 4))]


def test_engines_at_other_squares(toy_engine: Path) -> None:
    engine = setup(toy_engine)
    own = engine.manifest.dims.square
    with pytest.raises(G4SegError, match=f"has the square {own}, as .* has: give each size once"):
        axes_of(("square",), (1,), (str(toy_engine),), engine, [PLAN])


def test_an_engine_of_another_model(toy_engine: Path) -> None:
    with pytest.raises(G4SegError, match=r"engine tiny is of the model .*, expected"):
        axes_of(("square",), (1,), ("tiny",), setup(toy_engine), [PLAN])


def test_growth_in_words() -> None:
    runs = {1: [2.0, 1.0, 2.0], 2: [3.0, 3.0, 3.0], 4: [6.0, 4.0, 5.0]}
    points = [{"side": "a", "classes": count, "runs": many} for count, many in runs.items()]
    said = growth([*points, {"side": "b", "classes": 8, "runs": [1.0]}], "a")
    assert said == (
        "each class more costs 1.000, 1.000 s between 1, 2, 4 classes; four cost 3.00 times one (2.50 to 4.00, turn by "
        "turn)"
    )


def test_scaling_of_an_engine(record_of: Record, toy_engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--baseline", "none", "--runs", 1, "--threads", 1, "--no-ceilings", "--scaling-runs", 1]
    record = record_of(main, "--engine", toy_engine, *options, "--classes", "2,4,1", "--scaling", "batch")
    assert record["settings"]["classes"] == 2, "the first is the one that sides are compared with"
    assert [one["classes"] for one in record["scaling"]["classes"]] == [2, 4, 1]
    assert [one["batch_size"] for one in record["scaling"]["batch"]] == [2, 4, 1]
    assert all(min(one["runs"]) > 0 for axis in ("classes", "batch") for one in record["scaling"][axis])
    assert set(record["scaling"]["slopes"]) == {"classes"}
    assert "four cost" in capsys.readouterr().out
