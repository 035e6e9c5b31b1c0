"""The base of the engine's networks, and names for the libraries' modules in annotations.

diffusers and transformers annotate their classes only in part (a UNet is no nn.Module there), so strict
checking of code that uses them would check their gaps. To mypy these are Any.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn

UnetModel: TypeAlias = Any
"""diffusers.UNet2DConditionModel"""

VaeModel: TypeAlias = Any
"""diffusers.AutoencoderKL or AutoencoderTiny"""

TextModel: TypeAlias = Any
"""transformers.CLIPTextModel"""

VisionModel: TypeAlias = Any
"""transformers.CLIPVisionModelWithProjection"""

AttentionLayer: TypeAlias = Any
"""diffusers.models.attention_processor.Attention"""


class Network(nn.Module):
    """One network of an engine; `precision.set_precision` and `precision.set_io` choose its dtypes.

    Attributes:
        compute: dtype of the model's weights and activations. What a network does around its model is float32.
        io: dtype of the float inputs and outputs.
        islands: names of the buffers that stay float32 whatever `compute` is.
    """

    compute: torch.dtype = torch.float32
    io: torch.dtype = torch.float32
    islands: ClassVar[tuple[str, ...]] = ()
