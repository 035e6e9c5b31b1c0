"""Explicit mask injection (EMI, paper eq. 5): attention processors that add a rank-one bias to the scores.

Eq. 5 adds alpha*A to Q K^T before the division by sqrt(d). With s the object mask at the layer's resolution
and tau the indicator of the class name's tokens, A is s s^T in self-attention and s tau^T in cross-attention.
The `dense` form adds that matrix; the `folded` form appends alpha*s as one more channel to Q and s or tau to
K, which gives the same scores without the matrix. Both divide by sqrt(d) of the original head width d.

Either is written as two matrix products around a softmax, or as ONNX's own operator (opset 23), which takes the
matrix of the `dense` form as its mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from g4seg_engine.records import ATTENTIONS, INJECTION_FORMS
from g4seg_export.errors import ExportError
from g4seg_export.modules import AttentionLayer, UnetModel

KWARG = "emi"


class Injection:
    """What EMI adds in one forward pass of the UNet. Its masks are reduced once per resolution.

    Args:
        mask: float32 [B,1,h,h], 1 on the object, at the latent's resolution.
        token_mask: float32 [B,T], 1 at the class name's tokens.
        weight: float32 [B,2]: alpha in self- and in cross-attention.
    """

    def __init__(self, mask: Tensor, token_mask: Tensor, weight: Tensor) -> None:
        self._mask = mask
        self._token_mask = token_mask
        self._weight = weight
        self._by_count: dict[int, Tensor] = {}

    def query_channel(self, tokens: int, *, cross: bool) -> Tensor:
        """alpha * s, float32 [B,1,N,1]. The strength stays on this side; the other is exactly 0 or 1."""
        alpha = self._weight[:, int(cross)].reshape(-1, 1, 1, 1)
        return alpha * self._positions(tokens).unsqueeze(-1)

    def key_channel(self, tokens: int, *, cross: bool) -> Tensor:
        """s (self) or tau (cross), float32 [B,1,1,K]."""
        return self._token_mask[:, None, None, :] if cross else self._positions(tokens).unsqueeze(-2)

    def _positions(self, tokens: int) -> Tensor:
        """The mask at the resolution of `tokens` positions, float32 [B,1,N], by strided nearest selection."""
        if tokens not in self._by_count:
            side, size = math.isqrt(tokens), self._mask.shape[-1]
            if side * side != tokens:
                raise ExportError(f"an attention layer has {tokens} positions, which is not a square")
            if size % side == 0:
                reduced = self._mask[:, :, :: size // side, :: size // side]
            else:
                nearest = torch.arange(side, device=self._mask.device) * size // side
                reduced = self._mask.index_select(2, nearest).index_select(3, nearest)
            self._by_count[tokens] = reduced.flatten(2)
        return self._by_count[tokens]


def attention_weights(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax over the last axis, its maximum and sum always in float32; the weights in `dtype`."""
    return scores.float().softmax(dim=-1).to(dtype)


