"""The chain of networks: what the Refiner talks to. It knows neither full-size pictures nor class names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from g4seg_engine.manifest import Manifest
from g4seg_engine.networks import Networks, OneAtATime
from g4seg_engine.runner import Runner, check_backend, open_runner
from g4seg_engine.spec import NETWORKS, ModelDims
from g4seg_trt.arrays import Bools, Floats, Ints
from g4seg_trt.config import RefineConfig
from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.errors import ConfigError, EngineError
from g4seg_trt.geometry import pool_to_grid
from g4seg_trt.injection import emi_weight
from g4seg_trt.timing import OPENING, TEXT, Timings
from g4seg_trt.update import mix, mix_at

Held: TypeAlias = Any
"""What only the chain that made it looks into: a numpy array or a torch tensor."""

BATCHED = ("unet", "vae_decoder", "image_encoder")
"""The networks that run on whole batches of pairs, in order."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class EncodedImage:
    """What is computed once per image.

    Attributes:
        latent: the clean latent z0, [Z,h,h]: a numpy array or a torch tensor, as the chain that made it has them.
        features: F(x), [P,g,g] of unit norm per position, likewise.
        timings: seconds by stage.
    """

    latent: Held
    features: Held
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True)
class ClassMask:
    """One (image, class) pair.

    Attributes:
        encoded: its image.
        text_embedding: of the prompt, [length,C], as the chain that made it has it.
        token_mask: float32 [length], 1 at the class name's tokens.
        mask: the injected mask, float32 [1,h,h] of 0 and 1.
        probability: S on the model's square, float32 [s,s] in [0,1].
        noise: float32 [Z,h,h].
        searched: for the resolution "pixel", where on the square a change can reach a pixel that the certainty filter
            lets through, bool [s,s]; None for everywhere. It limits what is looked up, not where matches are found.
    """

    encoded: EncodedImage
    text_embedding: Held
    token_mask: Floats
    mask: Floats
    probability: Floats
    noise: Floats
    searched: Bools | None = None


@dataclass(frozen=True)
class Refined:
    """What comes out for one pair. The arrays belong to the caller.

    Attributes:
        residual: S* - S on the grid, float32 [g,g]; at resolution "pixel" on the square, [s,s].
        indices: the most similar original position of every generated one, int64 [g*g]; at resolution "pixel"
            [s*s], -1 at pixels outside the certainty filter, which are not searched.
        similarities: their cosines, float32, as many; 0 where nothing was searched.
        generated: the generated image, RGB float32 [3,s,s] in [0,1].
        denoised: its latent, float32 [Z,h,h].
        timings: the pair's share of the batch's seconds by stage.
    """

    residual: Floats
    indices: Ints
    similarities: Floats
    generated: Floats
    denoised: Floats
    timings: Timings = field(default_factory=Timings)


class Chain(Protocol):
    """The networks in order. Results depend on the batch size, never on what else is in the batch."""

    dims: ModelDims
    batch_size: int

    def encode_text(self, input_ids: Ints, timings: Timings) -> Held:
        """int64 [length] -> text embedding [length,C]; adds the seconds it takes."""
        ...

    def encode_image(self, image: Floats) -> EncodedImage:
        """RGB float32 [3,s,s] in [0,1] -> what all its classes share."""
        ...

    def refine_batch(self, pairs: Sequence[ClassMask], config: RefineConfig) -> list[Refined]:
        """Generate, match and mix (eq. 2, 5, 8, 9) for 1 to batch_size pairs of any images."""
        ...

    def wait_until_open(self) -> None:
        """Return when there is nothing left to load; raises what opening a network raises."""
        ...

    def close(self) -> None:
        """Let go of the networks."""
        ...


class Runners(Protocol):
    """The networks by name; one that is asked for may still have to be opened."""

    def __getitem__(self, name: str, /) -> Runner: ...


