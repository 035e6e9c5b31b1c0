"""The CUDA part of the correspondence benchmark: kernels against torch, replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from g4seg_bench.features import synthetic
from g4seg_trt.correspondence.op import refine_correspondence

Call = Callable[[], object]

SIDES = (32, 64, 128, 256)
WIDTHS = (512, 768, 1024)
BETA = 0.8
BLOCK_BYTES = 256 << 20
# Dense half-precision rate in FLOP/s, measured with cuBLAS; other devices print no roofline.
RATES = {"H200": 790e12}


def by_torch(generated: torch.Tensor, original: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """Normalise, multiply, argmax, gather, mix; products a block of rows at a time where all are more than 256 MB."""
    one, other = (torch.nn.functional.normalize(features.flatten(1), dim=0) for features in (generated, original))
    flat = probability.flatten()
    rows = max(1, BLOCK_BYTES // (one.element_size() * other.shape[1]))
    best = [(block.T @ other).max(dim=1).indices for block in torch.split(one, rows, dim=1)]
    return BETA * flat + (1 - BETA) * flat[torch.cat(best)]


def replayed(call: Call, runs: int) -> tuple[list[float], float]:
    """Milliseconds of each replay and the peak memory that the call took, in 10^6 bytes."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    times = []
    for number in range(runs + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(round(start.elapsed_time(end), 5))
    del kept, graph
    torch.cuda.empty_cache()
    return times, round(peak, 1)


def measure_cuda(runs: int) -> dict[str, Any]:
    """The record's CUDA part, with the lines of its table."""
    name = torch.cuda.get_device_name()
    rate = next((rate for part, rate in RATES.items() if part in name), None)
    grids = [_grid(side, width, rate, runs) for side in SIDES for width in WIDTHS]
    pixels = {kind: _pixels(kind, runs) for kind in ("smooth", "related", "unrelated", "constant")}
    lines = ["", f"{name}, float16 features, CUDA graph replays, median of {runs} runs", ""]
    lines.append("| grid | P | kernel, ms | torch, ms | torch / kernel | roofline, ms | peak MB: kernel | torch |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for one in grids:
        roofline = "" if one["roofline_ms"] is None else f"{one['roofline_ms']:.3f}"
        lines.append(
            f"| {one['side']}x{one['side']} | {one['width']} | {one['kernel_ms']:.3f} | {one['torch_ms']:.3f} | "
            f"{one['torch_over_kernel']:.2f} | {roofline} | {one['kernel_mb']:.0f} | {one['torch_mb']:.0f} |"
        )
    lines.append("")
    lines += [f"512x512 pixels, 32x32x512 {kind} features: {one['ms']:.3f} ms" for kind, one in pixels.items()]
    return {"device": name, "grid": grids, "pixels": pixels, "table": lines}


def _grid(side: int, width: int, rate: float | None, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    generated, original = (torch.randn(width, side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    probability = torch.rand(side, side, device="cuda")
    kernel, kernel_mb = replayed(
        lambda: refine_correspondence(generated, original, probability, BETA, check_finite=False)[0], runs
    )
    plain, torch_mb = replayed(lambda: by_torch(generated, original, probability), runs)
    n = side * side
    return {
        "side": side,
        "width": width,
        "kernel_ms": median(kernel),
        "torch_ms": median(plain),
        "torch_over_kernel": round(median(plain) / median(kernel), 3),
        "roofline_ms": None if rate is None else round(2e3 * n * n * width / rate, 4),
        "kernel_mb": kernel_mb,
        "torch_mb": torch_mb,
        "kernel_runs_ms": kernel,
        "torch_runs_ms": plain,
    }


def _pixels(kind: str, runs: int) -> dict[str, Any]:
    generated, original = (torch.from_numpy(one).cuda().half() for one in synthetic(512, 32)[kind])
    probability = torch.rand(512, 512, device="cuda")
    times, peak = replayed(
        lambda: refine_correspondence(generated, original, probability, BETA, check_finite=False)[0], runs
    )
    return {"ms": median(times), "runs_ms": times, "peak_mb": peak}
