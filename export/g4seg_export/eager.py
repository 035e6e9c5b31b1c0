"""The whole refinement in plain PyTorch, from the diffusers modules: float32 on a CPU, or half on a GPU.

It shares no code with the exported graphs' wrappers or with the numpy runtime, so that agreement means
something. Two flavours: `reference` (attention and neighbours spelled out, for tests) and `baseline` (fused
attention and a matrix product, what a user of diffusers would run, for benchmarks).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from g4seg_export.eager_attention import BiasProcessor, attend_fused, attend_plainly, biased_attention
from g4seg_export.errors import ExportError
from g4seg_export.sources import Source

FLAVOURS = ("reference", "baseline")

Floats = NDArray[np.float32]

_CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
_CLIP_DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)


@dataclass(frozen=True)
class EagerSettings:
    """The refine settings, with the meaning and defaults of the runtime's RefineConfig."""

    timestep: int = 400
    beta: float = 0.8
    certainty_filter: tuple[float, float] | None = (0.2, 0.6)
    emi_self: float = 0.3
    emi_cross: float = 1.0


@dataclass(frozen=True)
class EagerRefinement:
    """What one refinement gave.

    Attributes:
        probability: float32 [H,H], S* on the model square.
        generated: float32 [3,H,H] in [0,1], the generated image, RGB.
        denoised: float32 [Z,h,h], the estimate of the clean latent.
        indices: int64 [g*g], the nearest original position of every generated one.
        margins: float32 [g*g], by how much the best similarity beats the second best.
        timings: seconds per stage.
    """

    probability: Floats
    generated: Floats
    denoised: Floats
    indices: NDArray[np.int64]
    margins: Floats
    timings: dict[str, float]


@dataclass(frozen=True)
class EagerImage:
    """What all masks of one image share.

    Attributes:
        latent: float [Z,h,h], clean.
        features: float [P,g,g], unit norm per position.
        timings: seconds per stage.
    """

    latent: Tensor
    features: Tensor
    timings: dict[str, float]