class HostChain:
    """The chain on numpy arrays: one Runner after another.

    Class batches always have `batch_size` entries, free ones repeating the first, so that a pair's result
    does not depend on how many others there happen to be. Texts run one by one: their embeddings are kept.

    Args:
        runners: network name -> Runner, all five. Their owner closes them, unless `open` made them.
        dims: the model's sizes.
        batch_size: pairs in one run.

    Raises:
        ConfigError: if the batch size is not an integer from 1 on.
    """

    def __init__(self, runners: Runners, dims: ModelDims, batch_size: int = 1) -> None:
        check_batch_size(batch_size)
        self.dims = dims
        self.batch_size = batch_size
        self._runners = runners
        self._wait: Callable[[], None] | None = None
        self._owned = ExitStack()

    @classmethod
    def open(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
        batch_size: int = 1,
        threads: int | None = None,
        compute_precision: str | None = None,
        low_memory: bool = False,
        cache: bool = True,
    ) -> HostChain:
        """Open the five networks of an engine directory; `close` closes them.

        They are opened in the background: what is wrong with one is raised where it is first needed.

        Raises:
            ConfigError: if the batch size is outside what the networks take.
            EngineError: if the backend cannot run this engine here.
            MissingExtraError: if the backend is not installed.
        """
        check_batch_size(batch_size, min(manifest.networks[name].max_batch for name in BATCHED))
        check_backend(backend, device, compute_precision)

        def open_one(name: str) -> Runner:
            return open_runner(
                directory,
                name,
                backend,
                device,
                manifest=manifest,
                threads=threads,
                compute_precision=compute_precision,
                batch=batch_size if name in BATCHED else 1,
                cache=cache,
            )

        networks = OneAtATime(open_one) if low_memory else Networks(open_one, opening_order(manifest))
        chain = cls(networks, manifest.dims, batch_size)
        chain._wait = networks.wait
        chain._owned.callback(networks.close)
        return chain

    def wait_until_open(self) -> None:
        """See Chain; in low memory mode networks are opened when they are needed, and there is nothing to wait for."""
        if self._wait is not None:
            self._wait()

    def close(self) -> None:
        """Close the networks that `open` opened."""
        self._owned.close()

    def encode_text(self, input_ids: Ints, timings: Timings) -> Floats:
        """int64 [length] -> text embedding float32 [length,C]."""
        embedding: Floats = self._run("text_encoder", {"input_ids": input_ids[None]}, "text_embedding", timings)[0]
        return embedding

    def encode_image(self, image: Floats) -> EncodedImage:
        """RGB float32 [3,s,s] in [0,1] -> latent and features.

        Raises:
            EngineError: if a network returns values that are not finite.
        """
        timings = Timings()
        latent = self._run("vae_encoder", {"image": image[None]}, "latent", timings)[0]
        features = self._run("image_encoder", {"image": image[None]}, "features", timings)[0]
        return EncodedImage(latent, features, timings)

    def refine_batch(self, pairs: Sequence[ClassMask], config: RefineConfig) -> list[Refined]:
        """One to `batch_size` pairs; see Chain.

        Raises:
            ValueError: for another number of pairs.
            EngineError: if a network returns values that are not finite.
        """
        check_count(pairs, self.batch_size)
        timings = Timings()
        denoised = self._run("unet", self._unet_inputs(pairs, config), "denoised", timings)
        generated = self._run("vae_decoder", {"latent": denoised}, "image", timings)
        features = self._run("image_encoder", {"image": generated}, "features", timings)
        share = timings.shared_by(len(pairs))
        return [
            self._match(pair, features[row], generated[row], denoised[row], config, share)
            for row, pair in enumerate(pairs)
        ]

    def _unet_inputs(self, pairs: Sequence[ClassMask], config: RefineConfig) -> dict[str, Floats | Ints]:
        return {
            "latent": self._batch([pair.encoded.latent for pair in pairs]),
            "noise": self._batch([pair.noise for pair in pairs]),
            "timestep": np.full(self.batch_size, config.timestep, dtype=np.int64),
            "text_embedding": self._batch([pair.text_embedding for pair in pairs]),
            "mask": self._batch([pair.mask for pair in pairs]),
            "token_mask": self._batch([pair.token_mask for pair in pairs]),
            "emi_weight": np.tile(emi_weight(config), (self.batch_size, 1)),
        }

    def _batch(self, rows: Sequence[Floats]) -> Floats:
        return np.stack(filled(rows, self.batch_size))

    def _match(
        self,
        pair: ClassMask,
        features: Floats,
        generated: Floats,
        denoised: Floats,
        config: RefineConfig,
        share: Timings,
    ) -> Refined:
        timings = Timings(share)
        match = self._match_pixels if config.resolution == "pixel" else self._match_grid
        residual, indices, similarities = match(pair, features, config, timings)
        return Refined(residual, indices, similarities, generated, denoised, timings)

    def _match_grid(
        self, pair: ClassMask, features: Floats, config: RefineConfig, timings: Timings
    ) -> tuple[Floats, Ints, Floats]:
        with timings.stage("correspondence"):
            radius = positions_within(config.radius, self.dims.grid)
            indices, similarities = nearest_positions(features, pair.encoded.features, radius=radius)
        with timings.stage("update"):
            residual = mix(pool_to_grid(pair.probability, self.dims.grid), indices, config.beta)
        return residual, indices, similarities

    def _match_pixels(
        self, pair: ClassMask, features: Floats, config: RefineConfig, timings: Timings
    ) -> tuple[Floats, Ints, Floats]:
        probability = pair.probability
        size = (probability.shape[0], probability.shape[1])
        indices = np.full(probability.size, -1, dtype=np.int64)
        similarities = np.zeros(probability.size, dtype=np.float32)
        with timings.stage("correspondence"):
            wanted = np.ones(size, dtype=np.bool_) if pair.searched is None else pair.searched
            queries = np.flatnonzero(wanted)
            radius = positions_within(config.radius, self.dims.square)
            found = nearest_positions(features, pair.encoded.features, size, queries, radius)
            indices[queries], similarities[queries] = found
        with timings.stage("update"):
            residual = mix_at(probability, queries, found[0], config.beta)
        return residual, indices, similarities

    def _run(self, network: str, inputs: Mapping[str, Floats | Ints], output: str, timings: Timings) -> Floats:
        with timings.stage(OPENING):
            runner = self._runners[network]
        with timings.stage(TEXT if network == "text_encoder" else network):
            # Float inputs and outputs of an engine may be half.
            typed = {tensor.name: inputs[tensor.name].astype(tensor.dtype, copy=False) for tensor in runner.spec.inputs}
            values: Floats = runner.run(typed)[output].astype(np.float32, copy=False)
            check_finite(network, bool(np.isfinite(values).all()))
        return values


