"""The dtype policy on torch modules: what becomes half, what stays float32, and that the islands are accurate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from g4seg_engine.spec import NETWORKS, network_specs
from g4seg_export.attention import inject
from g4seg_export.errors import ExportError
from g4seg_export.examples import example_inputs
from g4seg_export.image_encoder import ImageEncoder
from g4seg_export.modules import Network
from g4seg_export.networks import TextEncoder, Unet, VaeDecoder, VaeEncoder, load_network
from g4seg_export.parity import reference_outputs
from g4seg_export.precision import (
    Float32GroupNorm,
    Float32LayerNorm,
    float32_products,
    set_io,
    set_precision,
    spell_out_attention,
)
from g4seg_export.sources import load_source

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class FixedPrediction(nn.Module):
    """Stands for a UNet that predicts the same tensor whatever it is given."""

    def __init__(self, prediction: torch.Tensor) -> None:
        super().__init__()
        self.prediction = prediction
        self.seen: torch.dtype | None = None

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        self.seen = sample.dtype
        return (self.prediction,)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_half_but_the_islands(name: str, precision: str, model_folder: Path) -> None:
    source = load_source(str(model_folder))
    with load_network(source, name, "folded", "csa") as network:
        set_precision(network, precision)
        norms = {path for path, part in network.named_modules() if isinstance(part, (nn.GroupNorm, nn.LayerNorm))}
        assert norms
        for path, tensor in [*network.named_parameters(), *network.named_buffers()]:
            island = path in network.islands or path.rpartition(".")[0] in norms
            if tensor.is_floating_point():
                assert tensor.dtype == (torch.float32 if island else HALVES[precision]), path


@pytest.mark.parametrize(("precision", "most"), [("fp16", 5e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_networks_stay_near_float32(name: str, precision: str, most: float, model_folder: Path) -> None:
    """Torch rounds every tensor of the half network, which ONNX Runtime's CPU does not."""
    source = load_source(str(model_folder))
    spec = network_specs(source.dims)[name]
    example = example_inputs(spec, batch=min(2, spec.max_batch), seed=3, vocabulary=source.vocabulary, timesteps=1000)
    output = spec.outputs[0].name
    with load_network(source, name, "folded", "csa") as network:
        expected = reference_outputs(network, spec, [example])[0][output]
        set_precision(network, precision)
        actual = reference_outputs(network, spec, [example])[0][output]
    assert actual.dtype == np.float32
    assert 0 < np.abs(actual - expected).max() < most * np.abs(expected).max()


def test_interpolated_positions_are_cast_whole(make_vision: Callable[..., Any]) -> None:
    """They come as a view; one that kept its float32 base could not be exported."""
    network = ImageEncoder(make_vision(image_size=8), 16, "maskclip").eval()
    set_precision(network, "fp16")
    assert network.position.dtype == torch.float16
    assert network.position._base is None or network.position._base.dtype == torch.float16
    torch.export.export(network, (torch.rand(1, 3, 16, 16),))


def test_float32_is_left_as_it_is(make_unet: Callable[..., Any], alphas: NDArray[np.float64]) -> None:
    network = Unet(make_unet(), alphas, "epsilon")
    before = {name: (id(part), type(part)) for name, part in network.named_modules()}
    set_precision(network, "fp32")
    assert {name: (id(part), type(part)) for name, part in network.named_modules()} == before
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("shape", [(2, 8, 6, 6), (2, 8, 36)])
def test_group_norms_compute_in_float32(shape: tuple[int, ...]) -> None:
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    # The squares of these overflow float16, and their mean is far larger than their deviation.
    states = (2000 + 300 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).half()
    actual = Float32GroupNorm(norm)(states)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.double(), norm.double()(states.double()), rtol=1e-3, atol=1e-3)


def test_layer_norms_compute_in_float32() -> None:
    norm = nn.LayerNorm(64)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    states = (2000 + 300 * torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))).half()
    actual = Float32LayerNorm(norm)(states)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.double(), norm.double()(states.double()), rtol=1e-3, atol=1e-3)
    assert Float32LayerNorm(nn.LayerNorm(8, elementwise_affine=False))(torch.ones(2, 8).half()).dtype == torch.float16


