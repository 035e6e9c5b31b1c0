"""What the machine reaches, on shapes small enough for a test, and floors by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from g4seg_bench import ceilings as module  # noqa: E402
from g4seg_bench.ceilings import Ceilings, floor_seconds, measure_ceilings, share  # noqa: E402
from g4seg_bench.work import Work  # noqa: E402
from g4seg_engine.errors import G4SegError, MissingExtraError  # noqa: E402

WORK = Work(convolution=3e9, product=1e9, attention=1e9, weight_bytes=6_000_000, activation_bytes=4_000_000)
CEILINGS = Ceilings({"fp32": 100.0, "bf16": 1000.0}, 0.5, ())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CPU_PRODUCTS": ((17, 9, 33), (64, 64, 64)),
        "CPU_CONVOLUTIONS": ((3, 11),),
        "TRIAL_SHAPE": (8, 8, 8),
        "SECONDS": 0.01,
        "_LEAST_BUFFER": 2**20,
        "_LARGEST_BUFFER": 2**21,
    }.items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Any], float]) -> list[Any]:
    """A clock that shows what is made of an action's result; the results."""
    results: list[Any] = []

    def timer(action: Callable[[], object]) -> float:
        results.append(action())
        return seconds(results[-1])

    monkeypatch.setattr(module, "_time_on_cpu", timer)
    return results


@pytest.mark.usefixtures("small")
def test_rates_are_measured_and_the_threads_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "SLOW", 1e9)  # leave nothing out, whatever this machine can do
    found = measure_ceilings("cpu", before + 1)
    assert torch.get_num_threads() == before
    assert set(found.gflops) == set(module.PRECISIONS)
    assert all(rate > 0 for rate in found.gflops.values())
    assert found.copy_gb_s > 0
    assert len(found.notes) == 4


@pytest.mark.usefixtures("small")
def test_the_best_of_products_and_convolutions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which everything takes a millisecond, the largest work is the fastest."""
    results = pretend(monkeypatch, lambda _: 1e-3)
    found = measure_ceilings("cpu", 1)
    product, convolution = 2 * 64**3, 2 * 9 * 3 * 3 * 11 * 11
    assert product > convolution
    assert found.gflops == dict.fromkeys(module.PRECISIONS, pytest.approx(product / 1e6, abs=0.05))
    assert "fp32: a product 64 x 64 x 64 is fastest" in found.notes
    shapes = {(tuple(result.shape), result.dtype) for result in results}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert {((17, 33), dtype), ((64, 64), dtype), ((1, 3, 11, 11), dtype)} <= shapes
    monkeypatch.setattr(module, "CPU_CONVOLUTIONS", ((32, 16),))
    found = measure_ceilings("cpu", 1)
    assert found.gflops["bf16"] == pytest.approx(2 * 9 * 32 * 32 * 256 / 1e6, abs=0.05)


@pytest.mark.usefixtures("small")
def test_a_precision_without_instructions_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    results = pretend(monkeypatch, lambda result: 5e-3 if result.dtype == torch.float16 else 1e-3)
    monkeypatch.setattr(module, "TRIAL_SHAPE", (40, 50, 125))
    found = measure_ceilings("cpu", 1)
    assert set(found.gflops) == {"fp32", "bf16"}
    assert any(note.startswith("fp16 left out: 0.1 GFLOP/s in a small product and 0.5 in fp32") for note in found.notes)
    halves = [result.shape for result in results if result.dtype == torch.float16]
    assert set(halves) == {(40, 125)}, "nothing large was run at that rate"


@pytest.mark.usefixtures("small")
def test_the_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_last_cache_bytes", lambda _: 0)
    pretend(monkeypatch, lambda _: 1e-4)
    assert measure_ceilings("cpu", 1).copy_gb_s == pytest.approx(2 * 2**20 / 1e5, abs=0.05)


def test_the_buffer_is_larger_than_the_cache_and_smaller_than_the_memory(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K", "32M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n", encoding="ascii")
    cache = module._last_cache_bytes(tmp_path)
    assert cache == 32 * 2**20
    assert module._last_cache_bytes(tmp_path / "none") == 0
    assert module._buffer_bytes(0, None) == module._LEAST_BUFFER
    assert module._buffer_bytes(4 * cache, None) == 32 * cache
    assert module._buffer_bytes(2**40, None) == module._LARGEST_BUFFER
    assert module._buffer_bytes(2**40, 100.0) == 25_000_000


def test_the_floor_is_the_longer_of_operations_and_bytes() -> None:
    assert floor_seconds(WORK, CEILINGS, "fp32") == pytest.approx(5 / 100)
    assert floor_seconds(WORK, CEILINGS, "bf16") == pytest.approx(0.01 / 0.5)
    assert floor_seconds(WORK, CEILINGS, "bf16", stored="fp32") == pytest.approx(0.005 / 0.5)
    assert floor_seconds(WORK, CEILINGS, "fp32", stored="fp16") == pytest.approx(5 / 100)
    assert floor_seconds(WORK, CEILINGS, "fp16") is None


def test_the_share_is_floor_over_time() -> None:
    assert share(WORK, 0.2, CEILINGS, "fp32") == pytest.approx(0.25)
    assert share(WORK, 0.0, CEILINGS, "fp32") is None
    assert share(WORK, 0.2, CEILINGS, "int8") is None


def test_bad_devices_and_missing_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(G4SegError, match="'tpu', expected cpu or cuda"):
        measure_ceilings("tpu", 1)
    if not torch.cuda.is_available():
        with pytest.raises(G4SegError, match="sees no GPU"):
            measure_ceilings("cuda", 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch is not installed"):
        measure_ceilings("cpu", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    found = measure_ceilings("cuda", 1)
    assert found.gflops["fp16"] > found.gflops["fp32"] > 100
    assert found.copy_gb_s > 50
