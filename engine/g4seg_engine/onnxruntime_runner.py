"""Runs an ONNX graph with ONNX Runtime.

Five networks are open at once and run one after another, so the session options are chosen for the five
together (measured with a 217 M parameter UNet and a VAE decoder at 512 pixels, on 2 CPU cores):

- No spinning: waiting thread pools of the other networks would take the cores that the running one needs.
  With small networks on a busy machine, spinning took 2.7 times as long.
- What opening or closing a network freed goes back to the system: of a text encoder of 1.4 GB, 1.7 GB would stay.
- No memory pattern, and the arena freed after each run: a network keeps no activations between runs. The peak
  of the two falls from 3.9 to 1.9 GB. Without an arena it is the same, for twice the system time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from g4seg_engine.cache import Keep
from g4seg_engine.errors import EngineError, EngineMismatchError, MissingExtraError, first_line
from g4seg_engine.onnxruntime_cache import open_cached
from g4seg_engine.processor import usable_cpus
from g4seg_engine.runner import Array, check_inputs, output_arrays
from g4seg_engine.spec import BATCH, NetworkSpec, TensorSpec, show_shape

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
# onnxruntime's level "fatal": what it calls an error is raised as well, and one line is enough.
_LOG_LEVEL = 4


class OnnxRuntimeRunner:
    """A network on ONNX Runtime; see Runner for the contract. Several threads may call ``run`` at once.

    Args:
        path: the .onnx file; external data is looked up beside it.
        spec: what the graph must offer.
        provider: an execution provider of the installed onnxruntime.
        threads: CPU threads, or None for as many as this process may use.
        provider_options: the provider's own.
        fixed_batch: the only batch size there will be; shapes become constants of the graph.
        keep: makes or finds the cache entry of a key (see `cache.cached`), used on a CPU; None to keep nothing.

    Attributes:
        session: onnxruntime's; None once closed.
        run_options: of every run.
        errors: the exceptions that onnxruntime raises.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        EngineError: `threads` is below 1, the provider is not there, or onnxruntime refuses the graph.
        EngineMismatchError: the graph's inputs or outputs differ from the spec.
    """

    def __init__(
        self,
        path: str | Path,
        spec: NetworkSpec,
        provider: str = CPU_PROVIDER,
        threads: int | None = None,
        provider_options: Mapping[str, str] | None = None,
        fixed_batch: int | None = None,
        keep: Keep | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"threads is {threads}, expected 1 or more")
        if fixed_batch is not None:
            spec = replace(spec, min_batch=fixed_batch, max_batch=fixed_batch)
        self.spec = spec
        self._onnxruntime = import_onnxruntime()
        self.errors = _error_types(self._onnxruntime)
        self._provider = provider
        self._provider_options = dict(provider_options or {})
        self._threads = threads or usable_cpus()
        self._fixed_batch = fixed_batch
        self.session = self._open(Path(path), keep)
        _trim_heap()
        self.run_options = self._onnxruntime.RunOptions()
        self.run_options.log_severity_level = _LOG_LEVEL
        if provider == CPU_PROVIDER:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _check_graph(Path(path), spec, self.session)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network once; see Runner.run."""
        session = self.session
        if session is None:
            raise EngineError(f"{self.spec.name}: this runner is closed")
        batch = check_inputs(self.spec, inputs)
        # onnxruntime reads and writes these in place. An output of its own making would keep a part of the
        # arena from being freed for as long as the caller holds it.
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        outputs = output_arrays(self.spec, batch)
        try:
            binding = session.io_binding()
            for name, array in held.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            session.run_with_iobinding(binding, self.run_options)
        except self.errors as error:
            raise EngineError(f"{self.spec.name}: onnxruntime failed: {first_line(error)}") from error
        return outputs

    def close(self) -> None:
        """Frees the session."""
        if self.session is not None:
            self.session = None
            _trim_heap()

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, path: Path, keep: Keep | None) -> Any:
        available = self._onnxruntime.get_available_providers()
        if self._provider not in available:
            # Unchecked, onnxruntime would warn and run on the CPU.
            raise EngineError(f"onnxruntime has no provider {self._provider!r}: it has {', '.join(available)}")
        if keep is not None and self._provider == CPU_PROVIDER:
            key = {"provider": self._provider, "batch": self._fixed_batch}
            session = open_cached(self._onnxruntime, path, self._open_graph, keep, key)
            if session is not None:
                return session
        return self._open_graph(path)

    def _open_graph(self, path: Path, change: Callable[[Any], None] | None = None) -> Any:
        """A session on a graph, its options changed by `change`."""
        onnxruntime = self._onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_LEVEL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._fixed_batch is not None:
            options.add_free_dimension_override_by_name(BATCH, self._fixed_batch)
        if change is not None:
            change(options)
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=[(self._provider, self._provider_options)], enable_fallback=0
            )
        except self.errors as error:
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} cannot open {path}: {first_line(error)}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise EngineError(f"onnxruntime could not start its provider {self._provider} and would use the CPU")
        return session


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingExtraError.for_package("onnxruntime", "cpu") from error
    module: ModuleType = onnxruntime
    return module


def _error_types(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: two built-in classes, and its own, which share no base but Exception."""
    names = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    own = (kind for kind in names if isinstance(kind, type) and issubclass(kind, Exception))
    return (RuntimeError, ValueError, *own)


def _trim_heap() -> None:
    """Give freed memory back to the system; glibc keeps what lies between pieces that are still in use."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other libraries have none
        if trim is not None:
            trim(0)


def _check_graph(path: Path, spec: NetworkSpec, session: Any) -> None:
    for side, tensors, nodes in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        found = {node.name: node for node in nodes}
        expected = [tensor.name for tensor in tensors]
        if set(found) != set(expected):
            raise EngineMismatchError(f"{path}: expected {side} {', '.join(expected)}, found {', '.join(found)}")
        for tensor in tensors:
            node = found[tensor.name]
            dtype = _DTYPES.get(node.type, node.type)
            if dtype != tensor.dtype or not _same_axes(spec, tensor, node.shape):
                shown = f"{tensor.name} {dtype} {show_shape(node.shape)}"
                raise EngineMismatchError(f"{path}: expected {tensor.describe()}, found {shown}")


def _same_axes(spec: NetworkSpec, tensor: TensorSpec, shape: list[int | str | None]) -> bool:
    if len(shape) != len(tensor.shape):
        return False
    for expected, found in zip(tensor.shape, shape, strict=True):
        if expected == BATCH:
            if isinstance(found, int) and (spec.min_batch, spec.max_batch) != (found, found):
                return False
        elif isinstance(found, int) and found != expected:
            return False
    return True
