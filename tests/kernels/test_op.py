"""The torch op: shapes, errors, and that it is the numpy search on a CPU and the kernels on a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.correspondence.op import refine_correspondence
from g4seg_trt.errors import CorrespondenceError
from g4seg_trt.update import in_filter, mix_at

Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(grid: int = 6, size: tuple[int, int] = (6, 6), depth: int = 10, device: str = "cpu") -> Given:
    generator = torch.Generator().manual_seed(0)
    generated, original = (torch.randn(depth, grid, grid, generator=generator) for _ in range(2))
    return generated.to(device), original.to(device), torch.rand(size, generator=generator).to(device)


def with_other_strides(given: Given) -> Given:
    one, two, three = (tensor.mT.contiguous().mT for tensor in given)
    return one, two, three


@pytest.mark.parametrize("size", [(6, 6), (17, 20)])
@pytest.mark.parametrize("certainty_filter", [None, (0.2, 0.6)])
@pytest.mark.parametrize("radius", [None, 2])
def test_it_is_the_numpy_search(size: tuple[int, int], certainty_filter: Any, radius: int | None) -> None:
    generated, original, probability = inputs(size=size)
    where = torch.rand(size) < 0.8
    refined, indices, similarities = refine_correspondence(
        generated, original, probability, 0.7, certainty_filter=certainty_filter, where=where, radius=radius,
        matches=True,
    )  # fmt: skip
    active = in_filter(probability.numpy(), certainty_filter) & where.numpy()
    queries = np.flatnonzero(active)
    found, cosines = nearest_positions(
        generated.numpy(), original.numpy(), None if size == (6, 6) else size, queries, radius
    )
    assert np.array_equal(indices.numpy()[queries], found)
    assert np.array_equal(similarities.numpy()[queries], cosines)
    assert (indices.numpy()[~active.reshape(-1)] == -1).all()
    expected = probability.numpy() + mix_at(probability.numpy(), queries, found, 0.7)
    assert np.array_equal(refined.numpy(), expected)
    alone, no_indices, no_similarities = refine_correspondence(
        generated, original, probability, 0.7, certainty_filter=certainty_filter, where=where, radius=radius
    )
    assert torch.equal(alone, refined)
    assert no_indices.numel() == no_similarities.numel() == 0


def test_registered_as_torch_expects() -> None:
    op = torch.ops.g4seg_trt.refine_correspondence.default
    for size in ((6, 6), (9, 8)):
        for matches in (False, True):
            torch.library.opcheck(op, (*inputs(size=size), 0.5, 0.2, 0.6, None, None, matches))


def test_inputs_are_not_changed_and_strides_do_not_matter() -> None:
    generated, original, probability = inputs(size=(12, 14))
    before = [tensor.clone() for tensor in (generated, original, probability)]
    refined = refine_correspondence(generated, original, probability, 0.5, matches=True)
    for tensor, old in zip((generated, original, probability), before, strict=True):
        assert torch.equal(tensor, old)
    strided = with_other_strides((before[0], before[1], before[2]))
    assert not strided[0].is_contiguous()
    for one, other in zip(refine_correspondence(*strided, 0.5, matches=True), refined, strict=True):
        assert torch.equal(one, other)


def test_a_radius_of_any_size_is_everything() -> None:
    for size in ((6, 6), (9, 8)):
        given = inputs(size=size)
        expected = refine_correspondence(*given, 0.5, matches=True)
        for radius in (9, 2**31, 10**30):
            for one, other in zip(
                refine_correspondence(*given, 0.5, radius=radius, matches=True), expected, strict=True
            ):
                assert torch.equal(one, other)


def test_half_features_are_those_numbers() -> None:
    generated, original, probability = inputs()
    half = refine_correspondence(generated.half(), original.half(), probability, 0.5, matches=True)
    full = refine_correspondence(generated.half().float(), original.half().float(), probability, 0.5, matches=True)
    for one, other in zip(half, full, strict=True):
        assert torch.equal(one, other)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"generated": torch.rand(4, 5)}, r"generated is \[4, 5\]"),
    "empty": ({"original": torch.rand(4, 0, 3)}, r"original is \[4, 0, 3\]"),
    "integers": ({"generated": torch.ones(10, 6, 6, dtype=torch.int64)}, r"generated \[10, 6, 6\] is torch.int64"),
    "widths": ({"original": torch.rand(9, 6, 6)}, r"original is \[9, 6, 6\], generated is \[10, 6, 6\]"),
    "dtypes": ({"original": torch.rand(10, 6, 6).half()}, r"original \[10, 6, 6\] is torch.float16"),
    "not finite": ({"generated": torch.full((10, 6, 6), float("nan"))}, r"generated \[10, 6, 6\] has values"),
    "probability": ({"probability": torch.rand(3, 6, 6)}, r"probability is torch.float32 \[3, 6, 6\]"),
    "bad probability": ({"probability": torch.full((6, 6), float("inf"))}, r"probability \[6, 6\] has values"),
    "where": ({"where": torch.ones(5, 6, dtype=torch.bool)}, r"where is torch.bool \[5, 6\]"),
    "devices": ({"original": torch.rand(10, 6, 6, device="meta")}, r"original \[10, 6, 6\] is on meta"),
    "beta": ({"beta": 1.5}, r"beta is 1.5"),
    "filter": ({"certainty_filter": (0.6, 0.2)}, r"certainty_filter is 0.6 to 0.2"),
    "radius": ({"radius": -1}, r"radius is -1"),
    "radius kind": ({"radius": True}, r"radius is True"),
    "beta kind": ({"beta": "half"}, r"beta is 'half'"),
    "filter kind": ({"certainty_filter": (0.1, 0.2, 0.3)}, r"certainty_filter is \(0.1, 0.2, 0.3\)"),
    "array": (
        {"generated": np.zeros((10, 6, 6), np.float32)},
        r"generated is a ndarray, expected a dense torch tensor",
    ),
    "array where": ({"where": np.ones((6, 6), np.bool_)}, r"where is a ndarray"),
    "sparse": ({"original": torch.rand(10, 6, 6).to_sparse()}, r"original is a torch.sparse_coo"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name: str) -> None:
    changes, message = WRONG[name]
    generated, original, probability = inputs()
    arguments: dict[str, Any] = {
        "generated": generated,
        "original": original,
        "probability": probability,
        "beta": 0.5,
        **changes,
    }
    with pytest.raises(CorrespondenceError, match=message) as caught:
        refine_correspondence(**arguments)
    assert not re.search(r"\n", str(caught.value))


def test_the_op_itself_checks_what_it_is_given() -> None:
    generated, original, probability = inputs()
    with pytest.raises(CorrespondenceError, match="differ"):
        torch.ops.g4seg_trt.refine_correspondence(generated, original[:3], probability, 0.5)


def large(size: tuple[int, int], grid: int, depth: int, dtype: torch.dtype) -> Given:
    generated, original, probability = inputs(grid, size, depth, "cuda")
    return generated.to(dtype), original.to(dtype), probability


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("grid", "size"), [(32, (32, 32)), (37, (37, 37)), (32, (512, 512)), (37, (512, 512))])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype, grid: int, size: tuple[int, int]) -> None:
    generated, original, probability = large(size, grid, 512, dtype)
    where = torch.rand(size, device="cuda") < (1.0 if size[0] == grid else 0.05)
    for radius in (None, size[0] // 8):
        options: dict[str, Any] = {"certainty_filter": (0.2, 0.6), "radius": radius, "matches": True}
        found = refine_correspondence(generated, original, probability, 0.7, where=where, **options)
        expected = refine_correspondence(
            generated.cpu(), original.cpu(), probability.cpu(), 0.7, where=where.cpu(), **options
        )
        assert torch.equal(found[1].cpu() < 0, expected[1] < 0)
        assert (found[2].cpu() - expected[2]).abs().max() < 1e-5  # float32 rounding over the pixels' norms
        same = found[1].cpu() == expected[1]
        assert same.float().mean() > 0.999
        assert torch.allclose(found[0].cpu().reshape(-1)[same], expected[0].reshape(-1)[same], rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("grid", "size"), [(64, (64, 64)), (32, (512, 512))])
def test_cuda_gives_the_same_bytes_every_time(grid: int, size: tuple[int, int]) -> None:
    given = large(size, grid, 512, torch.float16)
    first = refine_correspondence(*given, 0.7, matches=True)
    for _ in range(20):
        for one, other in zip(refine_correspondence(*given, 0.7, matches=True), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 64), (256, 256)])
def test_cuda_other_streams_strides_and_graphs(size: tuple[int, int]) -> None:
    given = large(size, 64, 256, torch.float16)
    expected = refine_correspondence(*given, 0.7, matches=True)
    strided = with_other_strides(given)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = refine_correspondence(*strided, 0.7, matches=True)
    stream.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = refine_correspondence(*given, 0.7, matches=True, check_finite=False)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_cuda_needs_no_memory_for_all_pairs() -> None:
    given = large((128, 128), 128, 512, torch.float16)
    refine_correspondence(*given, 0.7)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    refine_correspondence(*given, 0.7, matches=True)
    assert torch.cuda.max_memory_allocated() - before < 64 << 20  # all pairs in float32 are 1 GiB


@pytest.mark.gpu
def test_cuda_devices_and_values() -> None:
    generated, original, probability = large((6, 6), 6, 10, torch.float32)
    with pytest.raises(CorrespondenceError, match="is on cpu"):
        refine_correspondence(generated, original.cpu(), probability, 0.5)
    with pytest.raises(CorrespondenceError, match="not finite"):
        refine_correspondence(generated, original / 0, probability, 0.5)


SANITIZED = """
import torch
from g4seg_trt.correspondence.op import refine_correspondence
for dtype in (torch.float16, torch.float32):
    one, two = (torch.randn(33, 7, 6, device="cuda", dtype=dtype) for _ in range(2))
    for size in ((7, 6), (29, 31)):
        for radius in (None, 2):
            refine_correspondence(one, two, torch.rand(size, device="cuda"), 0.5, radius=radius, matches=True)
torch.cuda.synchronize()
"""


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
def test_cuda_touches_only_its_own_memory() -> None:
    command = ["compute-sanitizer", "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer cannot watch this device")
    assert done.returncode == 0, done.stdout
