"""The true Stable Diffusion 2.1, TAESD and CLIP ViT-B/16 architectures with seeded random weights.

For checks of export, parity, memory and latency at full size without any checkpoint. Pictures made by them
mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from g4seg_export.modules import TextModel, UnetModel, VaeModel, VisionModel

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),  # despite its name the number of heads; every head is 64 wide
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TAESD: dict[str, Any] = {
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "latent_channels": 4,
    "scaling_factor": 1.0,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "projection_dim": 512,
    "hidden_act": "quick_gelu",
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}

# Own seeds, so that a network's weights do not depend on which others were made before it.
_SEEDS = {"unet": 2101, "vae": 2102, "text_encoder": 2103, "image_encoder": 2104, "tiny_vae": 2105}


def make_unet(*, square: int = 512, upcast_attention: bool = False) -> UnetModel:
    """SD2.1's UNet for a model square of `square` pixels."""
    make: Callable[..., UnetModel] = UNet2DConditionModel
    return make(**{**UNET, "sample_size": square // 8, "upcast_attention": upcast_attention})


def make_vae() -> VaeModel:
    """SD2.1's KL-f8 autoencoder."""
    make: Callable[..., VaeModel] = AutoencoderKL
    return make(**VAE)


def make_tiny_vae() -> VaeModel:
    """TAESD, the distilled stand-in for SD's autoencoder."""
    make: Callable[..., VaeModel] = AutoencoderTiny
    return make(**TAESD)


def make_text_encoder() -> TextModel:
    """SD2.1's text encoder: OpenCLIP ViT-H/14 up to its penultimate layer."""
    return CLIPTextModel(CLIPTextConfig(**TEXT))


def make_image_encoder() -> VisionModel:
    """CLIP ViT-B/16 with its 512-d projection."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))


def random_unet(*, square: int = 512, upcast_attention: bool = False) -> UnetModel:
    """`make_unet` with seeded weights."""
    return _seeded(lambda: make_unet(square=square, upcast_attention=upcast_attention), "unet")


def random_vae() -> VaeModel:
    """`make_vae` with seeded weights."""
    return _seeded(make_vae, "vae")


def random_tiny_vae() -> VaeModel:
    """`make_tiny_vae` with seeded weights."""
    return _seeded(make_tiny_vae, "tiny_vae")


def random_text_encoder() -> TextModel:
    """`make_text_encoder` with seeded weights."""
    return _seeded(make_text_encoder, "text_encoder")


def random_image_encoder() -> VisionModel:
    """`make_image_encoder` with seeded weights."""
    return _seeded(make_image_encoder, "image_encoder")


def _seeded(factory: Callable[[], Any], network: str) -> Any:
    # Made without storage: the libraries' own initialisation of a billion weights would be overwritten.
    with torch.device("meta"):
        module = factory()
    module.to_empty(device="cpu")
    fill_random(module, _SEEDS[network])
    return module.eval()


@torch.no_grad()
def fill_random(module: nn.Module, seed: int) -> None:
    """Fill every parameter in place so that activations keep order one through the depth of the network.

    Convolutions and linear layers: normal, standard deviation 1/sqrt(fan in), zero bias. Norms: one and zero.
    Embeddings and free parameters: standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
            part.weight.fill_(1.0)
            part.bias.zero_()
        elif isinstance(part, (nn.Linear, nn.Conv2d)):
            part.weight.normal_(std=1.0 / math.sqrt(part.weight[0].numel()), generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        else:
            for parameter in part.parameters(recurse=False):
                parameter.normal_(generator=generator)
        for name, buffer in part.named_buffers(recurse=False):
            if name != "position_ids":
                raise TypeError(f"no random value is known for buffer {name} of {type(part).__name__}")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
