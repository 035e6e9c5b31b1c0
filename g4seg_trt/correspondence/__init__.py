"""For every position of the generated image the most similar position of the original (eq. 8)."""

from __future__ import annotations

from g4seg_trt.correspondence.grid import nearest_positions

__all__ = ["nearest_positions"]
