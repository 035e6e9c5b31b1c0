"""Upsampling without wasted work: nearest doubling followed by a 3x3 convolution, as four 2x2 convolutions.

After doubling, the nine taps of the kernel fall on only four different pixels, so each of the four output
phases (even or odd row and column) is a 2x2 convolution of the small image, its taps sums of the 3x3 ones.
The result is the same up to rounding at 16/36 of the multiplications; these layers are 28 % of the work of
SD2.1's VAE decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F


class PhaseUpsample(nn.Module):
    """A drop-in for diffusers' `Upsample2D` with a 3x3 convolution, for export only.

    Args:
        original: the module to stand in for.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original
        weight = original.conv.weight.detach().double()
        for row in (0, 1):
            for column in (0, 1):
                kernel = _phase(_phase(weight, row, dim=2), column, dim=3)
                self.register_buffer(f"kernel{row}{column}", kernel.to(original.conv.weight.dtype))

    def forward(self, hidden_states: Tensor, output_size: Any = None) -> Tensor:
        """float [B,C,h,w] -> float [B,C',2h,2w]."""
        if output_size is not None:
            # Odd sizes on the way down: the result is not exactly twice as large.
            result: Tensor = self.original(hidden_states, output_size)
            return result
        phases = []
        for row in (0, 1):
            for column in (0, 1):
                padded = F.pad(hidden_states, (1 - column, column, 1 - row, row))
                phases.append(F.conv2d(padded, self.get_buffer(f"kernel{row}{column}"), self.original.conv.bias))
        # Channel-major, so that the shuffle finds the four phases of a channel side by side.
        return F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), 2)


@contextmanager
def phase_upsampling(root: nn.Module) -> Iterator[None]:
    """Replace every suitable `Upsample2D` below `root`; on leaving, put the very modules back."""
    originals = {name: part for name, part in root.named_modules() if _suitable(part)}
    try:
        for name, part in originals.items():
            root.set_submodule(name, PhaseUpsample(part))
        yield
    finally:
        for name, part in originals.items():
            root.set_submodule(name, part)


def _suitable(part: Any) -> bool:
    if not isinstance(part, Upsample2D):
        return False
    layer: Any = part
    return (
        bool(layer.use_conv and layer.interpolate)
        and not layer.use_conv_transpose
        and layer.norm is None
        and layer.name == "conv"
        and (layer.conv.kernel_size, layer.conv.padding) == ((3, 3), (1, 1))
    )


def _phase(weight: Tensor, phase: int, *, dim: int) -> Tensor:
    """From three taps along `dim` those of one output phase: (w0, w1 + w2) if even, (w0 + w1, w2) if odd."""
    first, middle, last = weight.unbind(dim)
    taps = (first, middle + last) if phase == 0 else (first + middle, last)
    return torch.stack(taps, dim)
