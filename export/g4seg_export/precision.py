"""The dtype policy: half weights and activations with named islands in float32.

An exported graph computes in the dtypes that the torch module has, so everything is explicit here and in the
networks; no graph is rewritten afterwards. The islands of a half graph:

- statistics and affine of group and layer norms (`Float32GroupNorm`, `Float32LayerNorm`);
- the softmax of every attention layer, and its scores too where the model asks for it (`upcast_attention`:
  the 768-pixel SD2.1 overflows half there); within ONNX's Attention operator the softmax is the runtime's choice, as
  TensorRT refuses the operator's own setting for it;
- the timestep's sinusoid (diffusers makes it in float32 and casts the result);
- what the networks do around their model: pixel normalisation and resize, alpha-bar, noise mixing, the one-step
  estimate (eq. 2), latent scaling, the strength of the mask injection, the features' unit norm.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from g4seg_engine.spec import IO_DTYPES, PRECISIONS
from g4seg_export.attention import EmiProcessor, attention_weights
from g4seg_export.errors import ExportError
from g4seg_export.modules import AttentionLayer, Network

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

HALF_MAX = 65504.0
"""The largest float16 number."""

_PLAIN = "g4seg_plain"


class Float32GroupNorm(nn.GroupNorm):
    """A group norm of half activations that computes in float32.

    Written as an instance norm over the groups, so that every opset gets InstanceNormalization: TensorRT has had
    trouble with GroupNormalization. Its affine are buffers: diffusers takes a block's dtype from its first
    parameter.

    Args:
        norm: the float32 norm to stand in for.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        _as_buffers(self, norm)

    def forward(self, states: Tensor) -> Tensor:
        """half [B,C,...] -> half, the same shape."""
        groups = states.float().reshape(states.shape[0], self.num_groups, -1)
        normed = F.instance_norm(groups, eps=self.eps).reshape(states.shape)
        if self.affine:
            channels = (-1, *(1,) * (states.ndim - 2))
            normed = normed * self.weight.reshape(channels) + self.bias.reshape(channels)
        return normed.to(states.dtype)


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm of half activations that computes in float32.

    Args:
        norm: the float32 norm to stand in for.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        bias = getattr(norm, "bias", None) is not None
        super().__init__(norm.normalized_shape, norm.eps, norm.elementwise_affine, bias)
        _as_buffers(self, norm)

    def forward(self, states: Tensor) -> Tensor:
        """half [...,C] -> half, the same shape."""
        return super().forward(states.float()).to(states.dtype)


class PlainAttention:
    """Attention of the VAE as two matrix products with a float32 softmax, in place of the fused operator.

    The fused operator leaves the precision of its scores and softmax to whoever runs it.
    """

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002 - the VAE passes it along
    ) -> Tensor:
        """float [B,C,h,w] or [B,N,C] -> the same shape."""
        if encoder_hidden_states is not None or attention_mask is not None or attn.spatial_norm is not None:
            raise ExportError("attention of another kind than the VAE's cannot be exported in half precision")
        tokens = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        query = attn.to_q(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        key = attn.to_k(tokens).unflatten(-1, (attn.heads, -1)).permute(0, 2, 3, 1)
        value = attn.to_v(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        dtype = value.dtype
        if attn.upcast_attention:
            query, key = query.float(), key.float()
        scores = torch.matmul(query * attn.scale, key)
        output = torch.matmul(attention_weights(scores, dtype), value).transpose(1, 2).flatten(2)
        output = attn.to_out[0](output)
        if hidden_states.ndim == 4:
            output = output.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            output = output + hidden_states
        result: Tensor = output / attn.rescale_output_factor
        return result


def plain_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of the text encoder in transformers' interface: float [B,heads,T,d] each -> [B,T,heads,d].

    Scores and mask are added in float32: the mask's entries are the lowest number that half has.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2)).float()
    if attention_mask is not None:
        scores = scores + attention_mask.float()
    return torch.matmul(attention_weights(scores, value.dtype), value).transpose(1, 2), None


def set_precision(network: Network, precision: str) -> None:
    """Cast a float32 network in place; for "fp32" it is left as it is.

    Raises:
        ExportError: for an unknown precision, or a weight beyond the range of float16.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}: allowed are {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return
    network.compute = TORCH_DTYPES[precision]
    spell_out_attention(network)
    spell_out_norms(network)
    for name, parameter in network.named_parameters():
        # In place: layers may share a parameter.
        parameter.data = _cast(name, parameter.data, network.compute)
    for name, buffer in list(network.named_buffers()):
        path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(path)
        if buffer.is_floating_point() and name not in network.islands and not isinstance(owner, _FLOAT32_NORMS):
            # Replaced: a buffer may be a view, and would keep its float32 base.
            setattr(owner, leaf, _cast(name, buffer, network.compute))


def set_io(network: Network, io_dtype: str) -> None:
    """Make the float inputs and outputs of a network "float32" or "float16".

    Raises:
        ExportError: for another dtype.
    """
    if io_dtype not in IO_DTYPES:
        raise ExportError(f"unknown I/O dtype {io_dtype!r}: allowed are {', '.join(IO_DTYPES)}")
    network.io = {"float32": torch.float32, "float16": torch.float16}[io_dtype]


def spell_out_attention(network: Network) -> None:
    """Replace fused attention, in place, by two matrix products around a float32 softmax."""
    for part in network.modules():
        layer: Any = part
        if isinstance(part, Attention) and not isinstance(layer.processor, EmiProcessor):
            layer.set_processor(PlainAttention())
        elif hasattr(part, "set_attn_implementation"):
            AttentionInterface.register(_PLAIN, plain_attention)
            AttentionMaskInterface.register(_PLAIN, eager_mask)
            layer.set_attn_implementation(_PLAIN)


def spell_out_norms(network: Network) -> None:
    """Replace every norm, in place, by one that computes in float32 and means the same operators in every opset."""
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.GroupNorm):
            network.set_submodule(name, Float32GroupNorm(part))
        elif isinstance(part, nn.LayerNorm):
            network.set_submodule(name, Float32LayerNorm(part))


def float32_products(network: Network) -> int:
    """How many matrix products, Attention operators and convolutions of a half network are float32 islands."""
    upcast = sum(bool(getattr(part, "upcast_attention", False)) for part in network.modules() if _attends(part))
    return upcast + 2 * bool(getattr(network, "resized", False))


def _attends(part: nn.Module) -> bool:
    return isinstance(part, Attention)


def _as_buffers(stand_in: nn.Module, norm: nn.Module) -> None:
    for name, _ in list(stand_in.named_parameters()):
        delattr(stand_in, name)
        stand_in.register_buffer(name, norm.get_parameter(name).detach())


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise ExportError(f"weight {name} exceeds the range of float16 ({HALF_MAX:.0f}): use --precision bf16")
    return cast


_FLOAT32_NORMS = (Float32GroupNorm, Float32LayerNorm)
