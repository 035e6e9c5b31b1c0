"""The sides of the latency benchmark: what they refine, what they give, and an engine on a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from g4seg_bench.choices import EngineChoice
from g4seg_bench.inputs import enlarge, first_sample
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest
from g4seg_engine.spec import ModelDims
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.injection import seeded_noise
from g4seg_trt.preparation import PreparedClass, prepare_image, prepare_masks
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner
from g4seg_trt.timing import NETWORKS, OPENING
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
    """Masks of one image that has the model's size, so that all sides give the same pixels.

    Attributes:
        image: uint8 RGB [s,s,3].
        coarse: float32 [s,s] in [0,1].
        target: what the mask shows.
        config: the engine's recommended settings.
        classes: how many masks: the coarse one, moved sideways for each further class.
    """

    image: NDArray[np.uint8]
    coarse: Floats
    target: str
    config: RefineConfig
    classes: int = 1

    @classmethod
    def of(cls, manifest: Manifest, classes: int = 1) -> Task:
        """The task for an engine."""
        sample = first_sample()
        image, coarse = enlarge(sample, manifest.dims.square)
        return cls(image, coarse, sample.scene.target, resolve_config(recommended=manifest.recommended), classes)

    def eager_settings(self) -> EagerSettings:
        """The same settings for PyTorch.

        Raises:
            G4SegError: if it has none of the kind.
        """
        from g4seg_export.eager import EagerSettings

        if self.config.resolution != "grid" or self.config.radius is not None:
            raise G4SegError(
                f"the engine recommends resolution {self.config.resolution} and radius {self.config.radius}, and the "
                "baseline only matches the whole grid: choose --baseline none"
            )
        return EagerSettings(**{field.name: getattr(self.config, field.name) for field in fields(EagerSettings)})

    def masks(self, first: int) -> dict[str, Floats]:
        """The masks by names that are numbered from `first` on.

        An engine keeps the text embeddings of names that it has seen, a baseline keeps none: each run needs others.
        """
        step = self.coarse.shape[1] // self.classes
        return {
            f"{self.target} {first + place}": np.roll(self.coarse, place * step, axis=1)
            for place in range(self.classes)
        }


@dataclass(frozen=True)
class Prepared:
    """Masks as the networks take them, prepared by the product's own functions.

    Attributes:
        pixels: RGB float32 [3,s,s] in [0,1].
        classes: prompts and masks.
        noise: float32 [Z,h,h].
    """

    pixels: Floats
    classes: tuple[PreparedClass, ...]
    noise: Floats

    @property
    def one(self) -> PreparedClass:
        """The first of the classes."""
        return self.classes[0]

    @classmethod
    def of(cls, task: Task, first: int, prompts: PromptEncoder, dims: ModelDims) -> Prepared:
        """The task's masks, by names that are numbered from `first` on."""
        image = prepare_image(task.image, dims.square)
        classes = prepare_masks(task.masks(first), image.size, prompts, dims, task.config, BackgroundRule()).classes
        noise = seeded_noise(task.config.seed, (dims.latent_channels, dims.latent_size, dims.latent_size))
        return cls(image.pixels, classes, noise)

    def refined_by(self, pipeline: EagerPipeline, settings: EagerSettings) -> list[EagerRefinement]:
        """All classes by PyTorch; the image's own stages run once, and count to the first."""
        image = pipeline.prepare(self.pixels)
        refined = [
            pipeline.refine(
                image, one.square, one.prompt.input_ids, one.prompt.token_mask, one.mask, self.noise, settings
            )
            for one in self.classes
        ]
        refined[0].timings.update(image.timings)
        return refined


@dataclass(frozen=True)
class Outcome:
    """What one refinement of a task gave; C is the number of its classes.

    Attributes:
        seconds: by stage (STAGES, those that the side can tell apart), the rest, and the total.
        denoised: the denoised latents, float32 [C,Z,h,h].
        probability: float32 [C,s,s] in [0,1].
        indices: the match of every grid position, int64 [C,g*g].
        margins: by how much each beats the second best, float32 [C,g*g]; None on an engine's side.
        opening: seconds of waiting for networks to be opened, which the rest holds too.
    """

    seconds: dict[str, float]
    denoised: Floats
    probability: Floats
    indices: NDArray[np.int64]
    margins: Floats | None = None
    opening: float = 0.0


