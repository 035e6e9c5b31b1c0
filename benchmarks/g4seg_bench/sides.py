"""The two sides of the latency benchmark: an engine, and the same refinement in eager PyTorch, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from g4seg_bench.inputs import enlarge, first_sample
from g4seg_engine.errors import EngineMismatchError
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import ModelDims
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.injection import seeded_noise
from g4seg_trt.preparation import PreparedClass, prepare_image, prepare_masks
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner
from g4seg_trt.update import BackgroundRule

if TYPE_CHECKING:
    from g4seg_export.eager import EagerPipeline, EagerRefinement, EagerSettings

Floats = NDArray[np.float32]

STAGES = ("text", "vae_encoder", "unet", "vae_decoder", "image_encoder", "correspondence")
REST = "rest"
TOTAL = "total"

CLEAR_MARGIN = 1e-4
"""Two candidates whose similarities differ by less than this may change places between the sides."""


@dataclass(frozen=True)
class Task:
    """One mask of one image that has the model's size, so that both sides give the same pixels.

    Attributes:
        image: uint8 RGB [s,s,3].
        coarse: float32 [s,s] in [0,1].
        target: what the mask shows.
        config: the engine's recommended settings.
    """

    image: NDArray[np.uint8]
    coarse: Floats
    target: str
    config: RefineConfig

    @classmethod
    def of(cls, manifest: Manifest) -> Task:
        """The task for an engine."""
        sample = first_sample()
        image, coarse = enlarge(sample, manifest.dims.square)
        return cls(image, coarse, sample.scene.target, resolve_config(recommended=manifest.recommended))

    def eager_settings(self) -> EagerSettings:
        """The same settings for eager PyTorch."""
        from g4seg_export.eager import EagerSettings

        return EagerSettings(**{field.name: getattr(self.config, field.name) for field in fields(EagerSettings)})

    def class_name(self, run: int) -> str:
        """Another name for each run: an engine keeps the text embeddings of names it has seen, the baseline none."""
        return f"{self.target} {run}"


@dataclass(frozen=True)
class Prepared:
    """One mask as the networks take it, prepared by the product's own functions.

    Attributes:
        pixels: RGB float32 [3,s,s] in [0,1].
        one: prompt and masks.
        noise: float32 [Z,h,h].
    """

    pixels: Floats
    one: PreparedClass
    noise: Floats

    @classmethod
    def of(cls, task: Task, name: str, prompts: PromptEncoder, dims: ModelDims) -> Prepared:
        """The task's mask, under a class name."""
        image = prepare_image(task.image, dims.square)
        masks, rule = {name: task.coarse}, BackgroundRule()
        one = prepare_masks(masks, image.size, prompts, dims, task.config, rule).classes[0]
        noise = seeded_noise(task.config.seed, (dims.latent_channels, dims.latent_size, dims.latent_size))
        return cls(image.pixels, one, noise)

    def refined_by(self, pipeline: EagerPipeline, settings: EagerSettings) -> EagerRefinement:
        """By eager PyTorch."""
        one, prompt = self.one, self.one.prompt
        return pipeline.refine(
            self.pixels, one.square, prompt.input_ids, prompt.token_mask, one.mask, self.noise, settings
        )


@dataclass(frozen=True)
class Outcome:
    """What one refinement gave.

    Attributes:
        seconds: by stage (STAGES), the rest, and the total.
        denoised: the denoised latent, float32 [Z,h,h].
        probability: float32 [s,s] in [0,1].
        indices: the match of every grid position, int64 [g*g].
        margins: by how much each beats the second best, float32 [g*g]; None on the engine's side.
    """

    seconds: dict[str, float]
    denoised: Floats
    probability: Floats
    indices: NDArray[np.int64]
    margins: Floats | None = None


class Side(Protocol):
    """One way to refine."""

    def refine(self, task: Task, run: int) -> Outcome:
        """Refine the task's mask, from the image on, with nothing kept from the run before."""
        ...


class EngineSide:
    """The product on an engine directory.

    Args:
        directory: the engine.
        threads: CPU threads of its networks.
    """

    def __init__(self, directory: Path, threads: int) -> None:
        self._refiner = Refiner.from_engine(directory, threads=threads)

    def refine(self, task: Task, run: int) -> Outcome:
        name = task.class_name(run)
        start = perf_counter()
        self._refiner.set_image(task.image)
        result = self._refiner.refine({name: task.coarse}, config=task.config, keep=("denoised", "indices"))
        total = perf_counter() - start
        return Outcome(
            _seconds(result.timings, total), result.denoised[name], result.probabilities[name], result.indices[name]
        )


class BaselineSide:
    """Eager PyTorch with the diffusers modules of a model.

    Inputs (prompt, mask, noise) are prepared by the product's own functions, and that is timed as well.

    Args:
        model: as for g4seg-build-engines.
        directory: the engine to compare with: its tokenizer.
        manifest: the engine's.
        threads: CPU threads of PyTorch, of the whole process.

    Raises:
        MissingExtraError: if PyTorch or diffusers is not installed.
        EngineMismatchError: if the engine was made from a model of another kind.
    """

    def __init__(self, model: str, directory: Path, manifest: Manifest, threads: int) -> None:
        from g4seg_export.requirements import require_export_packages

        require_export_packages()
        import torch

        from g4seg_export.eager import EagerPipeline
        from g4seg_export.sources import load_source

        source = load_source(model)
        if (source.dims, source.prediction_type) != (manifest.dims, manifest.prediction_type):
            raise EngineMismatchError(
                f"the engine was made from {manifest.model.id} and the baseline is {model}, of other sizes or another "
                "prediction type: name the model that the engine was made from"
            )
        torch.set_num_threads(threads)
        self._pipeline = EagerPipeline(source, "baseline", dense_mode=manifest.image_encoder.dense_mode)
        self._dims = manifest.dims
        self._prompts = PromptEncoder.of_engine(directory, manifest)

    def refine(self, task: Task, run: int) -> Outcome:
        settings = task.eager_settings()
        start = perf_counter()
        given = Prepared.of(task, task.class_name(run), self._prompts, self._dims)
        result = given.refined_by(self._pipeline, settings)
        total = perf_counter() - start
        stages = dict(result.timings)
        stages["text"] = stages.pop("text_encoder")
        stages["image_encoder"] += stages.pop("image_encoder_generated")
        return Outcome(_seconds(stages, total), result.denoised, result.probability, result.indices, result.margins)


def difference(engine: Outcome, baseline: Outcome) -> dict[str, Any]:
    """How far the engine's outcome lies from the baseline's.

    Returns:
        "denoised_relative": max|engine - baseline| / max|baseline| of the latents; "probability_max": the largest
        absolute difference; "matches", "matches_differing", and "clear_matches_differing": those among them whose
        best candidate beats the second by CLEAR_MARGIN or more.
    """
    distance = float(np.abs(engine.denoised - baseline.denoised).max())
    moved = engine.indices != baseline.indices
    clear = moved if baseline.margins is None else moved & (baseline.margins >= CLEAR_MARGIN)
    return {
        "denoised_relative": distance / float(np.abs(baseline.denoised).max()),
        "probability_max": float(np.abs(engine.probability - baseline.probability).max()),
        "matches": int(moved.size),
        "matches_differing": int(moved.sum()),
        "clear_matches_differing": int(clear.sum()),
    }


def _seconds(timings: Mapping[str, float], total: float) -> dict[str, float]:
    named = {stage: round(timings.get(stage, 0.0), 6) for stage in STAGES}
    return {**named, REST: round(total - sum(named.values()), 6), TOTAL: round(total, 6)}
