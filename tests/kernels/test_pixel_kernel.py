"""The pixel kernels against float64 brute force; where there is no GPU, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from g4seg_trt.correspondence import pixel_kernel
from g4seg_trt.correspondence.cells import Upsampling
from g4seg_trt.correspondence.pixel_kernel import refine_on_pixels
from g4seg_trt.correspondence.reference import nearest_positions_reference, positions_of

Size = tuple[int, int]
KINDS = ("random", "smooth", "duplicated", "constant", "zeros", "opposite", "negative")


def features(kind: str, seed: int, depth: int, grid: Size, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(depth, *grid, generator=generator)
    if kind == "smooth":
        drawn = torch.nn.functional.avg_pool2d(drawn[None], 3, 1, 1)[0] + 0.3
    elif kind == "duplicated":
        drawn = drawn.reshape(depth, -1)[:, torch.randint(0, 2, grid, generator=generator) % (grid[0] * grid[1])]
    elif kind == "constant":
        drawn = drawn[:, :1, :1].expand(depth, *grid)
    elif kind == "zeros":
        drawn = drawn * (torch.rand(grid, generator=generator) < 0.5)
    elif kind == "opposite":
        drawn = drawn[:, :1, :1] * torch.randn(grid, generator=generator).sign()
    elif kind == "negative":
        drawn = -drawn.abs() - 0.1
    return drawn.to(dtype).contiguous()


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test here fails if the kernel did not run; what it forgets to write is not a number."""
    count, search, plain = 0, pixel_kernel._search_kernel, torch.empty

    class Counted:
        def __getitem__(self, grid: Any) -> Any:
            nonlocal count
            count += 1
            return search[grid]

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        values = plain(*arguments, **options)
        return values.fill_(float("nan") if values.is_floating_point() else -(2**30))

    monkeypatch.setattr(pixel_kernel, "_search_kernel", Counted())
    monkeypatch.setattr(torch, "empty", poisoned)
    yield
    assert count > 0


def check(
    generated: torch.Tensor, original: torch.Tensor, size: Size, device: str, radius: int | None = None, **options: Any
) -> torch.Tensor:
    values = torch.rand(size, device=device)
    refined, indices, similarities = refine_on_pixels(
        generated.to(device), original.to(device), values, 0.3, None, None, radius, True, **options
    )
    assert indices is not None
    assert similarities is not None
    left, right = generated.float().numpy(), original.float().numpy()
    _, best = nearest_positions_reference(left, right, size, radius=radius)
    found = indices.cpu().numpy()
    rows = positions_of(right, size)
    of_found = np.einsum("ij,ij->i", positions_of(left, size), rows[found])
    # Rounding of float32 products is divided by the norms of the two pixels.
    slack = 1e-6 / np.minimum(norms(left, size), norms(right, size)[found]).clip(1e-3, 1.0)
    assert (of_found >= best - slack).all()
    assert (np.abs(similarities.cpu().numpy() - of_found) < slack).all()
    flat = values.reshape(-1)
    expected = flat + 0.3 * (flat[indices] - flat)
    assert torch.allclose(refined.reshape(-1), expected, rtol=0, atol=1e-6)
    return indices