class Side(Protocol):
    """One way to refine."""

    def refine(self, task: Task, first: int) -> Outcome:
        """Refine the task's masks, from the image on, by names that are numbered from `first` on."""
        ...

    def wait_until_open(self) -> None:
        """Return when there is nothing left to load."""
        ...

    def close(self) -> None:
        """Let go of the networks."""
        ...


class EngineSide:
    """The product on an engine directory; see Side.

    Args:
        chosen: backend and precision.
        directory: the engine.
        device: "cpu", "cuda" or None for the backend's first.
        batch_size: masks in one run of a network.
        threads: CPU threads of its networks.
        low_memory: one network at a time.
        cache: whether to use the engine's cache.

    Raises:
        G4SegError: as Refiner.from_engine, or if the backend was not built for this batch size.
    """

    def __init__(
        self,
        chosen: EngineChoice,
        directory: Path,
        *,
        device: str | None = None,
        batch_size: int = 1,
        threads: int | None = None,
        low_memory: bool = False,
        cache: bool = True,
    ) -> None:
        self._refiner = Refiner.from_engine(
            directory,
            backend=chosen.backend,
            device=device,
            batch_size=batch_size,
            threads=threads,
            compute_precision=chosen.compute_precision,
            low_memory=low_memory,
            cache=cache,
        )
        if self._refiner.batch_size != batch_size:
            found = self._refiner.batch_size
            self._refiner.close()
            raise G4SegError(
                f"{chosen.name} was built for batches of {found}, not of {batch_size}: choose --batch-size {found}"
            )

    def refine(self, task: Task, first: int) -> Outcome:
        """See Side."""
        masks = task.masks(first)
        start = perf_counter()
        self._refiner.set_image(task.image)
        result = self._refiner.refine(masks, config=task.config, keep=("denoised", "indices"))
        total = perf_counter() - start
        return Outcome(
            stage_seconds(result.timings, total, result.timings.get(NETWORKS, 0.0)),
            _stacked(result.denoised),
            _stacked(result.probabilities),
            _stacked(result.indices),
            opening=result.timings.get(OPENING, 0.0),
        )

    def wait_until_open(self) -> None:
        """See Side."""
        self._refiner.wait_until_open()

    def close(self) -> None:
        """See Side."""
        self._refiner.close()


def stage_seconds(timings: Mapping[str, float], total: float, together: float = 0.0) -> dict[str, float]:
    """The seconds of a run by STAGES as far as they are known, the rest, and the total.

    Args:
        timings: by stage; names that are not in STAGES belong to the rest.
        total: of the run.
        together: of stages that cannot be told apart.
    """
    named = {stage: round(timings[stage], 6) for stage in STAGES if stage in timings}
    rest = {REST: round(total - together - sum(named.values()), 6)} if named or together else {}
    return {**named, **rest, TOTAL: round(total, 6)}


def difference(side: Outcome, reference: Outcome) -> dict[str, Any]:
    """How far a side's outcome lies from the reference's.

    Returns:
        "denoised_relative": max|side - reference| / max|reference| of the latents; "probability_max": the largest
        absolute difference; "matches", "matches_differing", and "clear_matches_differing": those among them whose
        best candidate beats the second by CLEAR_MARGIN or more.
    """
    distance = float(np.abs(side.denoised - reference.denoised).max())
    moved = side.indices != reference.indices
    clear = moved if reference.margins is None else moved & (reference.margins >= CLEAR_MARGIN)
    return {
        "denoised_relative": distance / float(np.abs(reference.denoised).max()),
        "probability_max": float(np.abs(side.probability - reference.probability).max()),
        "matches": int(moved.size),
        "matches_differing": int(moved.sum()),
        "clear_matches_differing": int(clear.sum()),
    }


def _stacked(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return np.stack(list(arrays.values()))
