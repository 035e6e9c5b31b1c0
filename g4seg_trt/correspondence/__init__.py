"""For every position of the generated image the most similar position of the original (eq. 8)."""

from __future__ import annotations

from g4seg_trt.arrays import Floats, Ints
from g4seg_trt.correspondence.grid import nearest_on_grid
from g4seg_trt.correspondence.pixel import nearest_pixels

__all__ = ["nearest_positions"]


def nearest_positions(
    generated: Floats,
    original: Floats,
    size: tuple[int, int] | None = None,
    queries: Ints | None = None,
) -> tuple[Ints, Floats]:
    """The most similar position of the original by cosine (eq. 8), for each position of the generated image.

    Positions are those of the grid, or the pixels of `size`: the features, normalised at every grid position, are
    upsampled bilinearly (align_corners False, edges clamped) and normalised again. A feature of norm 0 has
    similarity 0 to everything. Of equally similar positions the lowest index wins; identical features are equally
    similar whatever the order of summation.

    Args:
        generated: float32 [P,g,g]; any scale.
        original: float32 [P,g,g]; any scale.
        size: (height, width) for pixels, or None for the grid itself.
        queries: positions of the generated image to look up, int64 [n] row-major; None for all in order.

    Returns:
        indices int64 [n] into the original's positions (row-major), and their similarities float32 [n].

    Raises:
        ValueError: if the shapes do not fit together or `size` or `queries` is out of range.
    """
    if generated.ndim != 3 or original.ndim != 3 or generated.shape[0] != original.shape[0]:
        raise ValueError(f"features of shapes {generated.shape} and {original.shape}, expected [P,g,g] twice")
    if not generated.size or not original.size:
        raise ValueError(f"features of shapes {generated.shape} and {original.shape}, expected no empty ones")
    height, width = generated.shape[1:] if size is None else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}, expected a height and a width from 1 on")
    if queries is not None and queries.size and not 0 <= queries.min() <= queries.max() < height * width:
        raise ValueError(f"queries from {queries.min()} to {queries.max()}, expected 0 to {height * width - 1}")
    if size is None:
        return nearest_on_grid(generated, original, queries)
    return nearest_pixels(generated, original, size, queries)