def opening_order(manifest: Manifest) -> list[str]:
    """The first network that an image needs first; then the largest, which take most room while they open."""
    first, *others = ("vae_encoder", *(name for name in NETWORKS if name != "vae_encoder"))
    sizes = {name: sum(file.bytes for file in manifest.networks[name].files) for name in others}
    return [first, *sorted(others, key=lambda name: -sizes[name])]


def check_count(pairs: Sequence[ClassMask], batch_size: int) -> None:
    """Raises ValueError unless there are 1 to batch_size pairs."""
    if not 1 <= len(pairs) <= batch_size:
        raise ValueError(f"{len(pairs)} pairs in a batch of 1 to {batch_size}")


def filled(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """A whole batch: free entries repeat the first, so that a result does not depend on how many there are."""
    return [*rows, *[rows[0]] * (batch_size - len(rows))]


def check_finite(network: str, finite: bool) -> None:
    """Raises EngineError unless a network's values are finite."""
    if not finite:
        raise EngineError(f"the network {network} returned values that are not finite; rebuild the engine")


def positions_within(share: float | None, side: int) -> int | None:
    """A share of a side in whole positions."""
    return None if share is None else math.floor(share * side)


def check_batch_size(batch_size: object, largest: int | None = None) -> None:
    """Raises ConfigError unless the batch size is an integer from 1 to `largest`."""
    whole = batch_size if isinstance(batch_size, int) and not isinstance(batch_size, bool) else 0
    if whole < 1 or (largest is not None and whole > largest):
        allowed = "an integer from 1 on" if largest is None else f"an integer from 1 to {largest}"
        raise ConfigError(f"batch size is {batch_size!r}, allowed: {allowed}")
