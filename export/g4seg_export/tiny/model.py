"""The miniature of Stable Diffusion 2.1 and of CLIP: the same modules, smaller.

64-pixel images, latents 16x16x8, UNet with self- and cross-attention at three resolutions (16, 8, 4), v-prediction,
a causal text encoder, and a CLIP vision model of 4-pixel patches whose grid is 16x16.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from g4seg_export.tiny.scenes import SIZE

TEXT_WIDTH = 128
FEATURE_WIDTH = 64
PATCH = 4


def make_vae() -> Any:
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def make_unet() -> Any:
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=SIZE // 4,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 4),  # the number of heads: every head is 32 wide
        use_linear_projection=True,
        norm_num_groups=32,
    )


def make_scheduler() -> Any:
    return DDIMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        )
    )


def make_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=FEATURE_WIDTH,
            hidden_act="gelu",
        )
    )


def normalise_pixels(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> CLIP's mean 0 and deviation 1; images float [B,3,H,W] RGB."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    return (images - mean) / deviation


def patch_features(model: CLIPVisionModelWithProjection, images: torch.Tensor) -> torch.Tensor:
    """Projected patch tokens (dense mode ``last``), unit norm: images [B,3,64,64] in [0,1] -> [B,256,64]."""
    hidden = model.vision_model(pixel_values=normalise_pixels(images)).last_hidden_state[:, 1:]
    projected = model.visual_projection(model.vision_model.post_layernorm(hidden))
    return torch.nn.functional.normalize(projected, dim=-1)
