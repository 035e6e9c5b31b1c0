"""Runs an ONNX graph with OpenVINO on a CPU, in float32 or, where the processor has the instructions, in bfloat16.

Shapes are static: a graph is compiled for each batch size that it is run with. Weights of a network that computes in
bfloat16 are rounded to float16, which has more digits: half to read and to hold. Large networks are kept compiled in
the engine directory (see `openvino_cache`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from g4seg_engine.cache import Keep
from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError
from g4seg_engine.mapped_files import dropping_pages
from g4seg_engine.openvino_cache import ERRORS, Request, last_line, open_cached, weights
from g4seg_engine.openvino_norms import norm_by_channel
from g4seg_engine.processor import cpu_precisions, usable_cpus
from g4seg_engine.runner import Array, check_inputs
from g4seg_engine.spec import BATCH, NetworkSpec, show_shape

PRECISIONS: Mapping[str, str] = {"fp32": "f32", "bf16": "bf16"}
"""Compute precisions, and what OpenVINO calls them."""

_one_core = Lock()

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
        self._core = shared_core()
        self._closed = False
        self._lock = Lock()
        self._requests: dict[int, Request] = {}
        self._request(batch if spec.max_batch > 1 else 1)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network once; see Runner.run."""
        batch = check_inputs(self.spec, inputs)
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.spec.name}: this runner is closed")
            request = self._request(batch).request
            try:
                request.infer(held, share_inputs=True)
                return {tensor.name: request.get_tensor(tensor.name).data.copy() for tensor in self.spec.outputs}
            except ERRORS as error:
                raise EngineError(f"{self.spec.name}: OpenVINO failed: {last_line(error)}") from error

    def close(self) -> None:
        """Frees the compiled network, after the run that is under way."""
        with self._lock:
            self._requests.clear()
            self._closed = True

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, batch: int) -> Request:
        """The compiled network of a batch size, ready to run."""
        if batch not in self._requests:
            try:
                self._requests[batch] = self._kept(batch) or self._compiled(batch)
            except ERRORS as error:
                version = self._openvino.__version__
                raise EngineError(f"OpenVINO {version} cannot open {self._path}: {last_line(error)}") from error
        return self._requests[batch]

    def _kept(self, batch: int) -> Request | None:
        """The request of the cache's entry, or None where there is none to use."""
        if self._keep is None:
            return None
        key = {"precision": self.compute_precision, "batch": batch, "norms": "by channel"}
        return open_cached(
            self._openvino, self._core, lambda: self._read(batch), self._config, self._keep, key, self._halved
        )

    def _compiled(self, batch: int) -> Request:
        """The request of the graph itself."""
        model = self._read(batch)
        if self._halved:
            # What save_model calls for a file; openvino.passes has no equal.
            from openvino._offline_transformations import compress_model_transformation

            with dropping_pages(weights(model)):
                compress_model_transformation(model)
        with dropping_pages(weights(model)):
            return Request(self._core.compile_model(model, "CPU", self._config).create_infer_request())

    @property
    def _halved(self) -> bool:
        return self.compute_precision == "bf16"

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


def check_precision(compute_precision: str | None) -> str:
    """What OpenVINO is to compute in: what was asked for, or the fastest that the processor has instructions for.

    Raises:
        EngineError: an unknown precision, or one that this processor cannot compute in at speed.
    """
    if compute_precision is None:
        return cpu_precisions()[-1]
    if compute_precision not in PRECISIONS:
        raise EngineError(
            f"compute precision {compute_precision!r} is unknown to openvino: choose from {', '.join(PRECISIONS)}"
        )
    if compute_precision not in cpu_precisions():
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


def shared_core() -> Any:
    """OpenVINO's Core, which this process keeps until it ends.

    A Core gives the thread that loads its plugin for CPUs another stack for signals (sigaltstack), and frees that when
    it goes, from whatever thread. Of several Cores one may put back the stack of another that is gone already. The
    next signal that Python handles, Ctrl-C for one, would end the process then (seen with OpenVINO 2026.4.1).

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with _one_core:
        return _core()


@lru_cache(maxsize=1)
def _core() -> Any:
    return require_openvino().Core()


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
