"""The eager reference against the exported graphs, its own baseline flavour and hand calculations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from g4seg_engine.manifest import Manifest
from g4seg_engine.runner import open_runner
from g4seg_export.eager import EagerPipeline, EagerSettings, brute_force_neighbours, update
from g4seg_export.eager_attention import BiasProcessor, attend_fused, attend_plainly, biased_attention
from g4seg_export.errors import ExportError
from g4seg_export.sources import load_source
from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import seeded_noise
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner

SETTINGS = EagerSettings(timestep=200, beta=0.5, certainty_filter=(0.2, 0.6), emi_self=2.0, emi_cross=3.0)


@pytest.fixture(scope="module")
def pipelines(half_folder: Path) -> dict[str, EagerPipeline]:
    source = load_source(str(half_folder))
    return {flavour: EagerPipeline(source, flavour) for flavour in ("reference", "baseline")}


@pytest.fixture(scope="module")
def inputs() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    ids = np.zeros(77, dtype=np.int64)
    ids[:6] = [256, 10, 20, 30, 40, 257]
    tokens = np.zeros(77, dtype=np.float32)
    tokens[3:5] = 1.0
    mask = np.zeros((1, 8, 8), dtype=np.float32)
    mask[0, 2:6, 3:7] = 1.0
    return {
        "image": generator.random((3, 16, 16), dtype=np.float32),
        "probability": generator.random((16, 16), dtype=np.float32),
        "input_ids": ids,
        "token_mask": tokens,
        "mask": mask,
        "noise": generator.standard_normal((4, 8, 8), dtype=np.float32),
    }


def test_the_graphs_compute_what_the_reference_computes(
    pipelines: dict[str, EagerPipeline], inputs: dict[str, NDArray[Any]], engine: tuple[Path, Manifest]
) -> None:
    """Stage by stage through the engine's networks, each fed by the one before it."""
    reference = pipelines["reference"]
    expected = reference.refine(**inputs, settings=SETTINGS)
    directory, manifest = engine

    def run(network: str, **arrays: NDArray[Any]) -> NDArray[Any]:
        with open_runner(directory, network, manifest=manifest) as runner:
            outputs = runner.run({name: array[None] for name, array in arrays.items()})
        result: NDArray[Any] = next(iter(outputs.values()))[0]
        return result

    latent, features = reference.encode_image(inputs["image"])
    np.testing.assert_allclose(run("vae_encoder", image=inputs["image"]), latent, atol=1e-5)
    np.testing.assert_allclose(run("image_encoder", image=inputs["image"]), features, atol=1e-5)
    text = run("text_encoder", input_ids=inputs["input_ids"])
    np.testing.assert_allclose(text, reference.encode_text(inputs["input_ids"]), atol=1e-5)
    denoised = run(
        "unet",
        latent=latent,
        noise=inputs["noise"],
        timestep=np.array(SETTINGS.timestep),
        text_embedding=text,
        mask=inputs["mask"],
        token_mask=inputs["token_mask"],
        emi_weight=np.array([SETTINGS.emi_self, SETTINGS.emi_cross], dtype=np.float32),
    )
    np.testing.assert_allclose(denoised, expected.denoised, atol=1e-4 * np.abs(expected.denoised).max())
    generated = run("vae_decoder", latent=denoised)
    np.testing.assert_allclose(generated, expected.generated, atol=1e-4)
    found = run("image_encoder", image=generated)
    indices = (found.reshape(10, -1).T @ features.reshape(10, -1)).argmax(1)
    clear = expected.margins > 1e-4
    assert clear.sum() > 10
    assert np.array_equal(indices[clear], expected.indices[clear])


def test_the_whole_engine_path_refines_like_the_reference(
    pipelines: dict[str, EagerPipeline], engine: tuple[Path, Manifest]
) -> None:
    """From an image, a mask and a class name, at the model's own size; the runtime shares no code with this."""
    directory, manifest = engine
    generator = np.random.default_rng(3)
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    coarse = generator.random((16, 16), dtype=np.float32)
    settings: dict[str, Any] = {
        "timestep": 200,
        "beta": 0.3,
        "certainty_filter": (0.2, 0.8),
        "emi_self": 2.0,
        "emi_cross": 3.0,
    }
    with Refiner.from_engine(directory, config=RefineConfig(**settings, seed=5)) as refiner:
        refiner.set_image(image)
        result = refiner.refine({"owl": coarse}, keep=("indices", "denoised"))

    words = PromptEncoder.of_engine(directory, manifest).encode("owl")
    expected = pipelines["reference"].refine(
        image.transpose(2, 0, 1).astype(np.float32) / np.float32(255),
        coarse,
        words.input_ids,
        words.token_mask,
        # 16 pixels to 8 positions, each taking the second of its two pixels: the one that holds its centre.
        (coarse >= 0.5)[None, 1::2, 1::2].astype(np.float32),
        seeded_noise(5, (4, 8, 8)),
        EagerSettings(**settings),
    )
    np.testing.assert_allclose(result.denoised["owl"], expected.denoised, atol=1e-4)
    clear = expected.margins > 1e-4
    assert np.array_equal(result.indices["owl"][clear], expected.indices[clear])
    assert clear.all(), "choose another seed: a tie would excuse differences"
    np.testing.assert_allclose(result.probabilities["owl"], expected.probability, atol=1e-5)
    assert np.abs(expected.probability - coarse).max() > 0.05


