"""The refinement in PyTorch, with the diffusers modules that the engine was made from: what an engine is held against.

Nothing here imports PyTorch before a baseline is asked for.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from g4seg_bench.choices import COMPILE, BaselineChoice
from g4seg_bench.sides import Outcome, Prepared, Task, stage_seconds
from g4seg_engine.errors import EngineMismatchError, G4SegError
from g4seg_engine.manifest import Manifest
from g4seg_trt.prompt import PromptEncoder

if TYPE_CHECKING:
    from g4seg_export.sources import Source

PYTORCH = "pytorch"
"""The backend of every baseline."""

_FOUND_AGAIN = re.compile(r"tiny|random:.+|[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""Names in a manifest that say where weights are; any other is the name of some folder."""
_OWN_ENCODER = "/image_encoder"
"""Ends the name of an image encoder that came with its model."""


class BaselineSide:
    """See Side. Inputs (prompt, mask, noise) are prepared by the product's own functions, and that is timed as well.

    Args:
        chosen: what runs the modules, and in which precision.
        source: from `baseline_source`.
        directory: the engine to compare with: its tokenizer.
        manifest: the engine's.
        device: "cpu" or "cuda".
        threads: CPU threads of PyTorch, of the whole process; None for PyTorch's choice.

    Raises:
        G4SegError: if torch.compile is asked for and does not work here.
    """

    def __init__(
        self,
        chosen: BaselineChoice,
        source: Source,
        directory: Path,
        manifest: Manifest,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        import torch

        from g4seg_export.eager import EagerPipeline

        on_cpu = device == "cpu"
        precision = baseline_precision(chosen, device)
        if threads is not None:
            torch.set_num_threads(threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if chosen.kind == COMPILE:
            _check_compile(device)
        # On a GPU, waiting after each stage would cost the baseline time that the engine does not spend.
        self._staged = on_cpu
        self._pipeline = EagerPipeline(
            source,
            "baseline",
            dense_mode=manifest.image_encoder.dense_mode,
            device=device,
            dtype=dtype,
            stage_timings=False,
        )
        if chosen.kind == COMPILE:
            self._pipeline.compile()
        self._dims = manifest.dims
        self._prompts = PromptEncoder.of_engine(directory, manifest)

    def refine(self, task: Task, first: int) -> Outcome:
        """See Side."""
        settings = task.eager_settings()
        start = perf_counter()
        results = Prepared.of(task, first, self._prompts, self._dims).refined_by(self._pipeline, settings)
        total = perf_counter() - start
        timings: dict[str, float] = {}
        if self._staged:
            names = {"text_encoder": "text", "image_encoder_generated": "image_encoder"}
            for result in results:
                for stage, seconds in result.timings.items():
                    name = names.get(stage, stage)
                    timings[name] = timings.get(name, 0.0) + seconds
        return Outcome(
            stage_seconds(timings, total),
            np.stack([result.denoised for result in results]),
            np.stack([result.probability for result in results]),
            np.stack([result.indices for result in results]),
            np.stack([result.margins for result in results]),
        )

    def wait_until_open(self) -> None:
        """See Side: the modules are loaded."""

    def close(self) -> None:
        """See Side."""
        del self._pipeline


def baseline_precision(chosen: BaselineChoice, device: str) -> str:
    """What a baseline computes in: as asked for, else as a user would on this device."""
    return chosen.precision or ("fp32" if device == "cpu" else "fp16")


def baseline_source(chosen: BaselineChoice, manifest: Manifest, model: str | None, vae: str | None) -> Source:
    """Find the modules that the engine was made from; their weights are loaded later.

    Args:
        chosen: whether the model's own autoencoder is meant.
        manifest: the engine's.
        model: as --model of g4seg-build-engines; None for what the manifest says.
        vae: the autoencoder that the engine has in place of the model's own; None for what the manifest says.

    Raises:
        MissingExtraError: if PyTorch or diffusers is not installed.
        EngineMismatchError: if the engine was made from a model of another kind.
        G4SegError: if the manifest only has the name of a folder, or the model cannot be found.
    """
    from g4seg_export.requirements import require_export_packages

    require_export_packages()
    record = manifest.model
    name = record.id if model is None else model
    if model is None:
        _check_found_again("made from", name, "--model")
    halves = {"vae_encoder": manifest.autoencoder.encoder, "vae_decoder": manifest.autoencoder.decoder}
    options: dict[str, Any] = {half: vae or id for half, id in halves.items() if id and not chosen.own_vae}
    if vae is None:
        for id in options.values():
            _check_found_again("given the autoencoder of", id, "--vae")
    from g4seg_export.sources import load_source

    if name == record.id and record.revision:
        options["revision"] = record.revision
    encoder = manifest.image_encoder.id.partition("@")[0]
    source = load_source(name, **options)
    other = source.image_encoder.id.partition("@")[0] != encoder and not encoder.endswith(_OWN_ENCODER)
    if other and _FOUND_AGAIN.fullmatch(encoder):
        options["image_encoder"] = encoder
        source = load_source(name, **options)
    sized = replace(source.dims, square=manifest.dims.square, grid=manifest.dims.grid)
    if sized == manifest.dims and source.dims.square != sized.square:
        source = load_source(name, square=sized.square, **options)
    if (source.dims, source.prediction_type) != (manifest.dims, manifest.prediction_type):
        raise EngineMismatchError(
            f"the engine was made from {record.id} and the baseline is {name}, of other sizes or another prediction "
            "type: name the model that the engine was made from with --model"
        )
    return source


def _check_found_again(what: str, name: str, option: str) -> None:
    if not _FOUND_AGAIN.fullmatch(name):
        raise G4SegError(
            f"the engine was {what} a local folder called {name!r}: say where the baseline finds it with {option} DIR, "
            "or choose --baseline none"
        )


def _check_compile(device: str) -> None:
    """Raises G4SegError if torch.compile does not work here, which needs a compiler."""
    import torch

    trial = torch.nn.Linear(3, 2).to(device)
    trial.compile()
    try:
        with torch.inference_mode():
            trial(torch.ones(1, 3, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise G4SegError(
            f"torch.compile does not work here ({reason}): install a C++ compiler, or choose --baseline eager"
        ) from error
