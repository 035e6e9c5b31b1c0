"""The network wrappers against closed forms and the libraries' own models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from g4seg_export.attention import inject
from g4seg_export.errors import ExportError
from g4seg_export.networks import TextEncoder, Unet, VaeDecoder, VaeEncoder

TEXT_WIDTH = 24


class FixedPrediction(torch.nn.Module):
    """Stands for a UNet that predicts the same tensor whatever it is given, and remembers what that was."""

    def __init__(self, prediction: torch.Tensor) -> None:
        super().__init__()
        self.prediction = prediction
        self.seen: torch.Tensor | None = None

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        self.seen = sample
        return (self.prediction,)


def unet_inputs(seed: int = 0, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, 1, 8, 8)
    mask[:, :, 2:6, 1:5] = 1.0
    tokens = torch.zeros(batch, 77)
    tokens[:, 4:6] = 1.0
    return [
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.randn(batch, 4, 8, 8, generator=generator),
        torch.tensor([100, 700])[:batch],
        torch.randn(batch, 77, TEXT_WIDTH, generator=generator),
        mask,
        tokens,
        torch.tensor([[0.3, 1.0], [2.0, 3.0]])[:batch],
    ]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("timestep", [0, 1, 400, 999])
def test_the_step_equals_its_closed_form_in_float64(
    prediction_type: str, timestep: int, alphas: NDArray[np.float64]
) -> None:
    latent, noise, _, *rest = unet_inputs()
    output = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    model = FixedPrediction(output)
    actual = Unet(model, alphas, prediction_type)(latent, noise, torch.tensor([timestep] * 2), *rest)

    z, n, prediction = (tensor.double().numpy() for tensor in (latent, noise, output))
    abar = alphas[timestep]
    noisy = np.sqrt(abar) * z + np.sqrt(1 - abar) * n
    if prediction_type == "epsilon":
        expected = (noisy - np.sqrt(1 - abar) * prediction) / np.sqrt(abar)
    else:
        expected = np.sqrt(abar) * noisy - np.sqrt(1 - abar) * prediction
    assert model.seen is not None
    np.testing.assert_allclose(model.seen.numpy(), noisy, atol=1e-6)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-6, atol=2e-6 / np.sqrt(abar))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_the_clean_latent_back(prediction_type: str, alphas: NDArray[np.float64]) -> None:
    latent, noise, _, *rest = unet_inputs()
    abar = alphas[400]
    target = noise if prediction_type == "epsilon" else abar**0.5 * noise - (1 - abar) ** 0.5 * latent
    step = Unet(FixedPrediction(target.float()), alphas, prediction_type)
    denoised = step(latent, noise, torch.tensor([400, 400]), *rest)
    torch.testing.assert_close(denoised, latent, atol=1e-5, rtol=1e-5)


def test_each_batch_element_uses_its_own_timestep(alphas: NDArray[np.float64]) -> None:
    latent, noise, timestep, *rest = unet_inputs()
    step = Unet(FixedPrediction(torch.zeros(2, 4, 8, 8)), alphas, "epsilon")
    both = step(latent, noise, timestep, *rest)
    swapped = step(latent, noise, timestep.flip(0), *rest)
    assert not torch.allclose(both, swapped)


def test_an_unknown_prediction_type_is_refused(alphas: NDArray[np.float64]) -> None:
    with pytest.raises(ExportError, match="'sample' is not supported: allowed are epsilon, v_prediction"):
        Unet(torch.nn.Identity(), alphas, "sample")


def test_zero_snr_schedules_work_for_v_prediction_only(alphas: NDArray[np.float64]) -> None:
    table = np.append(alphas[:-1], 0.0)
    Unet(torch.nn.Identity(), table, "v_prediction")
    with pytest.raises(ExportError, match="alpha-bar"):
        Unet(torch.nn.Identity(), table, "epsilon")


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("form", ["folded", "dense"])
def test_zero_weight_equals_the_unpatched_unet(
    form: str, upcast: bool, make_unet: Callable[..., Any], alphas: NDArray[np.float64]
) -> None:
    unet = make_unet(upcast_attention=upcast)
    latent, noise, timestep, text, mask, tokens, _ = unet_inputs()
    zero = torch.zeros(2, 2)
    with torch.inference_mode():
        with inject(unet, form):
            step = Unet(unet, alphas, "v_prediction")
            patched = step(latent, noise, timestep, text, mask, tokens, zero)
            no_mask = step(latent, noise, timestep, text, torch.zeros_like(mask), torch.zeros_like(tokens), zero)
        abar = torch.from_numpy(alphas)[timestep].reshape(-1, 1, 1, 1)
        noisy = (abar.sqrt() * latent + (1 - abar).sqrt() * noise).float()
        plain = unet(noisy, timestep, text).sample
        expected = (abar.sqrt() * noisy - (1 - abar).sqrt() * plain).float()
    assert torch.equal(patched, no_mask)
    assert (patched - expected).abs().max() < 1e-5 * expected.abs().max()


def test_forms_agree_and_injection_matters(make_unet: Callable[..., Any], alphas: NDArray[np.float64]) -> None:
    unet = make_unet()
    outputs = {}
    with torch.inference_mode():
        for form in ("folded", "dense"):
            with inject(unet, form):
                outputs[form] = Unet(unet, alphas, "epsilon")(*unet_inputs())
        *arguments, weight = unet_inputs()
        with inject(unet, "folded"):
            without = Unet(unet, alphas, "epsilon")(*arguments, torch.zeros_like(weight))
    scale = outputs["dense"].abs().max()
    assert (outputs["folded"] - outputs["dense"]).abs().max() < 1e-5 * scale
    assert (outputs["dense"] - without).abs().max() > 1e-3 * scale


def test_the_vae_wrappers_use_the_mean_and_the_scaling_factor(vae: Any) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        latent = VaeEncoder(vae, 0.3)(image)
        mean = vae.encode(2 * image - 1).latent_dist.mean
        torch.testing.assert_close(latent, 0.3 * mean)
        decoded = VaeDecoder(vae, 0.3)(latent)
        raw = vae.decode(mean).sample
    torch.testing.assert_close(decoded, (raw / 2 + 0.5).clamp(0, 1))
    assert decoded.min() >= 0.0
    assert decoded.max() <= 1.0


def test_the_decoder_clamps(vae: Any) -> None:
    with torch.inference_mode():
        decoded = VaeDecoder(vae, 0.3)(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 50)
    assert (decoded == 0.0).any()
    assert (decoded == 1.0).any()


def test_the_text_encoder_gives_the_normed_last_hidden_state(text_encoder: Any) -> None:
    ids = torch.randint(0, 258, (2, 77), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        embedding = TextEncoder(text_encoder)(ids)
        hidden = text_encoder(ids, output_hidden_states=True).hidden_states[-1]
        # transformers 5 has no inner text_model any more.
        normed = getattr(text_encoder, "text_model", text_encoder).final_layer_norm(hidden)
    torch.testing.assert_close(embedding, normed)
    assert not torch.allclose(embedding, hidden)
