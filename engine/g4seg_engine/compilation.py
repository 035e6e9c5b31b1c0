"""What turns the graphs of an engine directory into a backend's own artefacts, as part of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import ArtefactRecord, Manifest
from g4seg_engine.spec import MAX_BATCH
from g4seg_engine.tensorrt_artefact import TIMING_CACHE


class Compiler(Protocol):
    """A backend's compiler."""

    @property
    def options(self) -> Mapping[str, str | None]:
        """Options of g4seg-build-engines that do the same again; None for one that was not given."""
        ...

    def check(self) -> None:
        """Raise what is sure to stop `compile`: called before the graphs are exported, which takes minutes."""
        ...

    def compile(self, directory: Path, manifest: Manifest) -> tuple[ArtefactRecord, ...]:
        """Compile the graphs of a directory into it; returns what the manifest is to say."""
        ...


@dataclass(frozen=True)
class TensorRTCompiler:
    """TensorRT plans, for the GPU of this machine.

    Args:
        batch_sizes: of (image, class) pairs, one plan of each network for each.
        workspace_gb: GPU memory that a kernel may use for itself, in GiB; None for all there is.
        optimization_level: 0 (fast build) to 5 (fast engine).
        timing_cache: file of measured timings to read and to add to, besides the engine's own.
        earlier: the engine that may be replaced: its timings are read where there is no `timing_cache`.
        progress: show a progress bar on stderr.

    Raises:
        EngineError: if the batch sizes are not different integers from 1 on.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    workspace_gb: float | None = None
    optimization_level: int = 3
    timing_cache: Path | None = None
    earlier: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or len(set(sizes)) < len(sizes) or not all(1 <= size <= MAX_BATCH for size in sizes):
            shown = ",".join(map(str, sizes))
            raise EngineError(f"batch sizes are {shown!r}, allowed: different integers from 1 to {MAX_BATCH}")

    @property
    def options(self) -> Mapping[str, str | None]:
        """See Compiler."""
        return {
            "--backend": "tensorrt",
            "--batch-sizes": ",".join(map(str, self.batch_sizes)),
            "--workspace": None if self.workspace_gb is None else f"{self.workspace_gb:g}",
            "--optimization-level": str(self.optimization_level),
            "--timing-cache": None if self.timing_cache is None else str(self.timing_cache),
        }

    def check(self) -> None:
        """See Compiler.

        Raises:
            MissingExtraError: TensorRT, Polygraphy or PyTorch is not installed.
            EngineError: there is no usable GPU.
        """
        from g4seg_engine.cuda_device import cuda_device
        from g4seg_engine.tensorrt_api import import_tensorrt, require_polygraphy

        import_tensorrt()
        require_polygraphy()
        cuda_device()

    def compile(self, directory: Path, manifest: Manifest) -> tuple[ArtefactRecord, ...]:
        """See Compiler; raises as `tensorrt_builder.build_tensorrt`."""
        from g4seg_engine.tensorrt_builder import build_tensorrt

        return build_tensorrt(
            directory,
            manifest,
            batch_sizes=self.batch_sizes,
            workspace_gb=self.workspace_gb,
            optimization_level=self.optimization_level,
            timing_cache=self.timing_cache,
            progress=self.progress,
            earlier_timings=None if self.earlier is None else self.earlier / TIMING_CACHE,
        )
