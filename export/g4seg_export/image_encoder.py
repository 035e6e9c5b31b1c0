"""The image encoder: any CLIP vision model as a map of unit-norm features per patch.

Dense modes, all with the final layer norm and the projection applied to the patch tokens: `last`, the model's
own last block; `maskclip`, its attention replaced by its values (each position attends to itself only);
`csa`, its attention weights replaced by softmax(q q^T) + softmax(k k^T), correlative self-attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from g4seg_export.attention import attention_weights
from g4seg_export.errors import ExportError
from g4seg_export.modules import Network, VisionModel

DENSE_MODES = ("last", "maskclip", "csa")

# The mean and deviation that every CLIP model was trained with, RGB.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def encoder_grid(square: int, patch: int) -> int:
    """Patches along one side of an image of `square` pixels, resized down to a multiple of `patch`."""
    return square // patch


class ImageEncoder(Network):
    """An image to features of unit norm at every position of a g x g grid.

    The image is resized (bicubic, antialiased) to the largest multiple of the patch size that fits the
    square; a square that is a multiple already is left alone. Position embeddings are interpolated once.

    Args:
        model: a CLIP vision model with projection.
        square: side of the input image.
        dense_mode: one of DENSE_MODES.

    Raises:
        ExportError: for an unknown dense mode, or a square smaller than one patch.
    """

    islands = ("mean", "deviation", "resize")

    mean: Tensor
    deviation: Tensor
    position: Tensor
    resize: Tensor

    def __init__(self, model: VisionModel, square: int, dense_mode: str) -> None:
        super().__init__()
        if dense_mode not in DENSE_MODES:
            raise ExportError(f"unknown dense mode {dense_mode!r}: allowed are {', '.join(DENSE_MODES)}")
        patch = model.config.patch_size
        self.grid = encoder_grid(square, patch)
        if self.grid < 1:
            raise ExportError(f"the model square of {square} pixels is smaller than one {patch}-pixel patch")
        self.vision = model.vision_model
        self.projection = model.visual_projection
        self.dense_mode = dense_mode
        self.resized = self.grid * patch != square
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)
        positions = interpolated_positions(self.vision.embeddings.position_embedding.weight, self.grid)
        self.register_buffer("position", positions, persistent=False)
        self.register_buffer("resize", resize_matrix(square, self.grid * patch), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """image float [B,3,H,H] in [0,1] -> features float [B,P,g,g], unit norm per position."""
        image = image.float()
        if self.resized:
            image = torch.matmul(torch.matmul(self.resize, image), self.resize.T)
        pixels = (image - self.mean) / self.deviation
        patches = self.vision.embeddings.patch_embedding(pixels.to(self.compute)).flatten(2).transpose(1, 2)
        first = self.vision.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        hidden = self.vision.pre_layrnorm(torch.cat([first, patches], dim=1) + self.position)
        *blocks, last = self.vision.encoder.layers
        for block in blocks:
            hidden = _run_block(block, hidden, "last")
        hidden = _run_block(last, hidden, self.dense_mode)
        tokens = self.projection(self.vision.post_layernorm(hidden[:, 1:])).float()
        features = tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(1e-12)
        grid: Tensor = features.transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        return grid.to(self.io)


def interpolated_positions(weight: Tensor, grid: int) -> Tensor:
    """CLIP's position embeddings for a grid of another size: patches bicubic, the class token's kept.

    Args:
        weight: float [1 + n*n, C] as trained.
        grid: patches along one side.

    Returns:
        float [1, 1 + grid*grid, C], detached.
    """
    weight = weight.detach()
    side = round((weight.shape[0] - 1) ** 0.5)
    if side == grid:
        return weight.unsqueeze(0).clone()
    patches = weight[1:].T.reshape(1, -1, side, side)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([weight[:1], patches.flatten(2)[0].T]).unsqueeze(0)


def resize_matrix(size: int, target: int) -> Tensor:
    """The matrix R, float [target, size], with R X R^T the antialiased bicubic resize of an image X.

    As a product of matrices the resize is the same in every runtime, which their resize operators are not.
    """
    identity = torch.eye(size, dtype=torch.float64)[None, None]
    resized = F.interpolate(identity, size=(target, size), mode="bicubic", align_corners=False, antialias=True)
    return resized[0, 0].float()


def _run_block(block: Any, hidden: Tensor, mode: str) -> Tensor:
    """One transformer block, its attention as the dense mode has it: float [B,N,C] -> [B,N,C].

    Spelled out because the library's own signature differs between its versions.
    """
    attention, normed = block.self_attn, block.layer_norm1(hidden)
    value = attention.v_proj(normed)
    if mode != "maskclip":
        query, key = attention.q_proj(normed), attention.k_proj(normed)
        if mode == "last":
            weights = _attention_weights(query, key, attention.num_heads)
        else:
            weights = _attention_weights(query, query, attention.num_heads)
            weights = weights + _attention_weights(key, key, attention.num_heads)
        value = torch.matmul(weights, _heads(value, attention.num_heads)).transpose(1, 2).flatten(2)
    hidden = hidden + attention.out_proj(value)
    output: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
    return output


def _attention_weights(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) per head: two float [B,N,C] -> [B,heads,N,N]."""
    query, key = _heads(query, heads), _heads(key, heads).transpose(-1, -2)
    return attention_weights(torch.matmul(query * query.shape[-1] ** -0.5, key), key.dtype)


def _heads(states: Tensor, heads: int) -> Tensor:
    """float [B,N,C] -> [B,heads,N,C/heads]."""
    return states.reshape(*states.shape[:2], heads, -1).transpose(1, 2)