def test_attention_spelled_out_is_the_same_attention(vae: Any, text_encoder: Any) -> None:
    vae, text_encoder = copy.deepcopy(vae), copy.deepcopy(text_encoder)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(0, 258, (2, 77), generator=torch.Generator().manual_seed(3))
    networks: tuple[tuple[Network, torch.Tensor], ...] = (
        (VaeEncoder(vae, 0.3), image),
        (VaeDecoder(vae, 0.3), latent),
        (TextEncoder(text_encoder), ids),
    )
    with torch.no_grad():
        before = [network(value) for network, value in networks]
        for network, _ in networks:
            spell_out_attention(network)
        for (network, value), expected in zip(networks, before, strict=True):
            torch.testing.assert_close(network(value), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_the_step_are_float32_around_a_half_model(prediction_type: str, alphas: NDArray[np.float64]) -> None:
    generator = torch.Generator().manual_seed(0)
    latent, noise, output = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    rest = [torch.zeros(2, 77, 24), torch.zeros(2, 1, 8, 8), torch.zeros(2, 77), torch.zeros(2, 2)]
    model = FixedPrediction(output.half())
    step = Unet(model, alphas, prediction_type)
    set_precision(step, "fp16")
    actual = step(latent, noise, torch.tensor([900, 900]), *rest)

    abar = alphas[900]
    z, n, prediction = (tensor.double().numpy() for tensor in (latent, noise, output.half()))
    noisy = np.sqrt(abar) * z + np.sqrt(1 - abar) * n
    if prediction_type == "epsilon":
        expected = (noisy - np.sqrt(1 - abar) * prediction) / np.sqrt(abar)
    else:
        expected = np.sqrt(abar) * noisy - np.sqrt(1 - abar) * prediction
    assert model.seen == torch.float16
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_timestep_enters_through_float32(make_unet: Callable[..., Any], alphas: NDArray[np.float64]) -> None:
    """Half steps at 999 are 0.5 wide: a half sinusoid could not tell neighbouring phases apart."""
    unet = make_unet()
    seen: list[torch.Tensor] = []
    unet.time_proj.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    network = Unet(unet, alphas, "epsilon")
    set_precision(network, "fp16")
    rest = [torch.zeros(1, 77, 24), torch.zeros(1, 1, 8, 8), torch.zeros(1, 77), torch.zeros(1, 2)]
    with inject(unet, "folded"), torch.no_grad():
        network(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.tensor([999]), *rest)
    assert seen[0].dtype == torch.float32
    assert unet.time_embedding.linear_1.weight.dtype == torch.float16


@pytest.mark.parametrize("form", ["folded", "dense"])
def test_zero_weight_equals_an_empty_mask_bit_for_bit_in_half(
    form: str, make_unet: Callable[..., Any], alphas: NDArray[np.float64]
) -> None:
    generator = torch.Generator().manual_seed(4)
    arguments = [torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2)]
    arguments += [torch.tensor([400]), torch.randn(1, 77, 24, generator=generator)]
    mask, tokens = torch.zeros(1, 1, 8, 8), torch.zeros(1, 77)
    mask[:, :, 2:6, 1:5], tokens[:, 4:6] = 1.0, 1.0
    unet = make_unet()
    network = Unet(unet, alphas, "epsilon")
    with inject(unet, form), torch.no_grad():
        set_precision(network, "fp16")
        off = network(*arguments, mask, tokens, torch.zeros(1, 2))
        empty = network(*arguments, torch.zeros_like(mask), torch.zeros_like(tokens), torch.ones(1, 2))
        injected = network(*arguments, mask, tokens, torch.full((1, 2), 3.0))
    assert torch.equal(off, empty)
    assert (injected - off).abs().max() > 1e-2 * off.abs().max()


def test_only_upcast_attention_has_float32_products(make_unet: Callable[..., Any], alphas: NDArray[np.float64]) -> None:
    counts = []
    for upcast in (False, True):
        unet = make_unet(upcast_attention=upcast)
        with inject(unet, "folded"):
            counts.append(float32_products(Unet(unet, alphas, "epsilon")))
    assert counts == [0, len(make_unet().attn_processors)]


def test_a_weight_beyond_float16_names_itself_and_the_way_out(vae: Any) -> None:
    broken = copy.deepcopy(vae)
    with torch.no_grad():
        broken.decoder.conv_in.weight[0, 0, 0, 0] = 7e4
    with pytest.raises(ExportError, match=r"vae\.decoder\.conv_in\.weight exceeds .*65504.*--precision bf16"):
        set_precision(VaeDecoder(copy.deepcopy(broken), 0.3), "fp16")
    network = VaeDecoder(broken, 0.3)
    set_precision(network, "bf16")
    assert torch.isfinite(network.vae.decoder.conv_in.weight).all()


def test_unknown_precisions_are_refused(text_encoder: Any) -> None:
    network = TextEncoder(text_encoder)
    with pytest.raises(ExportError, match="unknown precision 'half': allowed are fp32, fp16, bf16"):
        set_precision(network, "half")
    with pytest.raises(ExportError, match="unknown I/O dtype 'bfloat16': allowed are float32, float16"):
        set_io(network, "bfloat16")
