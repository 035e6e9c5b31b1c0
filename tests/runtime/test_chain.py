"""The host chain on numpy networks that check every input against the spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from g4seg_engine.manifest import read_manifest
from g4seg_engine.spec import ModelDims
from g4seg_trt.chain import ClassMask, HostChain
from g4seg_trt.config import RefineConfig
from g4seg_trt.correspondence.reference import nearest_positions_reference
from g4seg_trt.errors import ConfigError, EngineError
from g4seg_trt.injection import seeded_noise
from g4seg_trt.refiner import EMBEDDED
from g4seg_trt.timing import Timings
from g4seg_trt.update import in_filter

Floats = npt.NDArray[np.float32]


def image(seed: int, dims: ModelDims) -> Floats:
    return np.random.default_rng(seed).random((3, dims.square, dims.square), dtype=np.float32)


def pair(chain: HostChain, seed: int) -> ClassMask:
    """A pair whose every part depends on the seed."""
    dims, generator = chain.dims, np.random.default_rng(seed)
    token_mask = np.zeros(dims.text_length, dtype=np.float32)
    token_mask[4 : 5 + seed % 3] = 1
    return ClassMask(
        chain.encode_image(image(seed, dims)),
        chain.encode_text(generator.integers(0, 900, dims.text_length), Timings()),
        token_mask,
        (generator.random((1, dims.latent_size, dims.latent_size)) > 0.5).astype(np.float32),
        generator.random((dims.square, dims.square), dtype=np.float32),
        seeded_noise(seed, (dims.latent_channels, dims.latent_size, dims.latent_size)),
    )


def test_the_steps_of_one_pair(runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims)
    one, config = pair(chain, 0), RefineConfig(timestep=123, beta=0.7, emi_self=0.2, emi_cross=0.9)
    (refined,) = chain.refine_batch([one], config)
    given = runners["unet"].calls[-1]
    assert given["timestep"].tolist() == [123]
    assert given["emi_weight"].tolist() == [[np.float32(0.2), np.float32(0.9)]]
    assert np.array_equal(given["latent"][0], one.encoded.latent)
    assert np.array_equal(given["noise"][0], one.noise)
    assert np.array_equal(given["mask"][0], one.mask)
    assert np.array_equal(given["token_mask"][0], one.token_mask)
    assert np.array_equal(runners["vae_decoder"].calls[-1]["latent"][0], refined.denoised)
    assert np.array_equal(runners["image_encoder"].calls[-1]["image"][0], refined.generated)
    features = runners["image_encoder"].run({"image": refined.generated[None]})["features"][0]
    indices, _ = nearest_positions_reference(features, one.encoded.features)
    assert np.array_equal(refined.indices, indices)
    cell = dims.square // dims.grid
    pooled = one.probability.reshape(dims.grid, cell, dims.grid, cell).mean(axis=(1, 3), dtype=np.float64)
    expected = 0.7 * pooled.reshape(-1) + 0.3 * pooled.reshape(-1)[indices]
    assert np.abs((pooled + refined.residual).reshape(-1) - expected).max() < 1e-6
    assert set(refined.timings) == {"opening", "unet", "vae_decoder", "image_encoder", "correspondence", "update"}


@pytest.mark.parametrize("certainty_filter", [(0.2, 0.6), (0.0, 0.0), None])
def test_at_pixel_resolution_only_the_pixels_asked_for_are_searched(
    certainty_filter: tuple[float, float] | None, runners: Any, dims: ModelDims
) -> None:
    chain = HostChain(runners, dims)
    one = pair(chain, 0)
    one = replace(one, searched=in_filter(one.probability, certainty_filter))
    config = RefineConfig(beta=0.7, certainty_filter=certainty_filter, resolution="pixel")
    (refined,) = chain.refine_batch([one], config)
    features = runners["image_encoder"].run({"image": refined.generated[None]})["features"][0]
    size = one.probability.shape
    expected, best = nearest_positions_reference(features, one.encoded.features, (size[0], size[1]))
    searched = in_filter(one.probability, certainty_filter).reshape(-1)
    assert (refined.indices[~searched] == -1).all()
    assert not refined.similarities[~searched].any()
    assert np.count_nonzero(refined.indices[searched] != expected[searched]) <= 0.01 * searched.sum()
    assert (np.abs(refined.similarities - best)[searched] < 1e-6).all()
    flat = one.probability.reshape(-1)
    changed = np.where(searched, np.float32(0.3) * (flat[refined.indices] - flat), 0)
    assert refined.residual.shape == size
    assert np.abs(refined.residual.reshape(-1) - changed).max() < 1e-6
    assert set(refined.timings) == {"opening", "unet", "vae_decoder", "image_encoder", "correspondence", "update"}


@pytest.mark.parametrize("resolution", ["grid", "pixel"])
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_a_radius_is_a_share_of_the_side(resolution: str, share: float, runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims)
    one = pair(chain, 0)
    (refined,) = chain.refine_batch([one], RefineConfig(resolution=resolution, radius=share))
    features = runners["image_encoder"].run({"image": refined.generated[None]})["features"][0]
    side = dims.grid if resolution == "grid" else dims.square
    size = None if resolution == "grid" else (side, side)
    expected, _ = nearest_positions_reference(features, one.encoded.features, size, radius=int(share * side))
    assert np.count_nonzero(refined.indices != expected) <= 0.01 * side**2
    away = [
        np.abs(place - own)
        for place, own in zip(np.divmod(refined.indices, side), np.indices((side, side)).reshape(2, -1), strict=True)
    ]
    assert max(line.max() for line in away) <= share * side


def test_a_result_does_not_depend_on_its_neighbours(runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims, batch_size=4)
    pairs = [pair(chain, seed) for seed in range(4)]
    (alone,) = chain.refine_batch([pairs[2]], RefineConfig())
    for place, batch in (
        (2, pairs),
        (0, [pairs[2], pairs[0]]),
        (3, [pairs[1], pairs[1], pairs[3], pairs[2]]),
    ):
        among = chain.refine_batch(batch, RefineConfig())[place]
        for name in ("residual", "indices", "similarities", "generated", "denoised"):
            assert np.array_equal(getattr(alone, name), getattr(among, name)), name


def test_every_run_of_class_batches_has_the_batch_s_size(runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims, batch_size=3)
    pairs = [pair(chain, seed) for seed in range(2)]
    for runner in runners.values():
        runner.calls.clear()
    assert len(chain.refine_batch(pairs, RefineConfig())) == 2
    for name in ("unet", "vae_decoder", "image_encoder"):
        (call,) = runners[name].calls
        for array in call.values():
            assert len(array) == 3
            assert np.array_equal(array[2], array[0])


@pytest.mark.parametrize("count", [0, 3])
def test_batches_of_the_wrong_size(count: int, runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims, batch_size=2)
    with pytest.raises(ValueError, match=f"{count} pairs"):
        chain.refine_batch([pair(chain, 0)] * count, RefineConfig())


@pytest.mark.parametrize("batch_size", [0, -1, 65, 1.0, True, "2"])
def test_batch_sizes_that_the_networks_do_not_take(batch_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"batch size is .*from 1 to 64"):
        HostChain.open(EMBEDDED["tiny"], read_manifest(EMBEDDED["tiny"]), batch_size=batch_size)


@pytest.mark.parametrize("network", ["vae_encoder", "unet", "vae_decoder", "image_encoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error(network: str, value: float, runners: Any, dims: ModelDims) -> None:
    chain = HostChain(runners, dims)
    one = pair(chain, 0)

    def spoil(outputs: dict[str, Any]) -> dict[str, Any]:
        spoilt = {name: array.copy() for name, array in outputs.items()}
        next(iter(spoilt.values())).flat[3] = value
        return spoilt

    runners[network].replace = spoil
    with pytest.raises(EngineError, match=rf"network {network} .*not finite"):
        chain.refine_batch([one], RefineConfig())
        chain.encode_image(image(0, dims))


def test_runners_that_were_handed_in_stay_open(runners: Any, dims: ModelDims) -> None:
    HostChain(runners, dims).close()
    assert not any(runner.closed for runner in runners.values())