def test_the_flavours_agree(pipelines: dict[str, EagerPipeline], inputs: dict[str, NDArray[Any]]) -> None:
    reference, baseline = (pipeline.refine(**inputs, settings=SETTINGS) for pipeline in pipelines.values())
    np.testing.assert_allclose(reference.denoised, baseline.denoised, atol=1e-5)
    np.testing.assert_allclose(reference.generated, baseline.generated, atol=1e-5)
    np.testing.assert_allclose(reference.probability, baseline.probability, atol=1e-5)
    assert list(reference.timings) == [
        "vae_encoder",
        "image_encoder",
        "text_encoder",
        "unet",
        "vae_decoder",
        "image_encoder_generated",
        "correspondence",
        "update",
    ]


def test_injection_changes_the_generation(pipelines: dict[str, EagerPipeline], inputs: dict[str, NDArray[Any]]) -> None:
    off = EagerSettings(timestep=200, emi_self=0.0, emi_cross=0.0)
    with_mask = pipelines["reference"].refine(**inputs, settings=off)
    without = pipelines["reference"].refine(**{**inputs, "mask": 0 * inputs["mask"]}, settings=SETTINGS)
    injected = pipelines["reference"].refine(**inputs, settings=SETTINGS)
    assert np.array_equal(with_mask.denoised, without.denoised)
    assert np.abs(injected.denoised - without.denoised).max() > 1e-3


@pytest.mark.parametrize("mode", ["last", "maskclip"])
def test_other_dense_modes(
    mode: str, model_folder: Path, inputs: dict[str, NDArray[Any]], make_vision: Callable[..., Any]
) -> None:
    from g4seg_export.image_encoder import ImageEncoder

    pipeline = EagerPipeline(load_source(str(model_folder)), dense_mode=mode)
    _, features = pipeline.encode_image(inputs["image"])
    with torch.inference_mode():
        expected = ImageEncoder(make_vision(), 16, mode)(torch.from_numpy(inputs["image"])[None])[0]
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_the_processors_come_back(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    before = {name: id(processor) for name, processor in unet.attn_processors.items()}
    processor = BiasProcessor(attend_plainly, torch.zeros(1, 1, 8, 8), torch.zeros(1, 77), (1.0, 1.0))
    with pytest.raises(RuntimeError, match="stop"), biased_attention(unet, processor):
        raise RuntimeError("stop")
    assert {name: id(processor) for name, processor in unet.attn_processors.items()} == before


def test_fused_and_plain_attention_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, size, 5, generator=generator) for size in (6, 8, 8))
    bias = torch.randn(2, 1, 6, 8, generator=generator) * 4
    plain, fused = attend_plainly(query, key, value, bias), attend_fused(query, key, value, bias)
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-5)


def test_neighbours_are_the_most_similar_and_ties_go_to_the_lowest_index() -> None:
    candidates = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.8, 0.6]])
    indices, margins = brute_force_neighbours(queries, candidates)
    assert indices.tolist() == [1, 0, 3]
    assert margins.tolist() == pytest.approx([0.0, 1.0, 0.2], abs=1e-6)


def test_the_update_follows_eq_9_and_the_filter() -> None:
    coarse = torch.tensor([[0.1, 0.3], [0.5, 0.9]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    indices = torch.tensor([3, 3, 0, 1])
    everywhere = update(coarse, indices, 4 // 2, EagerSettings(beta=0.75, certainty_filter=None))
    mixed = torch.tensor([0.1 + 0.25 * 0.8, 0.3 + 0.25 * 0.6, 0.5 - 0.25 * 0.4, 0.9 - 0.25 * 0.6])
    # The corners lie beyond the outermost grid centres, where the bilinear lift is constant.
    corners = everywhere[[0, 0, 3, 3], [0, 3, 0, 3]]
    torch.testing.assert_close(corners, mixed)
    filtered = update(coarse, indices, 2, EagerSettings(beta=0.75, certainty_filter=(0.3, 0.5)))
    inside = (coarse >= 0.3) & (coarse <= 0.5)
    assert torch.equal(filtered[~inside], coarse[~inside])
    assert torch.equal(filtered[inside], everywhere[inside])
    assert (filtered[inside] != coarse[inside]).any()


def test_pooling_counts_border_pixels_by_their_share() -> None:
    coarse = torch.tensor([[0.2, 0.4, 0.6]]).expand(3, 3)
    refined = update(coarse, torch.tensor([1, 1, 3, 3]), 2, EagerSettings(beta=0.0, certainty_filter=None))
    # Cells hold (0.2 + 0.4 / 2) / 1.5 and (0.4 / 2 + 0.6) / 1.5; the left ones take the right one's value.
    torch.testing.assert_close(refined[:, 0], coarse[:, 0] + 0.4 / 1.5)


def test_an_unknown_flavour_is_refused(model_folder: Path) -> None:
    with pytest.raises(ExportError, match="allowed are reference, baseline"):
        EagerPipeline(load_source(str(model_folder)), "fast")


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), pytest.param("cuda", torch.float16, marks=pytest.mark.gpu)],
)
def test_half_precision_is_the_same_up_to_its_rounding(
    pipelines: dict[str, EagerPipeline], inputs: dict[str, NDArray[Any]], device: str, dtype: torch.dtype
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    source = pipelines["baseline"].source
    half = EagerPipeline(source, "baseline", device=device, dtype=dtype).refine(**inputs, settings=SETTINGS)
    full = pipelines["baseline"].refine(**inputs, settings=SETTINGS)
    for name in ("generated", "denoised"):
        one, other = getattr(half, name), getattr(full, name)
        assert one.dtype == np.float32
        difference = np.abs(one - other).max() / np.abs(other).max()
        assert 0 < difference < 0.05, name
    clear = full.margins > 0.02
    assert np.array_equal(half.indices[clear], full.indices[clear])
