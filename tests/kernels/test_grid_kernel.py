"""The grid kernel against float64 brute force; where there is no GPU, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from g4seg_trt.correspondence import grid_kernel
from g4seg_trt.correspondence.grid_kernel import Blocks, refine_on_grid

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
dtypes = st.sampled_from([torch.float16, torch.float32])
SMALL = Blocks(16, 16, 16, 1, 1)


class Launches:
    """A kernel that counts how often it was launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid: Any) -> Any:
        self.count += 1
        return self.kernel[grid]


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Every test here fails if the kernel did not run."""
    counted = Launches(grid_kernel._search_kernel)
    monkeypatch.setattr(grid_kernel, "_search_kernel", counted)
    yield counted
    assert counted.count > 0


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write is not a number."""

    def full(*arguments: Any, **options: Any) -> torch.Tensor:
        values = plain(*arguments, **options)
        return values.fill_(float("nan") if values.is_floating_point() else -(2**30))

    plain = torch.empty
    monkeypatch.setattr(torch, "empty", full)


def features(kind: str, seed: int, depth: int, n: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(depth, n, generator=generator)
    if kind == "constant":
        drawn = drawn[:, :1].expand(depth, n)
    elif kind == "duplicated":
        drawn = drawn[:, torch.randint(0, min(n, 3), (n,), generator=generator)]
    elif kind == "zeros":
        drawn = drawn * (torch.rand(n, generator=generator) < 0.5)
    elif kind == "signs":
        drawn = drawn.sign()
    return drawn.to(device, dtype)


def cosines(generated: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    one, other = (torch.nn.functional.normalize(f.double(), dim=0, eps=0.0).nan_to_num() for f in (generated, original))
    return one.T @ other


def check(generated: torch.Tensor, original: torch.Tensor, splits: int | None = None) -> torch.Tensor:
    """Matches are as good as brute force's best; what they mix is S there."""
    n, m = generated.shape[1], original.shape[1]
    values, source = (torch.rand(k, device=generated.device) for k in (n, m))
    blocks = SMALL if generated.device.type == "cpu" else None
    refined, indices, similarities = refine_on_grid(
        generated, original, values, source, 0.3, None, None, None, True, blocks, splits
    )
    assert indices is not None
    assert similarities is not None
    everything = cosines(generated, original)
    best = everything.max(dim=1).values
    found = everything.gather(1, indices[:, None])[:, 0]
    # Half features are compared as they are, without rounding: their products are exact in float32.
    assert (found >= best - 1e-6).all()
    assert (similarities.double() - found).abs().max() < 1e-6
    assert torch.allclose(refined, values + 0.3 * (source[indices] - values), rtol=0, atol=1e-6)
    return indices


@few
@given(
    st.sampled_from(["random", "constant", "duplicated", "zeros"]),
    st.integers(0, 999),
    st.sampled_from([1, 2, 7, 16, 31, 48]),
    st.sampled_from([1, 3, 16, 17, 37]),
    st.sampled_from([1, 5, 16, 33]),
    dtypes,
    st.sampled_from([1, 2, 5]),
)
def test_any_shape(
    device: str, kind: str, seed: int, n: int, m: int, depth: int, dtype: torch.dtype, splits: int
) -> None:
    check(features("random", seed, depth, n, dtype, device), features(kind, seed + 1, depth, m, dtype, device), splits)


@few
@given(
    st.integers(0, 999), st.sampled_from([1, 9, 33]), st.sampled_from([1, 9, 40]), st.sampled_from([4, 16, 64]), dtypes
)
def test_of_exact_ties_the_first_wins(device: str, seed: int, n: int, m: int, depth: int, dtype: torch.dtype) -> None:
    """Features of +-1 whose norm is a power of two: every sum is exact, so ties are real ties."""
    generated, original = (features("signs", seed + k, depth, count, dtype, device) for k, count in ((0, n), (1, m)))
    products = generated.double().T @ original.double()
    for splits in (1, 3):
        assert torch.equal(check(generated, original, splits), products.argmax(dim=1))


def test_constant_features_point_to_the_first(device: str) -> None:
    indices = check(
        features("random", 0, 24, 40, torch.float32, device), features("constant", 1, 24, 50, torch.float32, device), 3
    )
    assert not indices.any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_float32_features(device: str, scale: float) -> None:
    generated, original = (features("random", seed, 9, 20, torch.float32, device) for seed in (0, 1))
    assert torch.equal(check(generated * scale, original / scale), check(generated, original))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_shares_of_nothing_and_everything(device: str, beta: float) -> None:
    generated, original = (features("random", seed, 8, 30, torch.float32, device) for seed in (0, 1))
    values = torch.rand(30, device=device)
    refined, indices, _ = refine_on_grid(generated, original, values, values, 1 - beta, None, None, None, True)
    assert indices is not None
    assert torch.equal(refined, values) if beta == 1.0 else torch.allclose(refined, values[indices], atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0.0, 1.0, 31), (0.55, 0.56, 0), (15 / 31, 15 / 31, 1), (0.2, 0.6, 12)]
)
@pytest.mark.parametrize("splits", [1, 2])
def test_the_certainty_filter_is_closed(device: str, low: float, high: float, count: int, splits: int) -> None:
    generated, original = (features("random", seed, 8, 31, torch.float32, device) for seed in (0, 1))
    values = (torch.arange(31, device=device) / 31).float()
    refined, indices, similarities = refine_on_grid(
        generated, original, values, 1 - values, 0.5, (low, high), None, None, True, SMALL, splits
    )
    assert indices is not None
    assert similarities is not None
    active = indices >= 0
    assert int(active.sum()) == count
    inside = (values >= torch.tensor(low)) & (values <= torch.tensor(high))
    assert torch.equal(active, inside)
    assert torch.equal(refined[~active], values[~active])
    assert not similarities[~active].any()


