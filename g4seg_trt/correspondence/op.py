"""Match, mix and filter as one torch op: ``torch.ops.g4seg_trt.refine_correspondence``.

On a CPU it is the numpy search; on CUDA the Triton kernels, with nothing of size N x N. Only torch callers import
this module.
"""

from __future__ import annotations

import numpy as np
import torch

from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.correspondence.checks import check_radius
from g4seg_trt.errors import CorrespondenceError, MissingExtraError

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def refine_correspondence(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    beta: float,
    *,
    certainty_filter: tuple[float, float] | None = None,
    where: torch.Tensor | None = None,
    radius: int | None = None,
    matches: bool = False,
    check_finite: bool = True,
) -> Tensors:
    """S*[j] = beta S[j] + (1 - beta) S[delta_j] where the certainty filter lets j through, else S[j] (eq. 8, 9).

    delta_j is the most similar position of the original by cosine, as `nearest_positions` finds it. The shape of S
    chooses the resolution: the features' grid itself, or with any other shape all pixels of the upsampled features.

    Args:
        generated: [P,g,g], float16, bfloat16 or float32; any scale, any strides.
        original: [P,g,g], same shape, dtype and device.
        probability: S, float32 [H,W] in [0,1], same device.
        beta: share of S itself, in [0,1].
        certainty_filter: closed interval of S that is updated, or None for all.
        where: bool [H,W]: where else nothing is updated; None for everywhere.
        radius: positions that a match may be away along either axis, or None.
        matches: whether to return indices and similarities.
        check_finite: whether to look for values that are not finite. On CUDA that waits for the device; leave it
            out inside a CUDA graph, where such values leave S finite if it was but otherwise undefined.

    Returns:
        S* float32 [H,W]; the matches, int64 [H*W] row-major, -1 where nothing is updated; their cosines, float32
        [H*W], 0 there (on CUDA right to about 2e-7 over the norms of the two upsampled features). Without `matches`
        the last two are empty.

    Raises:
        CorrespondenceError: for shapes, dtypes, devices or values that do not fit.
        MissingExtraError: on CUDA without Triton.
    """
    low, high = (None, None) if certainty_filter is None else _interval(certainty_filter)
    for name, tensor in (("generated", generated), ("original", original), ("probability", probability)):
        _check_tensor(name, tensor)
    if where is not None:
        _check_tensor("where", where)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        raise CorrespondenceError(f"beta is {beta!r}, allowed: a number from 0 to 1")
    if radius is not None:
        radius = min(check_radius(radius), max(probability.shape, default=0))
    _check(generated, original, probability, beta, low, high, where, radius)
    if check_finite:
        for name, values in (("generated", generated), ("original", original), ("probability", probability)):
            if values.device.type != "meta" and not bool(torch.isfinite(values).all()):
                raise CorrespondenceError(f"{name} {list(values.shape)} has values that are not finite")
    refined: Tensors = torch.ops.g4seg_trt.refine_correspondence(
        generated, original, probability, beta, low, high, where, radius, matches
    )
    return refined


