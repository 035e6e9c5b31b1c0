"""For every position of the generated image the most similar position of the original (eq. 8)."""

from __future__ import annotations

from g4seg_trt.arrays import Floats, Ints
from g4seg_trt.correspondence.checks import check_arguments
from g4seg_trt.correspondence.grid import nearest_on_grid
from g4seg_trt.correspondence.pixel import nearest_pixels

__all__ = ["nearest_positions"]


def nearest_positions(
    generated: Floats,
    original: Floats,
    size: tuple[int, int] | None = None,
    queries: Ints | None = None,
    radius: int | None = None,
) -> tuple[Ints, Floats]:
    """The most similar position of the original by cosine (eq. 8), for each position of the generated image.

    Positions are those of the grid, or the pixels of `size`: the features, normalised at every grid position, are
    upsampled bilinearly (align_corners False, edges clamped) and normalised again. A feature of norm 0 has
    similarity 0 to everything. Of equally similar positions the lowest index wins; identical features are equally
    similar whatever the order of summation.

    Args:
        generated: float16, float32 or float64 [P,g,g], taken as float32; finite, any scale.
        original: the same, of the same dtype; its grid may have another size.
        size: (height, width) for pixels, or None for the grid itself.
        queries: positions of the generated image to look up, int64 [n] row-major; None for all in order.
        radius: only positions whose row and column both differ by at most this from the query's own are looked at,
            0 or more; on the grid both grids must have the same size. None for all positions.

    Returns:
        indices int64 [n] into the original's positions (row-major), and their similarities float32 [n].

    Raises:
        CorrespondenceError: for an argument that is not allowed, or features that do not fit together.
    """
    generated, original, size, queries, radius = check_arguments(generated, original, size, queries, radius)
    if size is None:
        return nearest_on_grid(generated, original, queries, radius)
    return nearest_pixels(generated, original, size, queries, radius)