def test_where_and_without_matches(device: str) -> None:
    generated, original = (features("random", seed, 8, 31, torch.float16, device) for seed in (0, 1))
    values = torch.rand(31, device=device)
    where = torch.rand(31, device=device) < 0.5
    refined, indices, similarities = refine_on_grid(generated, original, values, values, 0.5, None, where, None, False)
    assert indices is None
    assert similarities is None
    everywhere, _, _ = refine_on_grid(generated, original, values, values, 0.5, None, None, None, False)
    assert torch.equal(refined, torch.where(where, everywhere, values))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("radius", [0, 1, 3, 99, 2**31 - 1])
@pytest.mark.parametrize(("height", "width"), [(6, 7), (1, 37), (9, 3)])
def test_a_window(device: str, height: int, width: int, radius: int, splits: int) -> None:
    n = height * width
    generated = features("random", 0, 6, n, torch.float32, device)
    original = features("duplicated", 1, 6, n, torch.float32, device)
    values = torch.rand(n, device=device)
    _, indices, _ = refine_on_grid(
        generated, original, values, values, 0.5, None, None, (width, radius), True, SMALL, splits
    )
    assert indices is not None
    everything = cosines(generated, original)
    y, x = torch.arange(n, device=device) // width, torch.arange(n, device=device) % width
    outside = ((y[:, None] - y).abs() > radius) | ((x[:, None] - x).abs() > radius)
    everything[outside] = -9
    assert (everything.gather(1, indices[:, None])[:, 0] >= everything.max(dim=1).values - 1e-6).all()
    first = (everything >= everything.max(dim=1, keepdim=True).values - 1e-12).int().argmax(dim=1)
    assert torch.equal(indices, first)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2.0**-100, 1e-3, 2.0**100])
def test_scale_of_bfloat16_features(device: str, scale: float) -> None:
    """On a GPU only: the interpreter multiplies bfloat16 wrongly."""
    generated, original = (features("random", seed, 32, 48, torch.bfloat16, device) for seed in (0, 1))
    assert torch.equal(check(generated * scale, original * scale), check(generated, original))
