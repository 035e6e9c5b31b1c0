"""Names for the libraries' modules in annotations.

diffusers and transformers annotate their classes only in part (a UNet is no nn.Module there), so strict
checking of code that uses them would check their gaps. To mypy these are Any.
"""

from __future__ import annotations

from typing import Any, TypeAlias

UnetModel: TypeAlias = Any
"""diffusers.UNet2DConditionModel"""

VaeModel: TypeAlias = Any
"""diffusers.AutoencoderKL"""

TextModel: TypeAlias = Any
"""transformers.CLIPTextModel"""

VisionModel: TypeAlias = Any
"""transformers.CLIPVisionModelWithProjection"""

AttentionLayer: TypeAlias = Any
"""diffusers.models.attention_processor.Attention"""
