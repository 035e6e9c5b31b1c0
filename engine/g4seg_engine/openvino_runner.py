"""Runs an ONNX graph with OpenVINO on a CPU, in float32 or, where the processor has the instructions, in bfloat16.

Shapes are static: a graph is compiled for each batch size that it is run with. Large networks are kept in the engine
directory as OpenVINO's own files (see `cache`), of which the second start compiles several times as fast. Weights of
a network that computes in bfloat16 are kept there as float16, which has more digits: half to read and to hold.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from g4seg_engine.cache import Keep
from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError
from g4seg_engine.mapped_files import dropping_pages
from g4seg_engine.openvino_norms import norm_by_channel
from g4seg_engine.processor import has_bfloat16, usable_cpus
from g4seg_engine.runner import Array, check_inputs
from g4seg_engine.spec import BATCH, NetworkSpec, show_shape

PRECISIONS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16"}
"""Compute precisions, and what OpenVINO calls them."""

MODEL_FILE = "model.xml"
"""OpenVINO's graph in a cache entry; its weights lie beside it."""

_ERRORS = (RuntimeError, ValueError, TypeError)  # OpenVINO has no type of its own
_DTYPES = {"f32": "float32", "f16": "float16", "i64": "int64"}


class OpenVinoRunner:
    """A network on OpenVINO; see Runner for the contract. Several threads may call ``run``; they take turns.

    Args:
        path: the .onnx file; external data is looked up beside it.
        spec: what the graph must offer.
        compute_precision: "fp32" or "bf16", or None for bf16 where the processor has it and fp32 elsewhere.
        threads: CPU threads, or None for as many as this process may use.
        batch: the batch size to be ready for at once; others are compiled when they come.
        keep: makes or finds the cache entry of a key (see `cache.cached`); None to keep nothing.

    Attributes:
        compute_precision: what it computes in.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        EngineError: `threads` is below 1, the precision is unknown or nothing this processor can do, or OpenVINO
            refuses the graph.
        EngineMismatchError: the graph's inputs or outputs differ from the spec.
    """

    def __init__(
        self,
        path: str | Path,
        spec: NetworkSpec,
        compute_precision: str | None = None,
        threads: int | None = None,
        batch: int = 1,
        keep: Keep | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}, expected 1 or more")
        self.spec = spec
        self.compute_precision = check_precision(compute_precision)
        self._openvino = require_openvino()
        self._path = Path(path)
        self._keep = keep
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.compute_precision],
            "INFERENCE_NUM_THREADS": threads or usable_cpus(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        self._core: Any = self._openvino.Core()
        self._lock = Lock()
        self._requests: dict[int, Any] = {}
        self._request(batch if spec.max_batch > 1 else 1)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network once; see Runner.run."""
        if self._core is None:
            raise EngineError(f"{self.spec.name}: this runner is closed")
        batch = check_inputs(self.spec, inputs)
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            request = self._request(batch)
            try:
                request.infer(held, share_inputs=True)
                return {tensor.name: request.get_tensor(tensor.name).data.copy() for tensor in self.spec.outputs}
            except _ERRORS as error:
                raise EngineError(f"{self.spec.name}: OpenVINO failed: {last_line(error)}") from error

    def close(self) -> None:
        """Frees the compiled network."""
        self._requests.clear()
        self._core = None

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, batch: int) -> Any:
        """The compiled network of a batch size, ready to run."""
        if batch not in self._requests:
            entry = self._entry(batch)
            source = entry / MODEL_FILE if entry is not None else self._path
            try:
                # Packed for the processor, the weights are read no more.
                with dropping_pages(source.parent):
                    compiled = self._compile(batch, entry)
                self._requests[batch] = compiled.create_infer_request()
            except _ERRORS as error:
                version = self._openvino.__version__
                raise EngineError(f"OpenVINO {version} cannot open {source}: {last_line(error)}") from error
        return self._requests[batch]

    def _entry(self, batch: int) -> Path | None:
        if self._keep is None:
            return None
        key = {
            "version": self._openvino.__version__,
            "precision": self.compute_precision,
            "batch": batch,
            "norms": "by channel",
        }
        return self._keep(key, lambda folder: self._save(batch, folder))

    def _compile(self, batch: int, entry: Path | None) -> Any:
        if entry is None:
            return self._core.compile_model(self._read(batch), "CPU", self._config)
        config = dict(self._config)
        if os.access(entry, os.W_OK) or any(entry.glob("*.blob")):
            # Next to nothing on the disk: the weights stay where they are.
            config |= {"CACHE_DIR": str(entry), "CACHE_MODE": "OPTIMIZE_SIZE"}
        return self._core.compile_model(entry / MODEL_FILE, "CPU", config)

    def _read(self, batch: int) -> Any:
        """The graph with a fixed batch size.

        Raises:
            EngineMismatchError: its inputs or outputs differ from the spec.
        """
        model = self._core.read_model(self._path)
        _check_graph(self._path, self.spec, model)
        model.reshape(
            {
                tensor.name: [batch if size == BATCH else int(size) for size in tensor.shape]
                for tensor in self.spec.inputs
            }
        )
        norm_by_channel(model)
        return model

    def _save(self, batch: int, folder: Path) -> None:
        try:
            model = self._read(batch)
            self._openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=self.compute_precision == "bf16")
        except _ERRORS as error:
            needed = self._path.stat().st_size + sum(
                other.stat().st_size for other in self._path.parent.glob(f"{self._path.name}.*")
            )
            if shutil.disk_usage(folder).free < needed:
                raise OSError(28, "no space left on the disk") from error
            raise EngineError(
                f"OpenVINO {self._openvino.__version__} cannot open {self._path}: {last_line(error)}"
            ) from error


def check_precision(compute_precision: str | None) -> str:
    """What OpenVINO is to compute in: what was asked for, or the fastest that the processor has instructions for.

    Raises:
        EngineError: an unknown precision, or one that this processor cannot compute in at speed.
    """
    if compute_precision is None:
        return "bf16" if has_bfloat16() else "fp32"
    if compute_precision not in PRECISIONS:
        raise EngineError(
            f"compute precision {compute_precision!r} is unknown to openvino: choose from {', '.join(PRECISIONS)}"
        )
    if compute_precision == "bf16" and not has_bfloat16():
        raise EngineError("this processor has no bfloat16 instructions: choose --compute-precision fp32")
    return compute_precision


def require_openvino() -> ModuleType:
    """Import OpenVINO.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise MissingExtraError.for_package("openvino", "openvino") from error
    module: ModuleType = openvino
    return module


def last_line(error: Exception) -> str:
    """What went wrong in one line: OpenVINO's messages begin with its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_graph(path: Path, spec: NetworkSpec, model: Any) -> None:
    for side, tensors, ports in (("inputs", spec.inputs, model.inputs), ("outputs", spec.outputs, model.outputs)):
        found = {name: port for port in ports for name in port.get_names()}
        expected = [tensor.name for tensor in tensors]
        if missing := [name for name in expected if name not in found]:
            raise EngineMismatchError(f"{path}: {side} {', '.join(missing)} are missing, found {', '.join(found)}")
        if len(ports) != len(tensors):
            raise EngineMismatchError(f"{path}: expected {side} {', '.join(expected)}, found {', '.join(found)}")
        for tensor in tensors:
            port = found[tensor.name]
            kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
            axes = [None if axis.is_dynamic else axis.get_length() for axis in shape]
            fits = len(axes) == len(tensor.shape) and all(
                size is None or wanted in (BATCH, size) for size, wanted in zip(axes, tensor.shape, strict=True)
            )
            if not fits or _DTYPES.get(kind, kind) != tensor.dtype:
                shown = f"{tensor.name} {_DTYPES.get(kind, kind)} {show_shape(axes)}"
                raise EngineMismatchError(f"{path}: expected {tensor.describe()}, found {shown}")