def norms(values: Any, size: Size) -> Any:
    """Norms of the upsampled unit features; 1 where a pixel has none, which is exactly 0 similar to everything."""
    lengths = np.linalg.norm(values, axis=0)
    units = torch.from_numpy(np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)).double()
    upsampled = torch.nn.functional.interpolate(units[None], size, mode="bilinear", align_corners=False)[0]
    found = upsampled.norm(dim=0).reshape(-1).numpy()
    return np.where(found > 1e-6, found, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_kind_of_features(device: str, kind: str, dtype: torch.dtype) -> None:
    check(features("random", 0, 12, (3, 3), dtype), features(kind, 1, 12, (3, 3), dtype), (11, 9), device)


@pytest.mark.parametrize("kind", ["smooth", "random"])
def test_an_image_and_its_slight_change(device: str, kind: str) -> None:
    original = features(kind, 0, 16, (4, 4))
    check(original + 0.1 * features("random", 1, 16, (4, 4)), original, (16, 16), device)


@pytest.mark.parametrize(
    ("here", "there", "size"),
    [
        ((1, 1), (1, 1), (3, 4)),
        ((1, 5), (1, 5), (4, 11)),
        ((5, 1), (5, 1), (7, 3)),
        ((2, 2), (2, 2), (1, 1)),
        ((7, 6), (7, 6), (5, 3)),
        ((3, 4), (4, 3), (8, 9)),
        ((5, 3), (5, 3), (13, 7)),
    ],
)
@pytest.mark.parametrize("depth", [1, 7])
def test_any_shape(device: str, here: Size, there: Size, size: Size, depth: int) -> None:
    check(features("random", 0, depth, here), features("random", 1, depth, there), size, device)


def test_products_a_few_rows_at_a_time(device: str) -> None:
    generated, original = features("random", 0, 8, (5, 4)), features("random", 1, 8, (5, 4))
    whole = check(generated, original, (10, 9), device)
    assert torch.equal(check(generated, original, (10, 9), device, product_bytes=4 * 20 * 4 * 3), whole)


def test_of_identical_pixels_the_first_wins(device: str) -> None:
    # Signs of unit norm and weights that are binary fractions: sums are exact in whatever order a machine adds.
    generated = torch.sign(features("random", 0, 4, (3, 3))) / 2
    assert not check(generated, torch.full((4, 3, 3), 0.5), (12, 12), device).any()
    original = torch.sign(features("duplicated", 1, 4, (4, 4))) / 2
    assert len(torch.unique(original.flatten(1), dim=1).T) == 2
    indices = check(generated, original, (16, 16), device).cpu().numpy()
    # Mirrored cells hold equal pixels too, but rounding may tell those apart.
    rows = positions_of(original.numpy(), (16, 16))
    places = Upsampling.of((4, 4), (16, 16)).weights.T
    for index in np.unique(indices):
        same = (np.abs(rows - rows[index]) < 1e-12).all(axis=1) & (places == places[index]).all(axis=1)
        assert index == np.flatnonzero(same)[0]


def test_features_without_anything(device: str) -> None:
    some, nothing = features("random", 0, 4, (3, 3)), torch.zeros(4, 3, 3)
    assert not check(some, nothing, (7, 8), device).any()
    assert not check(nothing, some, (7, 8), device).any()


@pytest.mark.parametrize("radius", [0, 2, 5, 2**31 - 1])
@pytest.mark.parametrize("kind", ["random", "duplicated", "zeros"])
def test_a_window(device: str, radius: int, kind: str) -> None:
    size = (9, 11)
    indices = check(features("random", 0, 6, (3, 4)), features(kind, 1, 6, (3, 4)), size, device, radius).cpu()
    here = torch.arange(size[0] * size[1])
    assert ((indices // size[1] - here // size[1]).abs() <= radius).all()
    assert ((indices % size[1] - here % size[1]).abs() <= radius).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.55, 0.551), (0.25, 0.25), (0.2, 0.6)])
def test_only_what_the_filter_lets_through_is_searched(device: str, low: float, high: float) -> None:
    generated, original = (features("random", seed, 6, (3, 3)).to(device) for seed in (0, 1))
    values = (torch.arange(64, device=device) / 64).reshape(8, 8)
    where = torch.arange(64, device=device).reshape(8, 8) % 3 != 0
    everything, all_indices, all_similarities = refine_on_pixels(
        generated, original, values, 0.5, None, None, None, True
    )
    refined, indices, similarities = refine_on_pixels(generated, original, values, 0.5, (low, high), where, None, True)
    assert all_indices is not None
    assert all_similarities is not None
    assert indices is not None
    assert similarities is not None
    active = (values >= low) & (values <= high) & where
    assert torch.equal(refined, torch.where(active, everything, values))
    flat = active.reshape(-1)
    assert torch.equal(indices, torch.where(flat, all_indices, -1))
    assert torch.equal(similarities, torch.where(flat, all_similarities, 0.0))
    without, *nothing = refine_on_pixels(generated, original, values, 0.5, (low, high), where, None, False)
    assert torch.equal(without, refined)
    assert nothing == [None, None]
