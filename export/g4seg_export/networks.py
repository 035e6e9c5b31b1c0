"""The networks of an engine: modules whose forward takes and returns the tensors of `g4seg_engine.spec`.

All arithmetic around the networks lives here, so that it ends up inside the graphs, and is float32 also where
the model inside computes in half precision. Images are RGB in [0, 1]; floats are of the network's `io` dtype.
h is the latent's side, H the model square's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor

from g4seg_engine.records import PREDICTION_TYPES
from g4seg_export.attention import KWARG, Injection, inject
from g4seg_export.errors import ExportError
from g4seg_export.image_encoder import ImageEncoder
from g4seg_export.modules import Network, TextModel, UnetModel, VaeModel

if TYPE_CHECKING:
    from g4seg_export.sources import Source


class TextEncoder(Network):
    """Token ids to the text embedding: the last hidden state after the final layer norm."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids int64 [B,T] -> text_embedding float [B,T,C]."""
        embedding: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return embedding.to(self.io)


class VaeEncoder(Network):
    """An image to its clean latent, times the scaling factor.

    Of an AutoencoderKL it is the posterior's mean, not a sample; an AutoencoderTiny has no posterior.
    """

    def __init__(self, vae: VaeModel, scaling_factor: float) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = scaling_factor
        self.tiny = isinstance(vae, AutoencoderTiny)

    def forward(self, image: Tensor) -> Tensor:
        """image float [B,3,H,H] in [0,1] -> latent float [B,Z,h,h]."""
        pixels = (image.float() * 2.0 - 1.0).to(self.compute)
        encoded = self.vae.encode(pixels)
        latent: Tensor = encoded.latents if self.tiny else encoded.latent_dist.mean
        return (latent.float() * self.scaling_factor).to(self.io)


class VaeDecoder(Network):
    """A latent to its image."""

    def __init__(self, vae: VaeModel, scaling_factor: float) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = scaling_factor

    def forward(self, latent: Tensor) -> Tensor:
        """latent float [B,Z,h,h] -> image float [B,3,H,H], clamped to [0,1]."""
        scaled = (latent.float() / self.scaling_factor).to(self.compute)
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return (image.float() * 0.5 + 0.5).clamp(0.0, 1.0).to(self.io)


class Unet(Network):
    """One denoising step from the clean latent and noise to the estimate of the clean latent (paper eq. 2).

    With abar the alpha-bar of the timestep and z_t = sqrt(abar) z + sqrt(1 - abar) noise, the estimate is
    (z_t - sqrt(1 - abar) eps) / sqrt(abar) for a model that predicts the noise eps, and
    sqrt(abar) z_t - sqrt(1 - abar) v for one that predicts v.

    The UNet must be inside `attention.inject` when this module runs.

    Args:
        unet: the denoiser.
        alphas_cumprod: float64 [T], alpha-bar per timestep.
        prediction_type: "epsilon" or "v_prediction".

    Raises:
        ExportError: for another prediction type, or an alpha-bar outside [0, 1] (eps: (0, 1]).
    """

    islands = ("signal", "sigma")

    signal: Tensor
    sigma: Tensor

    def __init__(self, unet: UnetModel, alphas_cumprod: NDArray[np.float64], prediction_type: str) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ExportError(
                f"prediction type {prediction_type!r} is not supported: allowed are {', '.join(PREDICTION_TYPES)}"
            )
        # Eq. 2 divides by sqrt(alpha-bar); its v form does not and takes zero-SNR schedules, which end at 0.
        lowest = float(alphas_cumprod.min())
        if alphas_cumprod.max() > 1.0 or lowest < 0.0 or (lowest == 0.0 and prediction_type == "epsilon"):
            raise ExportError("the scheduler's alpha-bar leaves the range that the one-step estimate is defined for")
        self.unet = unet
        self.prediction_type = prediction_type
        # Roots are taken in float64 here, once, rather than in the graph's precision at every run.
        self.register_buffer("signal", torch.from_numpy(np.sqrt(alphas_cumprod)).float(), persistent=False)
        self.register_buffer("sigma", torch.from_numpy(np.sqrt(1.0 - alphas_cumprod)).float(), persistent=False)

    def forward(
        self,
        latent: Tensor,
        noise: Tensor,
        timestep: Tensor,
        text_embedding: Tensor,
        mask: Tensor,
        token_mask: Tensor,
        emi_weight: Tensor,
    ) -> Tensor:
        """The denoised latent, float [B,Z,h,h].

        Args:
            latent: float [B,Z,h,h], clean.
            noise: float [B,Z,h,h], standard normal.
            timestep: int64 [B], index into the alpha-bar table.
            text_embedding: float [B,T,C].
            mask: float [B,1,h,h], 1 on the object.
            token_mask: float [B,T], 1 at the class name's tokens.
            emi_weight: float [B,2], alpha of eq. 5 in self- and in cross-attention.
        """
        signal = self.signal.index_select(0, timestep).reshape(-1, 1, 1, 1)
        sigma = self.sigma.index_select(0, timestep).reshape(-1, 1, 1, 1)
        noisy = signal * latent.float() + sigma * noise.float()
        injection = Injection(mask.float(), token_mask.float(), emi_weight.float())
        output: Tensor = self.unet(
            noisy.to(self.compute),
            timestep,
            text_embedding.to(self.compute),
            cross_attention_kwargs={KWARG: injection},
            return_dict=False,
        )[0]
        prediction = output.float()
        if self.prediction_type == "v_prediction":
            return (signal * noisy - sigma * prediction).to(self.io)
        return ((noisy - sigma * prediction) / signal).to(self.io)


@contextmanager
def load_network(
    source: Source, name: str, form: str, dense_mode: str, attention: str = "products"
) -> Iterator[Network]:
    """Load one network of the engine, ready to run; with `form` of mask injection and `attention` in the UNet."""
    if name == "text_encoder":
        yield TextEncoder(source.load_text_encoder()).eval()
    elif name == "vae_encoder":
        yield VaeEncoder(source.vae_encoder.load(), source.vae_encoder.scaling_factor).eval()
    elif name == "vae_decoder":
        yield VaeDecoder(source.vae_decoder.load(), source.vae_decoder.scaling_factor).eval()
    elif name == "image_encoder":
        yield ImageEncoder(source.load_image_encoder(), source.dims.square, dense_mode).eval()
    else:
        unet = source.load_unet()
        with inject(unet, form, attention):
            yield Unet(unet, source.alphas_cumprod, source.prediction_type).eval()
