"""The engine that ships with the package: where it comes from, that it agrees with PyTorch, that it helps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from g4seg_bench.quality import injection_effect, refine_with, score
from g4seg_engine.manifest import load_engine
from g4seg_export.eager import EagerPipeline, EagerSettings
from g4seg_export.sources import load_source
from g4seg_export.tiny.scenes import NOTE, Sample, make_samples
from g4seg_export.tiny.train import WEIGHTS
from g4seg_trt.injection import injected_mask, seeded_noise
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import EMBEDDED, KEEP, Refiner

HOME = EMBEDDED["tiny"]
GUARD_SEED = 31


@pytest.fixture(scope="module")
def refiner() -> Iterator[Refiner]:
    with Refiner.from_engine("tiny", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(make_samples(96, GUARD_SEED))


def test_it_was_built_from_the_kept_weights() -> None:
    manifest = load_engine(HOME, verify=True)
    assert manifest.note == NOTE
    for name, recorded in manifest.model.weights.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == recorded, name
    assert {name.split("/")[0] for name in manifest.model.weights} == {
        "vae",
        "unet",
        "text_encoder",
        "image_encoder",
    }
    assert (HOME / manifest.tokenizer.file).read_bytes() == (WEIGHTS / "tokenizer.json").read_bytes()


def test_it_stays_small() -> None:
    assert sum(file.stat().st_size for file in HOME.iterdir()) < 25_000_000


def test_it_refines_like_the_eager_reference(refiner: Refiner, samples: list[Sample]) -> None:
    """Equal probabilities to 1e-3 and equal labels, but where the two best matches are within 1e-4 of each other."""
    torch.set_num_threads(1)
    manifest, config = refiner.manifest, refiner.config
    eager = EagerPipeline(load_source("tiny"), "reference")
    dims = manifest.dims
    prompts = PromptEncoder.of_engine(HOME, manifest)
    noise = seeded_noise(config.seed, (dims.latent_channels, dims.latent_size, dims.latent_size))
    settings = EagerSettings(config.timestep, config.beta, config.certainty_filter, config.emi_self, config.emi_cross)
    compared = 0
    for sample in samples[:12]:
        name = sample.scene.target
        refiner.set_image(sample.scene.image)
        ours = refiner.refine({name: sample.coarse}, keep=KEEP)
        prompt = prompts.encode(name)
        mask = injected_mask(sample.coarse >= np.float32(0.5), dims.latent_size)
        image = (sample.scene.image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32)
        theirs = eager.refine(image, sample.coarse, prompt.input_ids, prompt.token_mask, mask, noise, settings)
        np.testing.assert_allclose(ours.denoised[name], theirs.denoised, atol=1e-3 * np.abs(theirs.denoised).max())
        unclear = theirs.margins < 1e-4
        assert np.array_equal(ours.indices[name][~unclear], theirs.indices[~unclear])
        # A position may differ where a match within reach of its interpolation was unclear.
        grid = unclear.reshape(dims.grid, dims.grid)
        reach = np.pad(grid, 1)
        near = sum(reach[y : y + dims.grid, x : x + dims.grid] for y in range(3) for x in range(3)) > 0
        clear = ~np.kron(near, np.ones((dims.square // dims.grid,) * 2, bool))
        compared += int(clear.sum())
        probability = ours.probabilities[name]
        assert np.abs(probability - theirs.probability)[clear].max(initial=0) < 1e-3
        edge = np.abs(theirs.probability - 0.5) < 1e-3
        assert np.array_equal((probability >= 0.5)[clear & ~edge], (theirs.probability >= 0.5)[clear & ~edge])
    # Features of one class lie close together, so that near ties are common.
    assert compared > 0.4 * 12 * dims.square**2


def test_it_makes_masks_better_on_held_out_scenes(refiner: Refiner, samples: list[Sample]) -> None:
    """A guard, not the measurement: the benchmark takes 300 scenes of another seed."""
    result = score(samples, refine_with(refiner, refiner.config), "guard")
    assert 50 < result.before.mean() < 80
    for severity in ("light", "medium", "heavy"):
        part = result.part(severity=severity)
        assert part.after.mean() > part.before.mean(), severity
    assert result.after.mean() - result.before.mean() > 0.8


def test_the_injection_changes_the_picture_most_where_the_mask_is_wrong(
    refiner: Refiner, samples: list[Sample]
) -> None:
    effect = injection_effect(refiner, samples[:24], refiner.config)
    assert effect["where_wrong"] > 1.0, "of 255, on average: visible"
    assert effect["ratio"] > 1.2