class EagerPipeline:
    """All modules of one model in memory, ready to refine.

    Args:
        source: from `sources.load_source`.
        flavour: "reference" or "baseline".
        dense_mode: of the image encoder; None for the source's own.
        device: where the modules run.
        dtype: of weights and activations, as `pipeline.to(dtype)` of diffusers does it.
        stage_timings: whether to wait for a GPU after each stage; without, only the whole can be timed.

    Raises:
        ExportError: for an unknown flavour.
    """

    def __init__(
        self,
        source: Source,
        flavour: str = "reference",
        *,
        dense_mode: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        stage_timings: bool = True,
    ) -> None:
        if flavour not in FLAVOURS:
            raise ExportError(f"unknown flavour {flavour!r}: allowed are {', '.join(FLAVOURS)}")
        self.source = source
        self._reference = flavour == "reference"
        self._dense_mode = dense_mode or source.dense_mode
        self._device, self._dtype = torch.device(device), dtype
        self._waits = stage_timings and self._device.type == "cuda"
        self._unet = source.load_unet().to(self._device, dtype)
        self._vae_encoder = source.vae_encoder.load().to(self._device, dtype)
        shared = source.vae_decoder is source.vae_encoder
        self._vae_decoder = self._vae_encoder if shared else source.vae_decoder.load().to(self._device, dtype)
        self._text_encoder = source.load_text_encoder().to(self._device, dtype)
        self._image_encoder = source.load_image_encoder().to(self._device, dtype)

    def compile(self, backend: str = "inductor") -> None:
        """Let torch.compile make each network faster, with one of its backends; it does so when one first runs."""
        vision = self._image_encoder.vision_model
        # The last block is hooked and run by hand in all dense modes but one, see _last_block.
        blocks = [vision] if self._dense_mode == "last" else vision.encoder.layers[:-1]
        coders = self._vae_encoder.encoder, self._vae_decoder.decoder
        for module in (self._unet, self._text_encoder, *coders, *blocks):
            module.compile(backend=backend)

    @torch.inference_mode()
    def prepare(self, image: Floats) -> EagerImage:
        """float32 [3,H,H] in [0,1] -> what `refine` takes in the image's place, for several masks of it."""
        timings: dict[str, float] = {}
        pixels = self._tensor(image)
        with self._timed(timings, "vae_encoder"):
            latent = self._encode(pixels)
        with self._timed(timings, "image_encoder"):
            features = self._features(pixels)
        return EagerImage(latent, features, timings)

    @torch.inference_mode()
    def encode_text(self, input_ids: NDArray[np.int64]) -> Floats:
        """int64 [T] -> float32 [T,C]."""
        return _array(self._text(self._tensor(input_ids)[None])[0])

    @torch.inference_mode()
    def encode_image(self, image: Floats) -> tuple[Floats, Floats]:
        """float32 [3,H,H] in [0,1] -> the clean latent float32 [Z,h,h] and the features float32 [P,g,g]."""
        pixels = self._tensor(image)
        return _array(self._encode(pixels)), _array(self._features(pixels))

    @torch.inference_mode()
    def denoise(
        self,
        latent: Floats,
        noise: Floats,
        text_embedding: Floats,
        token_mask: Floats,
        mask: Floats,
        settings: EagerSettings,
    ) -> Floats:
        """One step with mask injection (eq. 2 and 5).

        Args:
            latent: float32 [Z,h,h], clean.
            noise: float32 [Z,h,h].
            text_embedding: float32 [T,C].
            token_mask: float32 [T].
            mask: float32 [1,h,h].
            settings: timestep and strengths.

        Returns:
            The denoised latent, float32 [Z,h,h].
        """
        return _array(
            self._denoise(
                self._tensor(latent),
                self._tensor(noise),
                self._tensor(text_embedding),
                self._tensor(token_mask),
                self._tensor(mask),
                settings,
            )
        )

    @torch.inference_mode()
    def refine(
        self,
        image: Floats | EagerImage,
        probability: Floats,
        input_ids: NDArray[np.int64],
        token_mask: Floats,
        mask: Floats,
        noise: Floats,
        settings: EagerSettings | None = None,
    ) -> EagerRefinement:
        """Refine the mask of one class on the model square.

        Args:
            image: float32 [3,H,H] in [0,1], RGB; or what `prepare` made of it, whose time does not count here.
            probability: float32 [H,H] in [0,1], the coarse S.
            input_ids: int64 [T], the prompt, padded.
            token_mask: float32 [T], 1 at the class name's tokens.
            mask: float32 [1,h,h], 0 or 1, the mask to inject.
            noise: float32 [Z,h,h], standard normal.
            settings: None for the defaults.
        """
        settings = settings or EagerSettings()
        prepared = image if isinstance(image, EagerImage) else self.prepare(image)
        timings = {} if prepared is image else dict(prepared.timings)
        latent, original = prepared.latent, prepared.features
        coarse = torch.from_numpy(probability).to(self._device)
        with self._timed(timings, "text_encoder"):
            text = self._text(self._tensor(input_ids)[None])[0]
        with self._timed(timings, "unet"):
            denoised = self._denoise(
                latent,
                self._tensor(noise),
                text,
                self._tensor(token_mask),
                self._tensor(mask),
                settings,
            )
        with self._timed(timings, "vae_decoder"):
            generated = self._decode(denoised)
        with self._timed(timings, "image_encoder_generated"):
            features = self._features(generated)
        with self._timed(timings, "correspondence"):
            indices, margins = self._neighbours(features, original)
        with self._timed(timings, "update"):
            refined = update(coarse, indices, original.shape[-1], settings)
        return EagerRefinement(
            _array(refined), _array(generated), _array(denoised), indices.cpu().numpy(), _array(margins), timings
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    @contextmanager
    def _timed(self, timings: dict[str, float], stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._waits:
            torch.cuda.synchronize(self._device)
        timings[stage] = time.perf_counter() - start

    def _text(self, input_ids: Tensor) -> Tensor:
        embedding: Tensor = self._text_encoder(input_ids)[0]
        return embedding

    def _encode(self, image: Tensor) -> Tensor:
        encoded = self._vae_encoder.encode(2 * image[None] - 1)
        # A distilled autoencoder gives its latents, the others a distribution of them.
        latents: Tensor = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        return latents[0] * self.source.vae_encoder.scaling_factor

    def _decode(self, latent: Tensor) -> Tensor:
        image: Tensor = self._vae_decoder.decode(latent[None] / self.source.vae_decoder.scaling_factor).sample[0]
        return ((image + 1) / 2).clamp(0, 1)

    def _denoise(
        self,
        latent: Tensor,
        noise: Tensor,
        text: Tensor,
        token_mask: Tensor,
        mask: Tensor,
        settings: EagerSettings,
    ) -> Tensor:
        alpha_bar = float(self.source.alphas_cumprod[settings.timestep])
        signal, sigma = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
        noisy = signal * latent + sigma * noise
        attend = attend_plainly if self._reference else attend_fused
        strengths = (settings.emi_self, settings.emi_cross)
        processor = BiasProcessor(attend, mask[None], token_mask[None], strengths)
        with biased_attention(self._unet, processor):
            conditioned = self._unet(noisy[None], settings.timestep, encoder_hidden_states=text[None])
            output = conditioned.sample[0]
        if self.source.prediction_type == "v_prediction":
            estimate: Tensor = signal * noisy - sigma * output
        else:
            estimate = (noisy - sigma * output) / signal
        return estimate

    def _features(self, image: Tensor) -> Tensor:
        """float [3,H,H] -> float [P,g,g], unit norm per position."""
        vision = self._image_encoder.vision_model
        patch = self._image_encoder.config.patch_size
        grid = image.shape[-1] // patch
        batch = image[None]
        if grid * patch != image.shape[-1]:
            batch = F.interpolate(batch, size=(grid * patch,) * 2, mode="bicubic", antialias=True)
        pixels = (batch - _CLIP_MEAN.to(batch)) / _CLIP_DEVIATION.to(batch)
        if self._dense_mode == "last":
            hidden = vision(pixels, interpolate_pos_encoding=True).last_hidden_state
        else:
            hidden = self._last_block(vision, pixels)
        tokens = self._image_encoder.visual_projection(vision.post_layernorm(hidden[0, 1:]))
        return F.normalize(tokens, dim=1).T.reshape(-1, grid, grid)

    def _last_block(self, vision: Any, pixels: Tensor) -> Tensor:
        """The last block by hand, on what the model itself feeds it: float [1,N,C]."""
        block = vision.encoder.layers[-1]
        seen: list[Tensor] = []
        hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            vision(pixels, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        hidden = seen[0]
        attention, normed = block.self_attn, block.layer_norm1(hidden)
        values = attention.v_proj(normed)
        if self._dense_mode == "csa":
            width = attention.head_dim
            outputs = []
            for head in range(attention.num_heads):
                part = slice(head * width, (head + 1) * width)
                query, key = attention.q_proj(normed)[0, :, part], attention.k_proj(normed)[0, :, part]
                weights = torch.softmax(query @ query.T / width**0.5, 1)
                weights = weights + torch.softmax(key @ key.T / width**0.5, 1)
                outputs.append(weights @ values[0, :, part])
            values = torch.cat(outputs, dim=1)[None]
        hidden = hidden + attention.out_proj(values)
        result: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
        return result

    def _neighbours(self, generated: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
        """The most similar original position of every generated one, and the margin to the second best."""
        queries, candidates = generated.flatten(1).T, original.flatten(1).T
        if self._reference:
            return brute_force_neighbours(queries, candidates)
        best = (queries @ candidates.T).topk(min(2, len(candidates)), dim=1)
        return best.indices[:, 0], best.values[:, 0] - best.values[:, -1]


def brute_force_neighbours(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8, one query at a time, in float64; ties go to the lowest index.

    Args:
        queries: float [N,P], unit norm.
        candidates: float [M,P], unit norm.

    Returns:
        Indices int64 [N] and margins between best and second best, float64 [N].
    """
    indices, margins = [], []
    candidates = candidates.double()
    for query in queries.double():
        similarity = (candidates * query).sum(dim=1)
        best = similarity.max()
        index = int((similarity == best).nonzero()[0, 0])
        others = torch.cat([similarity[:index], similarity[index + 1 :]])
        indices.append(index)
        margins.append(float(best - others.max()) if len(others) else 0.0)
    return torch.tensor(indices), torch.tensor(margins, dtype=torch.float64)


def update(coarse: Tensor, indices: Tensor, grid: int, settings: EagerSettings) -> Tensor:
    """Eq. 9 on the feature grid, its change carried to the square, the certainty filter there.

    Args:
        coarse: float [H,H] in [0,1], S.
        indices: int64 [g*g], delta.
        grid: g.
        settings: beta and the certainty filter.

    Returns:
        float [H,H] in [0,1], S*.
    """
    size = coarse.shape[-1]
    pool = _area_matrix(size, grid).to(coarse)
    pooled = (pool @ coarse @ pool.T).flatten()
    mixed = settings.beta * pooled + (1 - settings.beta) * pooled[indices]
    change = (mixed - pooled).reshape(1, 1, grid, grid)
    change = F.interpolate(change, size=(size, size), mode="bilinear", align_corners=False)[0, 0]
    refined = (coarse + change).clamp(0, 1)
    if settings.certainty_filter is None:
        return refined
    low, high = settings.certainty_filter
    return torch.where((coarse >= low) & (coarse <= high), refined, coarse)


def _area_matrix(size: int, grid: int) -> Tensor:
    """Row k holds the share of cell k that each of `size` pixels covers: float [grid,size]."""
    edges = torch.arange(grid + 1, dtype=torch.float64) * size / grid
    pixel = torch.arange(size, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (covered.clamp_min(0) * grid / size).float()


def _array(tensor: Tensor) -> Floats:
    result: Floats = tensor.float().contiguous().cpu().numpy()
    return result
