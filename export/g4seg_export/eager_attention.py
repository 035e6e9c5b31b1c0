"""Mask injection for the eager pipeline: the bias of eq. 5 as a full matrix, added to every attention layer.

Written apart from `attention.py` on purpose: the two check each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from g4seg_export.modules import AttentionLayer, UnetModel


class _Attend(Protocol):
    """softmax((Q K^T + bias) / sqrt(d)) V for Q [B,heads,N,d], K and V [B,heads,K,d] and bias [B,1,N,K]."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor: ...


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Eq. 5 as it is written."""
    scores = (query @ key.transpose(-1, -2) + bias) / math.sqrt(query.shape[-1])
    return torch.softmax(scores, dim=-1) @ value


def attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Eq. 5 by torch's fused attention, diffusers' default; the bias is shared by the heads."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias / math.sqrt(query.shape[-1]))


class BiasProcessor:
    """An attention processor that builds the whole bias matrix of its layer at every call.

    Args:
        attend: how scores become an output.
        mask: float [B,1,h,h].
        token_mask: float [B,T].
        strengths: alpha in self- and in cross-attention.
    """

    def __init__(self, attend: _Attend, mask: Tensor, token_mask: Tensor, strengths: tuple[float, float]) -> None:
        self._attend = attend
        self._mask = mask
        self._token_mask = token_mask
        self._self_strength, self._cross_strength = strengths

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - diffusers passes it, always None here
    ) -> Tensor:
        """hidden_states float [B,N,C] -> float [B,N,C]."""
        positions = hidden_states.shape[1]
        if encoder_hidden_states is None:
            context, bias = hidden_states, self._self_bias(positions)
        else:
            context, bias = encoder_hidden_states, self._cross_bias(positions)
        output = self._attend(
            self._heads(attn.to_q(hidden_states), attn.heads),
            self._heads(attn.to_k(context), attn.heads),
            self._heads(attn.to_v(context), attn.heads),
            bias,
        )
        batch, heads, _, width = output.shape
        output = output.permute(0, 2, 1, 3).reshape(batch, positions, heads * width)
        result: Tensor = attn.to_out[0](output)
        return result

    def _self_bias(self, positions: int) -> Tensor:
        flat = self._flat_mask(positions)
        return self._self_strength * torch.einsum("bi,bj->bij", flat, flat).unsqueeze(1)

    def _cross_bias(self, positions: int) -> Tensor:
        flat = self._flat_mask(positions)
        return self._cross_strength * torch.einsum("bi,bj->bij", flat, self._token_mask).unsqueeze(1)

    def _flat_mask(self, positions: int) -> Tensor:
        side = round(math.sqrt(positions))
        return F.interpolate(self._mask, size=(side, side), mode="nearest").reshape(-1, positions)

    @staticmethod
    def _heads(tensor: Tensor, heads: int) -> Tensor:
        batch, positions, width = tensor.shape
        return tensor.reshape(batch, positions, heads, width // heads).permute(0, 2, 1, 3)


@contextmanager
def biased_attention(unet: UnetModel, processor: BiasProcessor) -> Iterator[None]:
    """Use `processor` in every attention layer of `unet` inside the context."""
    originals = dict(unet.attn_processors)
    unet.set_attn_processor(processor)
    try:
        yield
    finally:
        unet.set_attn_processor(originals)
