"""Mask injection against eq. 5 written out in float64, in both forms, and its removal."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray

from g4seg_engine.records import ATTENTIONS, INJECTION_FORMS
from g4seg_export.attention import EmiProcessor, Injection, inject
from g4seg_export.errors import ExportError

HEADS, WIDTH, SIDE, TOKENS = 3, 5, 4, 7


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(0)
    make: Any = Attention
    return make(query_dim=12, cross_attention_dim=9, heads=HEADS, dim_head=WIDTH).eval()


@pytest.fixture
def self_layer() -> Any:
    torch.manual_seed(1)
    make: Any = Attention
    return make(query_dim=12, heads=HEADS, dim_head=WIDTH).eval()


@pytest.fixture
def tensors() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(2)
    return SimpleNamespace(
        hidden=torch.randn(2, SIDE * SIDE, 12, generator=generator),
        text=torch.randn(2, TOKENS, 9, generator=generator),
        # Twice the layer's resolution, so that the selection of positions matters.
        mask=(torch.rand(2, 1, 2 * SIDE, 2 * SIDE, generator=generator) > 0.5).float(),
        token_mask=(torch.rand(2, TOKENS, generator=generator) > 0.5).float(),
        weight=torch.tensor([[3.0, -2.0], [1.5, 4.0]]),
    )


def attention_by_hand(layer: Any, tensors: SimpleNamespace, *, cross: bool) -> NDArray[np.float64]:
    """Eq. 5 for every batch element, head and query in turn, float64."""
    weights = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
    result = []
    for element in range(2):
        hidden = tensors.hidden[element].double().numpy()
        context = tensors.text[element].double().numpy() if cross else hidden
        mask = tensors.mask[element, 0].double().numpy()
        s = np.array([mask[2 * row, 2 * column] for row in range(SIDE) for column in range(SIDE)])
        other = tensors.token_mask[element].double().numpy() if cross else s
        alpha = float(tensors.weight[element, 1 if cross else 0])
        query, key, value = (
            source @ weights[f"to_{name}.weight"].T for name, source in (("q", hidden), ("k", context), ("v", context))
        )
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH, (head + 1) * WIDTH)
            rows = []
            for i in range(len(hidden)):
                scores = [
                    (query[i, part] @ key[j, part] + alpha * s[i] * other[j]) / np.sqrt(WIDTH)
                    for j in range(len(context))
                ]
                exponents = np.exp(np.array(scores) - np.max(scores))
                rows.append(exponents / exponents.sum() @ value[:, part])
            heads.append(np.array(rows))
        result.append(np.concatenate(heads, axis=1) @ weights["to_out.0.weight"].T + weights["to_out.0.bias"])
    return np.array(result)


@pytest.mark.parametrize("form", INJECTION_FORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cross", [False, True])
def test_both_forms_equal_attention_written_out_in_float64(
    form: str, attention: str, cross: bool, layer: Any, self_layer: Any, tensors: SimpleNamespace
) -> None:
    chosen = layer if cross else self_layer
    expected = attention_by_hand(chosen, tensors, cross=cross)
    emi = Injection(tensors.mask, tensors.token_mask, tensors.weight)
    with torch.inference_mode():
        actual = EmiProcessor(form, attention)(chosen, tensors.hidden, tensors.text if cross else None, emi=emi)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("form", INJECTION_FORMS)
def test_injection_changes_rows_inside_the_mask_only(form: str, self_layer: Any, tensors: SimpleNamespace) -> None:
    processor = EmiProcessor(form)
    with torch.inference_mode():
        outputs = [
            processor(
                self_layer,
                tensors.hidden,
                emi=Injection(tensors.mask, tensors.token_mask, weight * tensors.weight),
            )
            for weight in (0.0, 1.0)
        ]
    changed = (outputs[0] != outputs[1]).any(dim=-1)
    inside = tensors.mask[:, 0, ::2, ::2].reshape(2, -1) == 1.0
    assert torch.equal(changed, inside)


def test_mask_positions_are_selected_when_sizes_do_not_divide() -> None:
    mask = torch.arange(25.0).reshape(1, 1, 5, 5)
    channel = Injection(mask, torch.zeros(1, 1), torch.ones(1, 2)).key_channel(9, cross=False)
    assert channel.flatten().tolist() == [0.0, 1.0, 3.0, 5.0, 6.0, 8.0, 15.0, 16.0, 18.0]


def test_a_layer_that_is_not_square_is_refused() -> None:
    emi = Injection(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1), torch.ones(1, 2))
    with pytest.raises(ExportError, match="8 positions"):
        emi.key_channel(8, cross=False)


def test_the_very_processors_come_back(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    before = {name: id(processor) for name, processor in unet.attn_processors.items()}
    with inject(unet, "folded"):
        assert all(isinstance(processor, EmiProcessor) for processor in unet.attn_processors.values())
    assert {name: id(processor) for name, processor in unet.attn_processors.items()} == before


def test_processors_come_back_after_an_exception(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    before = {name: id(processor) for name, processor in unet.attn_processors.items()}
    with pytest.raises(RuntimeError, match="stop"), inject(unet, "dense"):
        raise RuntimeError("stop")
    assert {name: id(processor) for name, processor in unet.attn_processors.items()} == before


def test_processors_that_are_modules_come_back(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()

    class Processor(torch.nn.Module):
        pass

    original: object = Processor()
    name = next(name for name, part in unet.named_modules() if isinstance(part, Attention))
    layer: Any = unet.get_submodule(name)
    layer.set_processor(original)
    with inject(unet, "folded"):
        assert type(layer.processor) is EmiProcessor
    assert layer.processor is original
    assert "processor" in layer._modules


def test_an_unknown_form_changes_nothing(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    with pytest.raises(ExportError, match="allowed are folded, dense"), inject(unet, "sparse"):
        pass
    with pytest.raises(ExportError, match="'fused': allowed are products, operator"), inject(unet, "dense", "fused"):
        pass


def test_attention_of_another_kind_is_refused(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    layer = next(part for part in unet.modules() if isinstance(part, Attention))
    other: Any = layer
    other.norm_q = torch.nn.LayerNorm(4)
    before = dict(unet.attn_processors)
    with pytest.raises(ExportError, match="query or key norm"), inject(unet, "folded"):
        pass
    assert unet.attn_processors == before


def test_upcast_layers_score_in_float32(layer: Any, tensors: SimpleNamespace) -> None:
    """In half precision the scores of large activations overflow; upcast layers survive them."""
    layer = layer.half()
    layer.upcast_attention = True
    hidden = (tensors.hidden * 500).half()
    emi = Injection(tensors.mask.half(), tensors.token_mask.half(), tensors.weight.half())
    with torch.inference_mode():
        safe = EmiProcessor("folded")(layer, hidden, (tensors.text * 500).half(), emi=emi)
        layer.upcast_attention = False
        plain = EmiProcessor("folded")(layer, hidden, (tensors.text * 500).half(), emi=emi)
    assert torch.isfinite(safe).all()
    assert not torch.isfinite(plain).all()