class EmiProcessor:
    """Attention written out as two matrix products, which ONNX Runtime's CPU kernels run fastest, or as one operator.

    Takes the `Injection` as the keyword `emi`. In the products K is transposed straight from the projection's layout
    and the scale is applied to Q, the smaller operand. In half precision the injection's strength is scaled in
    float32, and layers with `upcast_attention` make their scores in float32; the operator, whose inputs share one
    type, then has all of its inputs in float32.

    Args:
        form: "folded" or "dense".
        attention: "products" or "operator".
    """

    def __init__(self, form: str, attention: str = "products") -> None:
        if form not in INJECTION_FORMS:
            raise ExportError(f"unknown attention form {form!r}: allowed are {', '.join(INJECTION_FORMS)}")
        if attention not in ATTENTIONS:
            raise ExportError(f"unknown attention {attention!r}: allowed are {', '.join(ATTENTIONS)}")
        self._folded = form == "folded"
        self._operator = attention == "operator"

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        emi: Injection | None = None,
    ) -> Tensor:
        """hidden_states float [B,N,C], encoder_hidden_states float [B,K,C'] if cross -> float [B,N,C]."""
        if emi is None or attention_mask is not None:
            raise ExportError("attention with mask injection needs the injection and takes no other mask")
        cross = encoder_hidden_states is not None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if cross and attn.norm_cross is not None:
            context = attn.norm_encoder_hidden_states(context)
        queries, keys, heads = hidden_states.shape[1], context.shape[1], attn.heads

        query = attn.to_q(hidden_states).unflatten(-1, (heads, -1)).transpose(1, 2)
        key = attn.to_k(context).unflatten(-1, (heads, -1)).permute(0, 2, *((1, 3) if self._operator else (3, 1)))
        value = attn.to_v(context).unflatten(-1, (heads, -1)).transpose(1, 2)
        dtype = value.dtype
        if attn.upcast_attention:
            query, key = query.float(), key.float()

        if self._operator:
            strength, key_channel = emi.query_channel(queries, cross=cross), emi.key_channel(keys, cross=cross)
            output = self._attend(query, key, value.to(query.dtype), strength, key_channel, attn.scale).to(dtype)
        else:
            query_channel = (emi.query_channel(queries, cross=cross) * attn.scale).to(query.dtype)
            scores = self._scores(query * attn.scale, key, query_channel, emi.key_channel(keys, cross=cross))
            output = torch.matmul(attention_weights(scores, dtype), value)
        output = attn.to_out[0](output.transpose(1, 2).flatten(2))
        if attn.residual_connection:
            output = output + hidden_states
        result: Tensor = output if attn.rescale_output_factor == 1.0 else output / attn.rescale_output_factor
        return result

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, strength: Tensor, key_channel: Tensor, scale: float
    ) -> Tensor:
        """softmax((Q K^T + alpha A) * scale) V by the operator, [B,heads,N,d]. Its mask is added to scaled scores."""
        bias = None
        if self._folded:
            query = _append(query, strength, dim=-1)
            key = _append(key, key_channel.transpose(-1, -2), dim=-1)
        else:
            bias = (strength * scale * key_channel).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)

    def _scores(self, query: Tensor, key: Tensor, query_channel: Tensor, key_channel: Tensor) -> Tensor:
        """(Q K^T + alpha A) / sqrt(d), [B,heads,N,K], from scaled Q [B,heads,N,d] and K^T [B,heads,d,K]."""
        key_channel = key_channel.to(key.dtype)
        if not self._folded:
            return torch.matmul(query, key) + query_channel * key_channel
        return torch.matmul(_append(query, query_channel, dim=-1), _append(key, key_channel, dim=-2))


def _append(heads: Tensor, channel: Tensor, *, dim: int) -> Tensor:
    """One more channel at `dim`, the same for all heads [B,heads,...]."""
    return torch.cat([heads, channel.to(heads.dtype).expand(-1, heads.shape[1], -1, -1)], dim=dim)


@contextmanager
def inject(unet: UnetModel, form: str, attention: str = "products") -> Iterator[None]:
    """Replace every attention processor of `unet` by EMI's; on leaving, put the very same processors back.

    Inside, call the UNet with ``cross_attention_kwargs={"emi": Injection(...)}``.

    Args:
        unet: with plain self- and cross-attention over token sequences, as in Stable Diffusion 1 and 2.
        form: "folded" or "dense".
        attention: "products" or "operator", see `EmiProcessor`.

    Raises:
        ExportError: for an unknown form or attention, or attention of a kind that mask injection is not defined for.
    """
    processor = EmiProcessor(form, attention)
    layers: dict[str, AttentionLayer] = {
        name: part for name, part in unet.named_modules() if isinstance(part, Attention)
    }
    for name, layer in layers.items():
        _check_supported(name, layer)
    originals = {name: layer.processor for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.set_processor(processor)
        yield
    finally:
        for name, layer in layers.items():
            layer.set_processor(originals[name])


def _check_supported(name: str, layer: AttentionLayer) -> None:
    unsupported: dict[str, Any] = {
        "group norm": layer.group_norm,
        "spatial norm": layer.spatial_norm,
        "query or key norm": layer.norm_q if layer.norm_q is not None else layer.norm_k,
        "added key and value projections": layer.added_kv_proj_dim,
        "grouped keys": None if layer.inner_kv_dim == layer.inner_dim else layer.inner_kv_dim,
    }
    for what, value in unsupported.items():
        if value is not None:
            raise ExportError(f"attention layer {name} uses {what}, which mask injection does not support")