@torch.library.custom_op("g4seg_trt::refine_correspondence", mutates_args=(), device_types="cpu")
def _refine(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    beta: float,
    low: float | None = None,
    high: float | None = None,
    where: torch.Tensor | None = None,
    radius: int | None = None,
    matches: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grid = _check(generated, original, probability, beta, low, high, where, radius)
    values = probability.detach().numpy()
    active = np.ones(values.shape, dtype=np.bool_) if where is None else where.numpy()
    if low is not None and high is not None:
        active = active & (values >= np.float32(low)) & (values <= np.float32(high))
    queries = np.flatnonzero(active)
    size = None if grid else (values.shape[0], values.shape[1])
    found, cosines = nearest_positions(
        generated.detach().float().numpy(), original.detach().float().numpy(), size, queries, radius
    )
    refined = values.reshape(-1).copy()
    refined[queries] += np.float32(1.0 - beta) * (refined[found] - refined[queries])
    if not matches:
        return torch.from_numpy(refined.reshape(values.shape)), *_no_matches(probability)
    indices = np.full(values.size, -1, dtype=np.int64)
    similarities = np.zeros(values.size, dtype=np.float32)
    indices[queries], similarities[queries] = found, cosines
    return torch.from_numpy(refined.reshape(values.shape)), torch.from_numpy(indices), torch.from_numpy(similarities)


@_refine.register_kernel("cuda")
def _on_cuda(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    beta: float,
    low: float | None = None,
    high: float | None = None,
    where: torch.Tensor | None = None,
    radius: int | None = None,
    matches: bool = False,
) -> Tensors:
    grid = _check(generated, original, probability, beta, low, high, where, radius)
    try:
        from g4seg_trt.correspondence.grid_kernel import refine_on_grid
        from g4seg_trt.correspondence.pixel_kernel import refine_on_pixels
    except ImportError as error:
        raise MissingExtraError("triton is not installed, and matching on CUDA needs it: pip install triton") from error
    certainty_filter = None if low is None or high is None else (low, high)
    with torch.cuda.device(generated.device):
        if grid:
            flat = probability.reshape(-1)
            window = None if radius is None else (probability.shape[1], radius)
            some = None if where is None else where.reshape(-1)
            refined, indices, similarities = refine_on_grid(
                generated, original, flat, flat, 1.0 - beta, certainty_filter, some, window, matches
            )
        else:
            refined, indices, similarities = refine_on_pixels(
                generated, original, probability, 1.0 - beta, certainty_filter, where, radius, matches
            )
    refined = refined.reshape(probability.shape)
    if indices is None or similarities is None:
        return refined, *_no_matches(probability)
    return refined, indices, similarities


@_refine.register_fake
def _shapes(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    beta: float,
    low: float | None = None,
    high: float | None = None,
    where: torch.Tensor | None = None,
    radius: int | None = None,
    matches: bool = False,
) -> Tensors:
    _check(generated, original, probability, beta, low, high, where, radius)
    n = probability.numel() if matches else 0
    return (
        torch.empty_like(probability, memory_format=torch.contiguous_format),
        probability.new_empty(n, dtype=torch.int64),
        probability.new_empty(n),
    )


def _interval(certainty_filter: object) -> tuple[float, float]:
    if isinstance(certainty_filter, (tuple, list)) and len(certainty_filter) == 2:
        low, high = certainty_filter
        if all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
            return float(low), float(high)
    raise CorrespondenceError(f"certainty_filter is {certainty_filter!r}, allowed: two numbers from 0 to 1, or none")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        kind = value.layout if isinstance(value, torch.Tensor) else type(value).__name__
        raise CorrespondenceError(f"{name} is a {kind}, expected a dense torch tensor")


def _no_matches(probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return probability.new_empty(0, dtype=torch.int64), probability.new_empty(0)


def _check(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    beta: float,
    low: float | None,
    high: float | None,
    where: torch.Tensor | None,
    radius: int | None,
) -> bool:
    """Whether S lies on the grid; raises CorrespondenceError for what its metadata shows to be wrong."""
    for name, features in (("generated", generated), ("original", original)):
        if features.dim() != 3 or features.numel() == 0:
            raise CorrespondenceError(f"{name} is {list(features.shape)}, expected [P,g,g] without a 0")
        if features.dtype not in _FLOATS:
            raise CorrespondenceError(
                f"{name} {list(features.shape)} is {features.dtype}, allowed: float16, bfloat16, float32"
            )
    if original.shape != generated.shape:
        raise CorrespondenceError(f"original is {list(original.shape)}, generated is {list(generated.shape)}: differ")
    if original.dtype != generated.dtype:
        raise CorrespondenceError(
            f"original {list(original.shape)} is {original.dtype}, generated is {generated.dtype}: differ"
        )
    if probability.dim() != 2 or probability.numel() == 0 or probability.dtype != torch.float32:
        raise CorrespondenceError(
            f"probability is {probability.dtype} {list(probability.shape)}, expected float32 [H,W] without a 0"
        )
    if where is not None and (where.shape != probability.shape or where.dtype != torch.bool):
        raise CorrespondenceError(
            f"where is {where.dtype} {list(where.shape)}, expected bool {list(probability.shape)}"
        )
    others = {"original": original, "probability": probability, "where": where}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != generated.device:
            raise CorrespondenceError(
                f"{name} {list(tensor.shape)} is on {tensor.device}, generated on {generated.device}: differ"
            )
    if not 0.0 <= beta <= 1.0:
        raise CorrespondenceError(f"beta is {beta}, allowed: 0 to 1")
    if (low is None) != (high is None) or (low is not None and high is not None and not 0.0 <= low <= high <= 1.0):
        raise CorrespondenceError(f"certainty_filter is {low} to {high}, allowed: 0 <= low <= high <= 1, or neither")
    if radius is not None and radius < 0:
        raise CorrespondenceError(f"radius is {radius}, allowed: 0 or more")
    return probability.shape == generated.shape[1:]
